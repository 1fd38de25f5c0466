"""The main job: baselines, teacher, search, selection, test. Every stage resumes from its cache."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import optuna

from stepsampler.grids import GRIDS, from_sigmas
from stepsearch.baselines import Candidate, Kind, baselines, long_baselines, teacher
from stepsearch.config import StudyConfig
from stepsearch.distance import Moments, Score, frechet_distance, score
from stepsearch.evaluate import SEARCH, SELECTION, TEST, Measurement, seeds_of
from stepsearch.space import Params, SearchSpace
from stepsearch.study import (
    claim_folder,
    enqueue,
    finished,
    open_study,
    reap,
    save_plan,
    schedule_of,
)
from stepsearch.tracking import Tracker
from stepsearch.workers import Subject, Workers

PART = 100  # images a job
POINT = 0.01  # alignment may fall one percentage point below the teacher's
Report = Callable[[str, int, int, str], None]  # (stage, done, total, news)


@dataclass(frozen=True)
class Row:
    """One line of a table: a contender with its measurement at one n on one range of seeds."""

    candidate: Candidate
    measurement: Measurement
    score: Score


@dataclass(frozen=True)
class Result:
    """What a run ends with. `found` is None if no trial reached the teacher's alignment."""

    subject: Subject
    teacher: Row  # on the search seeds
    screened: list[tuple[Candidate, int, float]]  # every baseline, the n it reached, its FD there
    selection: list[Row]
    test: list[Row]  # the found schedule first, if there is one, then baselines, long rows, teacher
    winner: Row  # of the selection: what is exported
    trials: int
    search_passes: int

    @property
    def found(self) -> Row | None:
        return next(iter(self.of_kind("found")), None)

    def of_kind(self, kind: Kind) -> list[Row]:
        """Rows of the test."""
        return [row for row in self.test if row.candidate.kind == kind]

    @property
    def beaten(self) -> bool:
        """Whether the found schedule beats every tested baseline by two standard errors."""
        found = self.found
        if found is None:
            return False
        pairs = [row.score.minus(found.score) for row in self.of_kind("baseline")]
        return all(difference > 2 * se for difference, se in pairs)

    @property
    def gap_closed(self) -> float | None:
        """Share of the distance from the best baseline to the teacher that is gone."""
        teachers = self.of_kind("teacher")
        if self.found is None or not teachers:
            return None
        best = min(row.score.value for row in self.of_kind("baseline"))
        return (best - self.found.score.value) / (best - teachers[0].score.value)


def run(
    config: StudyConfig,
    folder: Path,
    workers: Workers,
    tracker: Tracker,
    report: Report,
) -> Result:
    """Run a study, or resume it.

    Raises:
        UserError: something is missing or does not fit, or five trials in a row failed.
    """
    claim_folder(folder, config)
    report("loading", 0, 1, "")
    subject = workers.describe()
    tracker.start(config, folder)
    candidates = baselines(config, subject.noise, subject.spec)
    best, screened = screen(config, workers, subject, candidates, report)
    floor, teacher_row = measure_teacher(config, workers, subject, report)
    space = make_space(config, subject, best)
    study = open_study(folder, config)
    search(config, folder, workers, subject, space, study, best, floor, tracker, report)
    selection = select(config, workers, subject, study, best, floor, report)
    test, winner = final_test(config, workers, subject, selection, report)
    spent = sum(t.user_attrs["passes"] * config.evaluation.images for t in finished(study)) + sum(
        c.schedule.passes * n for c, n, _ in screened
    )
    return Result(
        subject, teacher_row, screened, selection, test, winner, len(finished(study)), spent
    )


def screen(
    config: StudyConfig,
    workers: Workers,
    subject: Subject,
    candidates: list[Candidate],
    report: Report,
) -> tuple[list[Candidate], list[tuple[Candidate, int, float]]]:
    """Successive halving of the baselines on the search seeds; equal n within a rung.

    Return the survivors of the last rung, best first, and every baseline with its last score.
    """
    alive = list(candidates)
    features: dict[str, np.ndarray] = {}
    last: dict[str, tuple[Candidate, int, float]] = {}
    before = 0
    for rung, n in enumerate(config.baselines.rungs):
        if rung:
            alive = alive[: max(config.baselines.test, ceil(len(alive) * config.baselines.keep))]
        jobs = [(c.schedule, range(SEARCH + before, SEARCH + n)) for c in alive]
        stage = f"baselines, {n} images"
        for done, (place, found) in enumerate(workers.measure(jobs)):
            name = alive[place].name
            rows = [features[name], found.features] if rung else [found.features]
            features[name] = np.concatenate(rows)
            report(stage, done + 1, len(jobs), "")
        for c in alive:
            last[c.name] = (c, n, frechet_distance(features[c.name], subject.reference.search))
        alive.sort(key=lambda c: last[c.name][2])
        report(stage, len(jobs), len(jobs), f"best: {alive[0].name}: {last[alive[0].name][2]:.3f}")
        before = n
    return alive, list(last.values())


def measure_teacher(
    config: StudyConfig, workers: Workers, subject: Subject, report: Report
) -> tuple[float, Row]:
    """The lowest alignment allowed during the search, and the teacher's row on its seeds.

    A share of n images has a standard error; one of it is granted, since the test decides.
    """
    candidate = teacher(config, subject.noise, subject.spec)
    seeds = seeds_of(SEARCH, config.teacher.images)
    (row,) = score_rows(workers, subject.reference.search, [candidate], seeds, "teacher", report)
    share = row.measurement.alignment
    report("teacher", 1, 1, f"alignment {share:.1%} (n {config.teacher.images})")
    return share - POINT - float(np.sqrt(share * (1 - share) / config.evaluation.images)), row


