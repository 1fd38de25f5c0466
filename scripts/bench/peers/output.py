"""What `bench_peers.py` writes: every number, and tables in markdown."""

import json
from itertools import chain
from pathlib import Path

import numpy as np

from peers.plots import draw
from peers.studies import OURS, UNGUIDED
from peers.targets import DROP, RULE, by_what_they_saw, losses, metrics, minus, races, targets
from stepsampler.errors import UserError, percent
from stepsearch.paths import write_whole

VERDICTS = {True: "met", False: "missed", None: "rivals not screened"}
# Settings in which one number of steps may differ from the others.
OF_STEPS = ("algorithm", "trials", "seeds", "also", "test", "dtype", "compile", "times")


def write(found: dict, path: Path) -> None:
    """path.json, path.md and path.png of what is there so far."""
    parts = sorted(found["steps"], key=lambda r: (r["steps"], r.get("search_seed", 0)))
    for rows in parts:
        if "screening" in rows:
            every = rows["contenders"]
            own = by_what_they_saw(every, next(iter(rows["screening"])))
            rows["targets"] = {
                m: {
                    saw: targets(every, row, m, saw in rows["screening"])
                    for saw, row in own.items()
                }
                for m in metrics(rows)
            }
            rows["races"] = {m: races(rows["contenders"], m) for m in metrics(rows)}
        if "tests" in rows:
            rows["losses"] = losses(rows["tests"])
    text = json.dumps(found, indent=1)
    write_whole(path.with_suffix(".json"), lambda p: p.write_text(text + "\n"))
    lines = [
        "# Rivals and our search at equal passes",
        "",
        f"Made by `scripts/bench/bench_peers.py` on the model {found['settings']['model']}. Rows "
        "of the tests are on fresh seeds; differences are paired. Intervals (95 %) and standard "
        "errors are those of the test's images alone: another search seed would find another "
        "schedule. Ours sees the first of the two extractors only, unless its row names another "
        "one; what a rival is at its best was chosen on selection seeds, as ours was, under the "
        "extractors whose screening is listed.",
    ]
    if any("screening" in rows for rows in parts):
        known = found["settings"]
        ladder = known["ladder"].strip("[]")
        fewer = f"; it ends after {ladder} if it is not among the best" if ladder else ""
        lines += [
            "",
            f"Our box: placement, guidance per step, {' or '.join(OURS['solvers'])}, one order for "
            "all steps, up to two more steps of which fewer are guided, the final sigma. A trial "
            f"has {known['images']} images{fewer}.",
        ]
    every = [row for rows in parts for row in rows.get("contenders", ())]
    searching = dict.fromkeys(row["name"] for row in every if row["kind"] == "search")
    if searching and not any(UNGUIDED in name for name in searching):
        lines += [
            "",
            f"{', '.join(searching)}: guided steps only, not twice as many unguided ones; solver, "
            "form and corrector are the same in all steps of a schedule.",
        ]
    if len({rows["settings"]["dtype"] for rows in parts}) > 1:
        lines += ["", "Values of different dtypes do not compare; each number of steps has one."]
    lines += _targets(parts)
    for rows in parts:
        if "tests" in rows:
            lines += _transfer(rows)
            continue
        title = f"{rows['steps']} guided steps, {rows['passes']} passes, n = {rows['n']:,}"
        if "search_seed" in rows:
            title += f", search seed {rows['search_seed']}"
        known = rows["settings"]
        how = f"Ours: {known['algorithm']}, {known['trials']} trials. Tests in {known['dtype']}."
        before = known.get("found_in", known["dtype"])
        if before != known["dtype"]:
            how += (
                f" Ours and what was screened under {next(iter(rows['screening']))} were chosen in "
                f"{before}."
            )
        lines += ["", f"## {title}", "", how, "", *_test(rows)]
        for extractor, screened in rows.get("screening", {}).items():
            lines += ["", *_screening(extractor, screened)]
    lines += _over_seeds(parts)
    table = "\n".join(lines) + "\n"
    write_whole(path.with_suffix(".md"), lambda p: p.write_text(table))
    draw(parts, path.with_suffix(".png"))


