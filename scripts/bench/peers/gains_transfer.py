"""What schedules keep of their gain elsewhere: `bench_gains.py --transfer` writes docs/gains-transfer.*.

Of docs/gains.json the median of ours, the best rival with its gain, the same as published, and ours of
before; of docs/polish.json its starts, polished with gains and with weights. Nothing is chosen anew.
"""  # noqa: E501

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from peers.measure import Entry
from stepsampler.errors import percent
from stepsampler.grids import is_guided, scale_guidance
from stepsampler.schedule import Schedule
from stepsearch.compare.table import with_error
from stepsearch.paths import write_whole

DRAWN = "gains-transfer.json"
STRONGER = 1.5  # times the guidance scale
RIVALS = ("placement", "learned", "search")
PLACES: dict[str, dict[str, Any]] = {  # what the harness has otherwise
    "as it was chosen": {},
    "held-out prompts": {"held_out": True},
    "the weights of tiny-second": {"model": "tiny-second"},
    "guidance scale times 1.5": {},
}
ABOUT = """# What schedules keep of their gain

By `python scripts/bench/bench_gains.py --transfer`; nothing is chosen anew. Rows are of [gains.md](gains.md): the median of
ours, the best rival with its gain and the same as published, ours of before; and of [polish.md](polish.md): its starts as
they are, and polished with a gain or with weights of each step. They make images of prompts that nothing was
chosen on, with other weights of the same kind (`tiny-second`), and with the excess of the guidance scale over 1 such that
the mean scale of the guided steps is 1.5 times as high. Each cell is the geometric mean of four FDs on the same fresh seeds, ±
its standard error; lower is better. In brackets is the change from the schedule that it is a change of: from the rival as
published, or from a polish's start. A search or a polish of another seed would find another schedule: that is not in the errors."""  # noqa: E501


def transfer(args: argparse.Namespace, bench: Callable[[argparse.Namespace], Any]) -> None:
    """Measure the rows of each of `--steps` at each place; file and page are written after each."""
    path = args.docs / DRAWN
    columns = {rows["steps"]: rows for rows in json.loads((args.docs / "gains.json").read_text())}
    polished = json.loads((args.docs / "polish.json").read_text())["rows"]
    done = {rows["steps"]: rows for rows in json.loads(path.read_text())} if path.exists() else {}
    for n in args.steps:
        entries, bases = chosen(columns[n]["contenders"], polished, columns[n]["passes"])
        tests = {}
        for place, change in PLACES.items():
            print(f"{n} steps, {place}", flush=True)
            plans = stronger(entries) if place == list(PLACES)[-1] else entries
            tests[place] = bench(argparse.Namespace(**{**vars(args), **change})).test(plans)
        known = {"dtype": args.dtype, "images": args.images}
        done[n] = {"steps": n, "passes": columns[n]["passes"], "bases": bases, "tests": tests}
        done[n]["settings"] = known
        found = [done[k] for k in sorted(done)]
        for file, text in ((path, json.dumps(found)), (path.with_suffix(".md"), page(found))):
            write_whole(file, partial(Path.write_text, data=text + "\n", encoding="utf-8"))
    print(path.with_suffix(".md").read_text())


def chosen(
    rows: Sequence[dict], polished: Sequence[dict], passes: int
) -> tuple[list[Entry], dict[str, str]]:
    """The rows of a column that are taken, and the name of that which each is a change of."""
    rivals = [row for row in rows if row["kind"] in RIVALS]
    best = min((row for row in rivals if ", gain " in row["name"]), key=lambda row: row["mean"][0])
    before = next(row for row in rivals if row["name"] == best["name"].partition(", gain ")[0])
    ours = next(row for row in rows if row["headline"])
    kept = [ours, best, before, *(row for row in rows if row["kind"] == "ours")]
    entries = [_entry(row["name"], row["schedule"], row["kind"]) for row in kept]
    bases = {best["name"]: before["name"]}
    for row in polished:
        after = row["after"].partition(", and ")[2]
        if row["passes"] == passes and (not row["after"] or after in ("gains", "weights")):
            start = f"{row['schedule']}, before a polish"
            name = f"{row['schedule']}, polished with {after}" if after else start
            entries.append(_entry(name, row["file"], "polish"))
            if after:
                bases[name] = start
    return entries, bases


def _entry(name: str, schedule: dict, kind: str) -> Entry:
    return Entry(name, Schedule.from_json(json.dumps(schedule)), kind)


def stronger(entries: Sequence[Entry]) -> list[Entry]:
    """Those that are guided, more strongly; what is unguided is left out."""
    found = []
    for entry in entries:
        scales = [s.guidance_scale for s in entry.schedule.steps if is_guided(s)]
        if scales:
            mean = STRONGER * sum(scales) / len(scales)
            found.append(replace(entry, schedule=scale_guidance(entry.schedule, mean)))
    return found


def page(found: list[dict]) -> str:
    """Markdown of all columns."""
    return "\n".join([ABOUT, *(line for rows in found for line in _column(rows))])


def _column(rows: dict) -> Iterator[str]:
    tests, bases = rows["tests"], rows["bases"]
    means = {
        place: {row["name"]: row["mean"] for row in test["contenders"]}
        for place, test in tests.items()
    }
    yield from ("", f"## {rows['steps']} guided steps, {rows['passes']} passes", "")
    yield "| schedule | " + " | ".join(tests) + " | alignment, lowest |"
    yield "|---" * (len(tests) + 2) + "|"
    for name in next(iter(means.values())):
        cells = []
        for here in means.values():
            cell = with_error(*here[name]) if name in here else ""
            if name in bases and name in here:
                cell += f" ({percent(here[name][0] / here[bases[name]][0] - 1, '+.0')})"
            cells.append(cell)
        lowest = min(
            row["scores"]["alignment"]["value"]
            for test in tests.values()
            for row in test["contenders"]
            if row["name"] == name
        )
        yield f"| {name} | {' | '.join(cells)} | {percent(lowest)} |"
    first = next(iter(tests.values()))
    yield ""
    yield (
        f"n = {first['n']:,} each, seeds {first['seeds'][0]:,} to {first['seeds'][1]:,}, in "
        f"{rows['settings']['dtype']}."
    )