def make_space(config: StudyConfig, subject: Subject, best: list[Candidate]) -> SearchSpace:
    grid = config.space.baseline if config.space.baseline != "best" else best[0].grid
    sigmas = GRIDS[grid](config.space.num_steps, subject.noise)
    return SearchSpace(config.space, subject.noise, subject.spec, tuple(sigmas))


def first_points(
    config: StudyConfig, subject: Subject, space: SearchSpace, best: list[Candidate]
) -> list[tuple[Params, str]]:
    """The best baselines as points of the box, or the nearest points to them.

    Those of another number of steps are resampled from their grid; their guidance is kept.
    """
    points: list[tuple[Params, str]] = []
    n, c = config.space.num_steps, config.space
    for candidate in best:
        order = max(step.order for step in candidate.schedule.steps)
        w = candidate.schedule.steps[0].guidance_scale
        *sigmas, final = GRIDS[candidate.grid](n, subject.noise)
        near = from_sigmas(sigmas, final, [w] * n, min(order, c.max_order), c.solver, subject.spec)
        point, same = space.params(near)
        if point not in (p for p, _ in points):
            points.append((point, f"{'' if same else 'near '}{candidate.name}"))
    return points


def search(
    config: StudyConfig,
    folder: Path,
    workers: Workers,
    subject: Subject,
    space: SearchSpace,
    study: optuna.Study,
    best: list[Candidate],
    floor: float,
    tracker: Tracker,
    report: Report,
) -> None:
    """Let every worker search; meanwhile show and track what they finish."""
    save_plan(folder, space, floor)
    reap(study)
    enqueue(study, first_points(config, subject, space, best)[:10])
    minutes = config.search.minutes
    deadline = None if minutes is None else time.time() + 60 * minutes
    futures = workers.search(space, floor, deadline)
    shown, record = 0, float("inf")
    while True:
        _, running = wait(futures, timeout=1.0)
        trials = finished(study)
        for trial in sorted(trials, key=lambda t: t.number)[shown:]:
            shown += 1
            feasible = trial.user_attrs["alignment"] >= floor or np.isnan(floor)
            news = ""
            if feasible and trial.value is not None and trial.value < record:
                record = trial.value
                origin = trial.user_attrs.get("origin", config.search.algorithm)
                news = (
                    f"trial {trial.number}: {record:.3f}, "
                    f"alignment {trial.user_attrs['alignment']:.1%} ({origin})"
                )
            report("search", shown, config.search.trials, news)
        tracker.sync(study)
        if not running:
            break
    for future in futures:
        workers.result(future)  # an error of a worker is ours


def select(
    config: StudyConfig,
    workers: Workers,
    subject: Subject,
    study: optuna.Study,
    best: list[Candidate],
    floor: float,
    report: Report,
) -> list[Row]:
    """Score finalists, the best baselines and long rows again, on seeds the search never saw.

    Best first. Finalists below the alignment floor are left out.
    """
    trials = sorted(finished(study), key=lambda t: float(t.value or 0))
    trials = [t for t in trials if np.isnan(floor) or t.user_attrs["alignment"] >= floor]
    entrants = [
        Candidate(f"found, trial {t.number}", schedule_of(t), "found", trial=t.number)
        for t in trials[: config.search.finalists]
    ]
    entrants += best[: config.baselines.test + 3]
    entrants += long_baselines(config, subject.noise, subject.spec)
    seeds = seeds_of(SELECTION, config.evaluation.selection_images)
    rows = score_rows(workers, subject.reference.search, entrants, seeds, "selection", report)
    rows = [r for r in rows if r.candidate.kind != "found" or not r.measurement.alignment < floor]
    return sorted(rows, key=lambda r: r.score.value)


def final_test(
    config: StudyConfig,
    workers: Workers,
    subject: Subject,
    selection: list[Row],
    report: Report,
) -> tuple[list[Row], Row]:
    """Test what the selection chose, once, on fresh seeds; and say which of it is exported."""
    found = [r for r in selection if r.candidate.kind == "found"][:1]
    known = [r for r in selection if r.candidate.kind == "baseline"][: config.baselines.test]
    entrants = [r.candidate for r in found + known]
    for n in config.baselines.long_steps:
        long = [r.candidate for r in selection if r.candidate.kind == "long"]
        entrants.append(next(c for c in long if c.schedule.num_steps == n))
    if config.teacher.test:
        entrants.append(teacher(config, subject.noise, subject.spec))
    seeds = seeds_of(TEST, config.evaluation.test_images)
    rows = score_rows(workers, subject.reference.test, entrants, seeds, "test", report)
    wins = found and found[0].score.value < known[0].score.value
    return rows, (found if wins else known)[0]


def score_rows(
    workers: Workers,
    reference: Moments,
    entrants: Sequence[Candidate],
    seeds: range,
    stage: str,
    report: Report,
) -> list[Row]:
    """Measure entrants on the same seeds, in parts that workers share and that survive a kill."""
    parts = [
        range(start, min(start + PART, seeds.stop))
        for start in range(seeds.start, seeds.stop, PART)
    ]
    jobs = [(c.schedule, part) for c in entrants for part in parts]
    found: dict[int, Measurement] = {}
    for place, measurement in workers.measure(jobs):
        found[place] = measurement
        report(stage, len(found), len(jobs), "")
    rows = []
    for i, candidate in enumerate(entrants):
        whole = Measurement.join([found[i * len(parts) + k] for k in range(len(parts))])
        rows.append(Row(candidate, whole, score(whole.features, reference)))
    return rows
