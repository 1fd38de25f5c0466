"""`stepsearch front`: the best schedules of several runs by their number of passes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stepsampler.errors import UserError, percent
from stepsampler.schedule import Schedule, load
from stepsampler.support.files import replacing, write_text
from stepsearch.compare.figures import with_error
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claimed, identity_of
from stepsearch.engine.pareto import dominated
from stepsearch.metrics.distance import Score
from stepsearch.metrics.evaluator import FRONT, Evaluator, Measurement, objective_name, seeds_of
from stepsearch.metrics.protocol import Job, held_out
from stepsearch.paths import find_runs

# Settings of a run that its test does not depend on
ELSEWHERE = ("images", "rungs", "selection_images")


@dataclass(frozen=True)
class Finished:
    """What a run has left in its folder."""

    folder: Path
    config: StudyConfig
    best: Schedule
    others: tuple[Schedule, ...]  # further ones on a front of FD and alignment
    identity: str  # of model, reference and prompts

    @classmethod
    def read(cls, path: Path) -> "Finished":
        """Read a run's folder; a study file stands for its run.

        Raises:
            UserError: no finished run is there.
        """
        folder = find_runs(path, "best.json")[0]
        others = sorted((folder / "front").glob("*.json"))
        best, *more = (_tested(file) for file in (folder / "best.json", *others))
        return cls(folder, claimed(folder), best, tuple(more), identity_of(folder))


def _tested(path: Path) -> Schedule:
    schedule = load(path)
    missing = [key for key in NEEDED if key not in schedule.provenance]
    if missing:
        raise UserError(
            f"{path}: its provenance has no {missing[0]!r}, so it is not what a run ended with; "
            "the same stepsearch run writes it again"
        )
    known = schedule.provenance
    try:
        float(known["value"]), float(known["standard_error"]), float(known.get("alignment") or 0)
        first, last = map(int, known["test_seeds"])
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its provenance is damaged: {error}") from error
    if last < first:
        raise UserError(f"{path}: its provenance is damaged: test_seeds are {first} to {last}")
    return schedule


@dataclass(frozen=True, eq=False)
class Entry:
    """A schedule of a run with its score; `exported` ones are those the runs ended with."""

    name: str
    schedule: Schedule
    exported: bool
    fd: float
    se: float
    alignment: float  # NaN where unknown
    score: Score | None = None  # if it was scored again: differences are paired then


@dataclass(frozen=True)
class Front:
    """Entries by passes and FD, with whether another one beats each."""

    title: str
    entries: list[Entry]
    beaten: list[bool]
    word: str  # what its number is called

    @classmethod
    def of(cls, title: str, entries: Sequence[Entry], alignment: bool, word: str) -> "Front":
        """An entry is beaten by one of no more passes and no higher FD; with `alignment`, only if
        that one shows no less of what was asked."""
        ordered = sorted(entries, key=lambda e: (e.schedule.passes, e.fd))
        points = [(e.schedule.passes, e.fd, -e.alignment if alignment else 0.0) for e in ordered]
        return cls(title, ordered, dominated(points), word)

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands above the cells of `rows`."""
        own = ("passes", "steps", "schedule", f"{self.word} ± se", "alignment")
        return (*own, "minus front above ± se", "place")

    def kept(self) -> list[tuple[Entry, bool]]:
        """What becomes a file: the best exported one of each number of passes, and the front."""
        seen: set[int] = set()
        found = []
        for entry, beaten in zip(self.entries, self.beaten, strict=True):
            passes = entry.schedule.passes
            if not beaten or (entry.exported and passes not in seen):
                found.append((entry, beaten))
            if entry.exported:
                seen.add(passes)
        return found

    def rows(self) -> list[tuple[str, ...]]:
        """Passes, steps, name, FD, alignment, the paired difference to the front, and the mark."""
        found: list[tuple[str, ...]] = []
        before: Entry | None = None
        for entry, beaten in zip(self.entries, self.beaten, strict=True):
            difference = ""
            if before and before.score and entry.score:
                value, se = entry.score.minus(before.score)
                difference = f"{value:+.3g} ± {se:.2g}"
            found.append(
                (
                    str(entry.schedule.passes),
                    str(entry.schedule.num_steps),
                    entry.name,
                    with_error(entry.fd, entry.se),
                    percent(entry.alignment) if isfinite(entry.alignment) else "",
                    difference,
                    "dominated" if beaten else "front",
                )
            )
            before = before if beaten else entry
        return found


