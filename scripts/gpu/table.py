"""The rows, their time, and the table that comes of them."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from typing import Any

from gpu import card, speed, trust
from gpu.bench import Bench, Found, OutOfTimeError, SkippedError
from gpu.speed import named

TOTAL = 480.0  # seconds of all rows on one card
PAGE = """# On a GPU

`scripts/gpu_check` runs everything that needs a GPU in at most eight minutes on one card, and
`scripts/gpu_check --write-table` writes this page. `scripts/gpu_check --dry` runs the same code
with tiny models on a CPU.

"""
NONE = "No GPU has been measured yet: what stepsearch does on CUDA is not shown.\n"


@dataclass(frozen=True)
class Row:
    what: str
    wanted: str
    seconds: float
    run: Callable[[Bench], Found]
    timed: bool = True  # what a dry run says nothing about


@dataclass(frozen=True)
class Result:
    name: str
    what: str
    measured: str
    wanted: str
    verdict: str  # PASS, MISS, skip, failed, or ran: in a dry run, what is timed
    value: float | None
    seconds: float


def _of(name: str, what: str, wanted: str, seconds: float, run: Any, timed: bool = True) -> Row:
    return Row(f"{what}: {named(name)}", wanted, seconds, partial(run, name=name), timed)


FAST = "a worker's passes over the bare calls'"
STOCK = "our loop over the stock pipeline, seconds"
# The most important first: where time runs out, it does so for the last ones
ROWS = {
    "same": Row(
        "images against the CPU's, bundled model, float32",
        f"at most {trust.APART} of 255 apart",
        20,
        trust.same,
        timed=False,
    ),
    "worker-sd15": _of("sd15", FAST, ">= 0.95", 45, speed.worker),
    "loop-sd15": _of("sd15", STOCK, "<= 1.00", 20, speed.loop),
    "unguided": _of("sd15", "half of the steps unguided", ">= 1.25 x", 10, speed.unguided),
    "worker-sdxl": _of("sdxl", FAST, ">= 0.95", 65, speed.worker),
    "loop-sdxl": _of("sdxl", STOCK, "<= 1.00", 35, speed.loop),
    "oom": _of("sd15", "a batch beyond memory", "halved, once", 20, trust.out_of_memory, False),
    "memory-sd15": _of("sd15", "peak memory over the stock one", "<= 1.05", 10, trust.memory),
    "memory-sdxl": _of("sdxl", "peak memory over the stock one", "<= 1.05", 15, trust.memory),
    "auto": _of("sd15", 'batch_size = "auto"', ">= 1 x one at a time", 25, trust.auto),
    "ahead": _of("sd15", "batches made ahead", ">= 1.00 x", 20, speed.ahead),
    "workers": _of(
        "sd15", "two workers on one card", "the same features", 65, trust.workers, False
    ),
    "compile": _of(
        "sd15", "compiled", "no graph after the first trial", 130, trust.compiled, False
    ),
}


def run_rows(bench: Bench, names: list[str], tell: Callable[[Result], object]) -> list[Result]:
    """All of these rows, whatever becomes of each; `tell` hears of each as it ends."""
    began, results = time.monotonic(), []
    for name in names:
        left = TOTAL if bench.dry else began + TOTAL - time.monotonic()
        results.append(result_of(bench, name, left))
        tell(results[-1])
        card.free(bench.device)
    return results


def result_of(bench: Bench, name: str, left: float) -> Result:
    row, began = ROWS[name], time.monotonic()

    def result(measured: str, verdict: str, value: float | None = None) -> Result:
        took = time.monotonic() - began
        return Result(name, row.what, measured, row.wanted, verdict, value, round(took, 1))

    if left < row.seconds / 2:
        return result(f"only {left:.0f} s of {TOTAL:.0f} s are left", "skip")
    limit = min(row.seconds, left) if not bench.dry else left
    bench.until = began + limit
    try:
        with within(limit):
            found = row.run(bench)
    except SkippedError as error:
        return result(str(error), "skip")
    except OutOfTimeError:
        return result(f"took more than its {limit:.0f} s", "failed")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:200]
        where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
        return result(f"{type(error).__name__} in {where}: {said}", "failed")
    if bench.dry and row.timed:
        return result(found.measured, "ran", found.value)
    return result(found.measured, "MISS" if found.held is False else "PASS", found.value)


@contextmanager
def within(limit: float) -> Iterator[None]:
    """Raise after so many seconds, in the main thread, whatever it does in Python."""

    def ring(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def line_of(result: Result) -> str:
    return f"{result.verdict:<6} {result.what} [{result.name}, {result.seconds:.0f} s]\n" + (
        f"       {result.measured}; wanted {result.wanted}"
    )


def as_data(bench: Bench, results: list[Result]) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "dry": bench.dry,
        "device": card.described(bench.device),
        "rows": [asdict(result) for result in results],
    }


def page_of(data: dict[str, Any] | None) -> str:
    """docs/gpu.md; without a measurement it says that there is none."""
    if data is None:
        return PAGE + NONE
    known = dict(data["device"])
    name = known.pop("card")
    versions = ", ".join(f"{library} {number}" for library, number in known.items())
    lines = [f"Measured on {data['date']}: {name}; {versions}.", ""]
    lines += ["| what | measured | wanted | |", "|---|---|---|---|"]
    for row in data["rows"]:
        cells = (row[key].replace("|", "/") for key in ("what", "measured", "wanted", "verdict"))
        lines.append(f"| {' | '.join(cells)} |")
    return PAGE + "\n".join(lines) + "\n"
