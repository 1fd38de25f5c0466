"""Studies, schedules, captions and `.npz` that nobody meant to write: each is read or refused.

    python scripts/fuzz.py                       # 100,000 inputs, of each kind a quarter
    python scripts/fuzz.py --only npz --inputs 1000 --seed 7

An input is a valid one with a few changes of its values or bytes (`tests/mutations.py`); hypothesis
draws them, and looks for the smallest one that fails. Whatever is no UserError of one short
sentence is a fault: the input is saved, and the exit code is 1. A schedule that is read is shown,
written, and translated for every other tool; the box of a study is tried out.
"""

import argparse
import functools
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from mutations import INPUTS

from stepsampler import Schedule, load
from stepsampler.cli.display import describe, differences
from stepsampler.errors import UserError
from stepsampler.formats import FORMATS, export
from stepsampler.formats.stock import READ as SCHEDULERS
from stepsampler.models import load as load_model
from stepsampler.solvers import tableau
from stepsampler.statistics.file import read_statistics
from stepsampler.support.captions import read_set
from stepsearch.config import load_config
from stepsearch.engine.stages.costs import costs
from stepsearch.metrics.interchange import read_npz
from stepsearch.space import check as boxes

LONGEST = 1000  # characters of a message
PART = 500  # inputs of one call of hypothesis, which keeps all that it tried
TARGETS = (*(n for n in FORMATS if n != "diffusers"), *(f"diffusers:{n}" for n in SCHEDULERS))
Input = tuple[str, bytes]  # the name of a file, and what is in it


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=INPUTS, help="one kind")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder of faults")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of numbers beyond all floats
    boxes.PROBES = 5  # points of each of thousands of boxes
    kinds = [args.only] if args.only else list(INPUTS)
    faults = 0
    for place, kind in enumerate(kinds):
        inputs = args.inputs * (place + 1) // len(kinds) - args.inputs * place // len(kinds)
        faults += not hunt(kind, inputs, args.seed, args.keep)
    return int(faults > 0)


def hunt(kind: str, inputs: int, first: int, keep: Path) -> bool:
    """Try so many inputs of a kind; whether none was a fault."""
    began, tried, read = time.perf_counter(), 0, 0
    last: Input = ("", b"")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def attempt(draw: random.Random) -> None:
            nonlocal tried, read, last
            last = as_file(INPUTS[kind](draw), kind)
            tried += 1
            read += judged(kind, last, folder)

        part = 0
        while tried < inputs:
            number = first + 1_000_003 * part
            wanted = min(PART, inputs - tried)
            try:
                looking(attempt, number, wanted)()
            except Exception:
                keep.mkdir(parents=True, exist_ok=True)
                path = keep / f"{kind}-{number}-{last[0]}"
                path.write_bytes(last[1])
                traceback.print_exc(limit=-3, chain=False)
                print(f"{kind}: a fault with --seed {number}: {path}", file=sys.stderr)
                return False
            part += 1
            if tried >= inputs or part % 10 == 0:
                took = time.perf_counter() - began
                print(f"{kind}: {tried:,} inputs, {read:,} were read, {took:.0f} s", flush=True)
    return True


def looking(attempt: Callable[[random.Random], None], number: int, inputs: int) -> Any:
    """`attempt` under hypothesis, which draws what a `Random` is asked for."""
    options = settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    return seed(number)(options(given(st.randoms(use_true_random=False))(attempt)))


def as_file(made: Any, kind: str) -> Input:
    if kind == "captions":
        return made
    if kind == "schedule":
        return "a.json", made.encode(errors="surrogatepass")
    return {"study": "a.toml", "npz": "a.npz"}[kind], made


def judged(kind: str, given: Input, folder: Path) -> bool:
    """Whether an input could be read.

    Raises:
        Exception: it was not refused as a mistake that a user can mend.
    """
    path = folder / given[0]
    path.write_bytes(given[1])
    try:
        READ[kind](path)
    except UserError as error:
        check_sentence(error)
        return False
    finally:
        path.unlink()
    return True


def check_sentence(error: UserError) -> None:
    text = str(error)
    assert 0 < len(text) <= LONGEST, f"no sentence: {text[:200]!r}"
    assert "\n" not in text, f"several lines: {text[:200]!r}"
    text.encode()  # can be printed


def refusable(do: Callable[..., Any], *given: Any, **named: Any) -> None:
    """What follows on reading may refuse, too."""
    try:
        do(*given, **named)
    except UserError as error:
        check_sentence(error)


def read_study(path: Path) -> None:
    config = load_config(path)
    costs(config).lines(1.0)
    tried_out(config.space)


@functools.cache
def model() -> Any:
    return load_model("tiny")


@functools.lru_cache(4096)
def tried_out(space: Any) -> None:
    refusable(boxes.check_box, space, model())


def read_schedule(path: Path) -> None:
    plan = load(path)
    assert Schedule.from_json(plan.to_json()) == plan
    assert plan.passes >= 0
    differences(plan, plan)
    refusable(describe, plan)
    refusable(tableau, plan)
    refusable(model().check, plan)
    for tool in TARGETS:
        refusable(export, plan, tool, lossy=True)


def read_captions(path: Path) -> None:
    for sentence in read_set(path).said:
        sentence.encode()


def read_arrays(path: Path) -> None:
    authors = path.parent / "2_4_20"  # scale, intervals and samples, as they name it
    authors.mkdir(exist_ok=True)
    for name in ("l.npz", "sb.npz"):
        (authors / name).write_bytes(path.read_bytes())
    refusable(read_statistics, str(authors), model().noise, (4,))
    read_npz(path)


READ = {
    "study": read_study,
    "schedule": read_schedule,
    "captions": read_captions,
    "npz": read_arrays,
}

if __name__ == "__main__":
    raise SystemExit(main())