NEEDED = ("metric", "value", "standard_error", "test_seeds")  # of a run's schedules


def make_front(
    paths: Sequence[Path], cache: Path, images: int | None, device: str, console: Console
) -> tuple[Front, list[Finished], list[str]]:
    """Join finished runs; also the runs, and a sentence for each that is left out: a run that
    cannot be read, or a schedule whose images are not finite.

    With `images` everything is scored again on that many fresh seeds, under the settings of the
    first run, and kept in `cache`.

    Raises:
        UserError: no finished run that can be read, or scores that do not compare.
    """
    runs, left_out = [], list[str]()
    for path in paths:
        try:
            runs.append(Finished.read(path))
        except UserError as error:
            left_out.append(str(error))
    if not runs:
        raise UserError(left_out[0])
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UserError("a run is given twice")
    check_comparable(runs, images is not None)
    entries = entries_of(runs)
    if images is None:
        title = f"{runs[0].best.provenance['metric']}, seeds of the runs' tests"
    else:
        with Progress(console=console, transient=True) as progress:
            title, entries = score_again(runs, entries, images, cache, device, progress, left_out)
    both, word = any(run.config.search.both for run in runs), runs[0].config.evaluation.word
    return Front.of(title, entries, both, word), runs, left_out


def table(front: Front) -> Table:
    """A line for each schedule, those that are dominated dimmed."""
    view = Table(title=front.title)
    for name in front.columns:
        side: Literal["left", "right"] = "left" if name in ("schedule", "place") else "right"
        view.add_column(name, justify=side, overflow="fold")
    for row, beaten in zip(front.rows(), front.beaten, strict=True):
        view.add_row(*row, style="dim" if beaten else None)
    return view


def check_comparable(runs: Sequence[Finished], again: bool) -> None:
    """Refuse runs whose scores, or with `again` whose schedules, do not compare.

    Raises:
        UserError: names the first thing in which a run differs from the first one.
    """
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (_settings(r, again) for r in (first, run))
        for key, value in ours.items():
            if theirs[key] == value:
                continue
            hint = "" if key.startswith("model.") else "; --images N scores all of them again"
            raise UserError(
                f"{run.folder}: its scores do not compare with those of {first.folder}: {key} is "
                f"{theirs[key]!r} there and {value!r} here{hint}"
            )


def _settings(run: Finished, again: bool) -> dict[str, object]:
    model = asdict(replace(run.config.model, kind=None))  # for `stepsearch check` alone
    settings: dict[str, object] = {f"model.{k}": v for k, v in model.items()}
    if not again:
        evaluation = run.config.evaluation.model_dump()
        # last, as it hardly changes an image, and a quick run has another n as well
        evaluation["batch_size"] = evaluation.pop("batch_size")
        settings |= {f"evaluation.{k}": v for k, v in evaluation.items() if k not in ELSEWHERE}
        settings |= {k: run.best.provenance.get(k) for k in ("metric", "test_seeds")}
        settings["the digest of model, reference and prompts"] = run.identity
    return settings


def entries_of(runs: Sequence[Finished]) -> list[Entry]:
    """The runs' schedules with the scores of their own tests; the same schedule once."""
    found: dict[str, Entry] = {}
    for run in runs:
        for schedule in (run.best, *run.others):
            known = schedule.provenance
            alignment = known.get("alignment")
            entry = Entry(
                f"{run.folder.name}: {known.get('source', '')}",
                schedule,
                schedule is run.best,
                float(known["value"]),
                float(known["standard_error"]),
                nan if alignment is None else float(alignment),
            )
            found.setdefault(replace(schedule, provenance={}).to_json(), entry)
    return list(found.values())


