"""The table of docs/models.md, made of the installed diffusers and of what this package knows.

python tests/models_page.py     # writes the page's table anew
"""

import functools
import inspect
import typing
from pathlib import Path

import diffusers
from stock_pipelines import GUIDABLE

from stepsampler.models import families
from stepsampler.models.stock.known import APART, COND_FIRST, NOT, OTHER, own_rule, why_not
from stepsampler.models.stock.modular import ModularModel
from stepsampler.scheduler import StepScheduler
from stepsearch.rehearsal.miniatures import STOCK, VIDEOS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARKS = ("<!-- table: python tests/models_page.py -->\n", "<!-- end of the table -->\n")
# Run by the tests of `guided`; those that make images by themselves are added to it
RUN = {name.split(",")[0] for name in GUIDABLE} | families().keys()


# Modular pipelines that a test runs, and the miniatures with their components
MODULAR = {
    "FluxModularPipeline": "flux-dev",
    "QwenImageModularPipeline": "qwen-image",
    "StableDiffusion3ModularPipeline": "sd3",
    "StableDiffusionXLModularPipeline": "sdxl",
    "Wan22ModularPipeline": "wan-2.2",
    "ZImageModularPipeline": "z-image",
}


def classes():
    """Pipelines from texts or classes to pictures or videos, by name."""
    for name in sorted(dir(diffusers)):
        cls = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        if not inspect.isclass(cls) or OTHER.search(name) or "deprecated" in cls.__module__:
            continue
        if "scheduler" in inspect.signature(cls.__init__).parameters:
            yield name, cls


def scheduler_of(cls):
    """Of the class that the pipeline names first, by default."""
    hint = inspect.signature(cls.__init__).parameters["scheduler"].annotation
    kinds = [k for k in (hint, *typing.get_args(hint)) if inspect.isclass(k)]
    made = [k for k in kinds if issubclass(k, diffusers.SchedulerMixin)]
    return made[0]() if made and made[0] is not diffusers.SchedulerMixin else None


def row(name, cls):
    """What samples it, and what guides it."""
    package, parts = cls.__module__.split(".")[2], inspect.signature(cls.__init__).parameters
    own = name in families()
    reason = None if own else why_not(cls)
    scheduler = None if own or reason else scheduler_of(cls)
    if scheduler is not None:
        try:
            StepScheduler.from_config(scheduler.config)
        except ValueError as error:
            reason = str(error).split(", got")[0]
    if reason:
        return "not possible", reason
    way = "our own loop" if own else "itself" if name in run() else "itself, expected"
    if name in NOT:
        return way, f"itself not: {NOT[name]}"
    if own_rule(cls):
        return way, f"one scale: {own_rule(cls)}"
    if any("guider" in part for part in parts):
        return way, "each step, by a guider"
    if package in APART:
        return way, "each step, two calls"
    first = ", conditional half first" if package in COND_FIRST else ""
    return way, f"each step, doubled batch{first}"


def modular():
    """Modular pipelines, by name, and what keeps one from running a schedule."""
    for name in sorted(dir(diffusers)):
        if name.endswith("ModularPipeline") and name != "ModularPipeline":
            yield name, ModularModel._why_not(getattr(diffusers, name)())


@functools.cache
def run():
    """Classes of which a test runs a tiny one by itself."""
    return RUN | {type(build()).__name__ for build in (STOCK | VIDEOS).values()}


def table():
    lines = ["| pipeline | sampled by | guidance |", "|---|---|---|"]
    rows = {name: row(name, cls) for name, cls in classes()}
    lines += [f"| {name} | {way} | {how} |" for name, (way, how) in rows.items()]
    ways = [way for way, _ in rows.values()]
    own, alone = ways.count("our own loop"), sum(way.startswith("itself") for way in ways)
    lines.append(
        f"\nOf {len(rows)} pipelines of diffusers {diffusers.__version__} our own loop samples "
        f"{own}; of the other {len(rows) - own} {alone} sample themselves under a schedule "
        f"({ways.count('itself')} run by a test), and {ways.count('not possible')} cannot."
    )
    found = dict(modular())
    can = [f"{name}{'*' * (name in MODULAR)}" for name, reason in found.items() if not reason]
    others = [name for name, reason in found.items() if reason]
    lines.append(
        f"\nOf {len(found)} modular pipelines {len(can)} sample themselves (* run by a test): "
        f"{', '.join(can)}. Not possible: {', '.join(others)}."
    )
    return "\n".join(lines) + "\n"


def replaced(page):
    start, end = (page.index(mark) for mark in MARKS)
    return page[: start + len(MARKS[0])] + table() + page[end:]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