def earlier(path: Path, settings: dict[str, str]) -> dict:
    """What the file has, so that a part of the steps keeps the others.

    Raises:
        UserError: it was made with other settings.
    """
    free = ("steps", "searching", "ablation_steps", "processes", "device", *OF_STEPS)
    places = ("run", "docs", "hours", "dry_run", "add")  # of a call, not of what it measures
    settings = {k: v for k, v in settings.items() if k not in places}
    if path.exists():
        found = json.loads(path.read_text())
        theirs, ours = (
            {k: v for k, v in some.items() if k not in free}
            for some in (found["settings"], settings)
        )
        for name in theirs | ours:
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{path} was made with --{name.replace('_', '-')} {theirs.get(name)}, not "
                    f"{ours.get(name)}, and would be lost; --docs says where else to write"
                )
        return {**found, "settings": settings}
    return {"settings": settings, "steps": []}


def tested_rows(path: Path, now: dict, kinds: tuple[str, ...]) -> dict[str, dict]:
    """Rows of the file by identity, of some kinds or of all; they need not be tested again.

    `now` has the identity of a test; those of others do not count.
    """
    if not path.exists():
        return {}
    tests = json.loads(path.read_text())["steps"]
    same = [test for test in tests if all(test[k] == now[k] for k in ("n", "seeds", "metrics"))]
    rows = [row for test in same for row in test["contenders"]]
    return {row["identity"]: row for row in rows if not kinds or row["kind"] in kinds}


def replace_steps(found: dict, rows: dict) -> None:
    """Put the rows in the place of those of as many steps, with the settings they were made by."""
    rows = {"settings": {k: found["settings"][k] for k in OF_STEPS}, **rows}
    for row in chain(*rows.get("screening", {}).values()):
        row.pop("schedule", None)
    key = ("steps", "search_seed")
    others = [r for r in found["steps"] if any(r.get(k) != rows.get(k) for k in key)]
    found["steps"] = [*others, rows]


def _pair(value: list[float] | None, form: str = "+.2f") -> str:
    if value is None:
        return ""
    return f"{value[0]:{form}} ± {value[1]:{form.lstrip('+')}}".replace("%", " %")


def _targets(parts: list[dict]) -> list[str]:
    """Tables of the gaps, and of the searching rivals, for each extractor."""
    parts = [rows for rows in parts if "targets" in rows]
    lines: list[str] = []
    for metric in metrics(parts[0]) if parts else ():
        lines += ["", f"## Gaps to the teacher, {metric}", ""]
        lines += [
            "| steps | our search saw | best rival (on the test seeds) | gap ± se | more than 4 se "
            "| closed | best without a search | closed | ours minus best rival "
            "| best rival with alignment | ours minus it "
            "| ours minus fewer long steps | ours over the teacher | target |",
            "|---" * 14 + "|",
        ]
        made = [(rows, *item) for rows in parts for item in rows["targets"][metric].items()]
        for rows, saw, found in made:
            if found:
                cells = [
                    str(rows["steps"]),
                    saw,
                    found["rival"],
                    _pair(found["gap"]),
                    "yes" if found["applies"] else "no",
                    _pair(found["closed"], ".0%") if found["applies"] else "",
                    found["without_search"],
                    _pair(found["closed_without_search"], ".0%") if found["applies"] else "",
                    _pair(found["minus_rival"]),
                    found["aligned"] or "none",
                    _pair(found["minus_aligned"]),
                    _pair(found["minus_shorter"]),
                    _pair(found["over_teacher"], "+.1%"),
                    VERDICTS[found["met"]],
                ]
                lines.append("| " + " | ".join(cells) + " |")
        teachers = {(found["teacher"], found["shorter"]) for _, _, found in made if found}
        for teacher, shorter in sorted(teachers):
            lines += ["", f"Teacher: {teacher}; fewer long steps: {shorter}."]
        lines += [
            "",
            "The target is a share of 30 % of a gap above 4 standard errors (50 % of that of the "
            "best without a search), else to be worse by no more than one standard error.",
            "",
            f"With alignment: no more than {percent(DROP, '.0')} below the teacher's, which is "
            "what ours has to keep on its selection seeds (up to a standard error if need be), and "
            "what no rival was asked to.",
        ]
        races = [(rows["steps"], race) for rows in parts for race in rows["races"][metric]]
        if races:
            lines += ["", "| steps | ours | rival | our passes / its | ours minus it |"]
            lines.append("|---" * 5 + "|")
        for steps, race in races:
            share = f"{race['share']:.2f}"
            cells = [str(steps), race["ours"], race["rival"], share, _pair(race["difference"])]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _transfer(rows: dict) -> list[str]:
    """Ours against the best rival where nothing was chosen."""
    lines = ["", f"## {rows['steps']} guided steps, {rows['passes']} passes", ""]
    lines += ["| test | metric | best rival there | ours minus it | gap closed | advantage left |"]
    lines.append("|---" * 6 + "|")
    for row in rows["losses"]:
        cells = [row["test"], row["metric"], row["rival"], _pair(row["difference"])]
        kept = row["kept"]
        cells += [_pair(row["closed"], ".0%"), "" if kept is None else percent(kept, ".0")]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Gap: to the row of the most steps, where it is above {RULE} standard errors."]
    for name, test in rows["tests"].items():
        lines += ["", f"### {name}, n = {test['n']:,}", "", *_test(test)]
    return lines