def score_again(
    runs: Sequence[Finished],
    entries: Sequence[Entry],
    images: int,
    cache: Path,
    device: str,
    progress: Progress,
    left_out: list[str],
) -> tuple[str, list[Entry]]:
    """Score on seeds that no run has seen, under the settings of the first run.

    `left_out` receives a sentence for each of those whose images are not finite.

    Raises:
        UserError: that is all of them.
    """
    config = runs[0].config
    task = progress.add_task("measuring", total=None)
    evaluator = Evaluator(config, cache, device)

    def measure(jobs: Sequence[Job[Entry]]) -> "Iterator[tuple[int, Measurement]]":
        for place, (entry, seeds) in enumerate(jobs):
            yield place, evaluator.measure(entry.schedule, seeds)

    rows = held_out(
        entries,
        images,
        config.evaluation.batch,
        evaluator.reference,
        measure,
        lambda done, total: progress.update(task, completed=done, total=total),
        lambda entry: left_out.append(f"{entry.name}: its images are not finite"),
        FRONT,
    )
    if not rows:
        raise UserError("the images of all schedules are not finite")
    metric = objective_name(config.evaluation, evaluator.reference, images)
    seeds = seeds_of(FRONT, images)
    scored = []
    for row in rows:
        known = {
            "metric": metric,
            "value": row.score.value,
            "standard_error": row.score.se,
            "alignment": row.measurement.alignment if evaluator.judge else None,
            "test_seeds": [seeds.start, seeds.stop - 1],
        }
        schedule = row.candidate.schedule
        scored.append(
            replace(
                row.candidate,
                schedule=replace(schedule, provenance={**schedule.provenance, **known}),
                fd=row.score.value,
                se=row.score.se,
                alignment=row.measurement.alignment,
                score=row.score,
            )
        )
    return f"{metric}, seeds {seeds.start} to {seeds.stop - 1}, which no run has seen", scored


def write(front: Front, out: Path) -> list[tuple[Path, str]]:
    """Write chart, table and schedule files; return what was written, with a word on each."""
    draw(front, out / "front.png")
    lines = [front.title, ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (front.columns, ["---"] * len(front.columns))]
    lines += [f"| {' | '.join(row)} |" for row in front.rows()]
    write_text(out / "front.md", "\n".join(lines) + "\n")
    written = [(out / "front.png", "the chart"), (out / "front.md", "the table")]
    for old in out.glob("*.json"):
        if re.fullmatch(r"\d+-passes(-\d+)?", old.stem):
            old.unlink()  # of an earlier call
    for entry, beaten in front.kept():
        count = sum(path.stem.startswith(f"{entry.schedule.passes}-") for path, _ in written)
        name = f"{entry.schedule.passes}-passes{f'-{count + 1}' if count else ''}.json"
        entry.schedule.save(out / name)
        written.append((out / name, entry.name + (", dominated" if beaten else "")))
    return written


def draw(front: Front, path: Path) -> None:
    """A chart of distance against passes; and against alignment, where there is any."""
    from matplotlib.figure import Figure

    aligned = any(isfinite(e.alignment) for e in front.entries)
    figure = Figure(figsize=(10 if aligned else 5.5, 4), layout="constrained")
    left, *right = figure.subplots(1, 2 if aligned else 1, squeeze=False, sharey=True)[0]
    best = [e for e, beaten in zip(front.entries, front.beaten, strict=True) if not beaten]
    lowest = {e.schedule.passes: e.fd for e in reversed(best)}
    left.plot(list(lowest), list(lowest.values()), color="tab:blue", drawstyle="steps-post")
    for entry, beaten in zip(front.entries, front.beaten, strict=True):
        color = "tab:gray" if beaten else "tab:blue"
        look = {"color": color, "marker": "o", "markerfacecolor": "none" if beaten else color}
        left.errorbar([entry.schedule.passes], [entry.fd], [entry.se], capsize=3, **look)
        for axes in right:
            axes.errorbar([100 * entry.alignment], [entry.fd], [entry.se], capsize=3, **look)
            text = f"{entry.schedule.passes}"
            axes.annotate(text, (100 * entry.alignment, entry.fd), (4, 4), **_OFFSET)
    left.set(xlabel="passes per image", ylabel=f"{front.word} ± standard error", xticks=sorted(
        {e.schedule.passes for e in front.entries}))  # fmt: skip
    for axes in right:
        axes.set(xlabel="alignment, %; the number is that of the passes")
    figure.suptitle(front.title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


_OFFSET = {"textcoords": "offset points", "fontsize": 8}