def _over_seeds(parts: list[dict]) -> list[str]:
    """Of an ablation with several search seeds: means, and errors that cover the search."""
    lines: list[str] = []
    parts = [rows for rows in parts if "search_seed" in rows]
    for steps in dict.fromkeys(rows["steps"] for rows in parts):
        mine = [rows for rows in parts if rows["steps"] == steps]
        if len(mine) < 2:
            continue
        for metric in metrics(mine[0]):
            values = np.array(
                [[row["scores"][metric]["value"] for row in rows["contenders"]] for rows in mine]
            )
            lines += [
                "",
                f"## {steps} steps, mean ± se over {len(mine)} search seeds, {metric}",
                "",
            ]
            lines += ["| row | FD | minus the first | minus the row above |", "|---" * 4 + "|"]
            for k, row in enumerate(mine[0]["contenders"]):
                name = row["name"].partition(" (")[0]
                cells = [name, _mean(values[:, k], ".2f")]
                cells += [_mean(values[:, k] - values[:, i]) if k else "" for i in (0, k - 1)]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _mean(values: np.ndarray, form: str = "+.2f") -> str:
    return _pair([values.mean(), values.std(ddof=1) / np.sqrt(len(values))], form)


def _test(rows: dict) -> list[str]:
    """The rows of a test; in an ablation each is compared with the one above as well."""
    names, axes = metrics(rows), rows["contenders"][0]["kind"] == "axis"
    paired = {(d["contender"], d["metric"]): d["interval_95"] for d in rows["differences"]}
    each = ["minus the first, 95 %", "minus the row above ± se"][: 1 + axes]
    heads = [x for name in names for x in (name, *each)]
    lines = [
        "| schedule | steps | passes | "
        + " | ".join(heads)
        + " | alignment | search: passes | minutes |",
        "|---|" + "---|" * (len(heads) + 5),
    ]
    above = None
    for row in rows["contenders"]:
        cells = [row["name"], str(row["steps"]), f"{row['passes']:g}"]
        for metric in names:
            score = row["scores"][metric]
            error = score["standard_error"]
            cells.append(f"{score['value']:.2f}" + (f" ± {error:.2f}" if error else ""))
            interval = paired.get((row["name"], metric))
            cells.append("" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}")
            if axes:
                cells.append(_pair(list(minus(row, above, metric))) if above else "")
        above = row
        cells.append(percent(row["scores"]["alignment"]["value"]))
        spent = row["search_passes"]
        cells.append(f"{spent:,}" if spent else "")
        cells.append(f"{row['minutes']:.0f}" if row["minutes"] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _screening(extractor: str, rows: list[dict]) -> list[str]:
    """The chosen form of each placement, guided and not, and its FD-infinity on search seeds."""
    places = dict.fromkeys(row["placement"] for row in rows)
    first = min(row["n"] for row in rows)
    lines = [f"Screening under {extractor}, FD-infinity from n = {rows[0]['n']}:", ""]
    if first < rows[0]["n"]:
        lines = [f"{lines[0][:-1]}; in brackets FD at n = {first} where that was too high:", ""]
    lines += ["| guided | FD-infinity | unguided | FD-infinity |", "|---|---|---|---|"]
    for place in places:
        cells = []
        for guided in (True, False):
            row = next((r for r in rows if (r["placement"], r["guided"]) == (place, guided)), None)
            cells += [row["name"], _screened(row)] if row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _screened(row: dict) -> str:
    value = row["fd_infinity"]
    return f"({row['fd']:.1f})" if value is None else f"{value:.2f}"
