"""The main job: baselines, teacher, search, selection, test. Every stage resumes from its cache."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from math import ceil, inf, isnan, sqrt
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler.grids import from_sigmas
from stepsearch.baselines import Candidate, Kind, baselines, long_baselines, teacher, wanted
from stepsearch.config import StudyConfig
from stepsearch.distance import frechet_distance
from stepsearch.evaluate import SEARCH, SELECTION, Measurement, seeds_of
from stepsearch.protocol import Row, held_out, score_all
from stepsearch.space import Params, SearchSpace
from stepsearch.study import (
    alignment_floor,
    claim_folder,
    enqueue,
    finished,
    make_plan,
    open_study,
    reap,
    schedule_of,
)
from stepsearch.tracking import Tracker
from stepsearch.workers import Subject, Workers

BEST = 6  # baselines at which the search starts
POINT = 0.01  # alignment may fall one percentage point below the teacher's
Report = Callable[[str, int, int, str], None]  # (stage, done, total, news)


@dataclass(frozen=True, eq=False)
class Result:
    """What a run ends with."""

    subject: Subject
    teacher: Row[Candidate]  # on the first of the selection seeds
    screened: list[tuple[Candidate, int, float]]  # every baseline, the n it reached, its FD there
    selection: list[Row[Candidate]]  # best first
    test: list[
        Row[Candidate]
    ]  # the found schedule, if any, then baselines, long rows and the teacher
    winner: Candidate  # chosen by the selection: what is exported
    trials: int
    search_passes: int

    @property
    def found(self) -> Row[Candidate] | None:
        return next(iter(self.of_kind("found")), None)

    def of_kind(self, kind: Kind) -> list[Row[Candidate]]:
        """Rows of the test."""
        return [row for row in self.test if row.candidate.kind == kind]

    @property
    def beaten(self) -> list[Row[Candidate]]:
        """Tested baselines that the found schedule beats by two standard errors."""
        found = self.found
        if found is None:
            return []
        pairs = [(row, *row.score.minus(found.score)) for row in self.of_kind("baseline")]
        return [row for row, difference, se in pairs if difference > 2 * se]

    @property
    def gap_closed(self) -> float | None:
        """Share of the distance from the best baseline to the teacher that is gone."""
        teachers = self.of_kind("teacher")
        if self.found is None or not teachers:
            return None
        best = min(row.score.value for row in self.of_kind("baseline"))
        return (best - self.found.score.value) / (best - teachers[0].score.value)


@dataclass
class Run:
    """One call of the main job; `run` is its story."""

    config: StudyConfig
    folder: Path
    workers: Workers
    tracker: Tracker
    report: Report

    def run(self) -> Result:
        """Run a study, or resume it.

        Raises:
            UserError: something is missing or does not fit, or five trials in a row failed.
        """
        config = self.config
        claim_folder(self.folder, config)
        self.report("loading", 0, 1, "")
        self.subject = self.workers.describe()
        self.report("loading", 1, 1, "")
        self.tracker.start(config, self.folder)
        if wanted(config):
            self.report("rivals", 0, 1, "")
        self.placements = self.workers.placements()
        known = baselines(config, self.subject.noise, self.subject.spec, self.placements)
        best, screened = self.screen(known)
        alignment = self.measure_teacher(SEARCH).measurement.alignment
        teacher_row = self.measure_teacher(SELECTION)
        study = open_study(self.folder, config)
        self.search(study, best, alignment)
        selection = self.select(study, best, teacher_row)
        test, winner = self.test(selection)
        trials = finished(study)
        spent = sum(t.user_attrs["passes"] for t in trials) * config.evaluation.images
        spent += sum(c.schedule.passes * n for c, n, _ in screened)
        return Result(
            self.subject, teacher_row, screened, selection, test, winner, len(trials), spent
        )

    def screen(
        self, candidates: list[Candidate]
    ) -> tuple[list[Candidate], list[tuple[Candidate, int, float]]]:
        """Successive halving of the baselines on the search seeds; equal n within a rung.

        Guided and unguided ones are thinned out apart: the bias of FD at small n depends on how
        varied the images are. Return the survivors of the last rung, best first, and every
        baseline with its last score.
        """
        alive = list(candidates)
        features: dict[str, list[np.ndarray]] = {c.name: [] for c in candidates}
        last: dict[str, tuple[Candidate, int, float]] = {}
        before = 0
        for n in self.config.baselines.rungs:
            if before:
                alive = [
                    c
                    for guided in (True, False)
                    for c in self._keep([c for c in alive if _guided(c) == guided])
                ]
            jobs = [(c.schedule, range(SEARCH + before, SEARCH + n)) for c in alive]
            stage = f"baselines, {n} images"
            for done, (place, found) in enumerate(self.workers.measure(jobs)):
                features[alive[place].name].append(found.features)
                self.report(stage, done + 1, len(jobs), "")
            for c in alive:
                whole = np.concatenate(features[c.name])
                finite = np.isfinite(whole).all()
                fd = frechet_distance(whole, self.subject.reference.search) if finite else inf
                last[c.name] = (c, n, fd)
            alive.sort(key=lambda c: last[c.name][2])
            news = f"best: {alive[0].name}: {last[alive[0].name][2]:.3f}"
            self.report(stage, len(jobs), len(jobs), news)
            before = n
        return alive, list(last.values())

    def _keep(self, ranked: list[Candidate]) -> list[Candidate]:
        options = self.config.baselines
        return ranked[: max(options.test, ceil(len(ranked) * options.keep))]

    def measure_teacher(self, first_seed: int) -> Row[Candidate]:
        """The teacher on the first seeds of a range: the standard for alignment there."""
        candidate = teacher(self.config, self.subject.noise, self.subject.spec)
        seeds = seeds_of(first_seed, self.config.teacher.images)
        (row,) = self.score([candidate], seeds, "teacher")
        if not isnan(row.measurement.alignment):
            self.report("teacher", 1, 1, f"alignment {row.measurement.alignment:.1%}")
        return row

    def first_points(self, space: SearchSpace, best: list[Candidate]) -> list[tuple[Params, str]]:
        """The best baselines as points of the box, or the nearest points to them; and `spread`."""
        points: dict[str, Params] = {}
        for candidate in best[:BEST] + self.spread(space, best):
            point, same = space.params(candidate.schedule)
            if point not in points.values():
                points[f"{'' if same else 'near '}{candidate.name}"] = point
        return [(point, name) for name, point in points.items()]

    def spread(self, space: SearchSpace, best: list[Candidate]) -> list[Candidate]:
        """The same passes on more steps, of which the first or the last ones are guided.

        In their own part of the box, which an algorithm can be long in finding.
        """
        config = self.config.space
        scale = next((c.schedule.steps[0].guidance_scale for c in best if _guided(c)), 1.0)
        found = []
        for n in range(config.num_steps + 1, config.most_steps + 1):
            guided = config.passes - n
            *sigmas, final = space.centre(n)
            for place, first in (("first", 0), ("last", n - guided)):
                if 0 < guided < n and scale > 1:
                    scales = [scale if 0 <= i - first < guided else 1.0 for i in range(n)]
                    order, solver = min(2, config.max_order), config.solvers[0]
                    plan = from_sigmas(sigmas, final, scales, order, solver, space.model)
                    name = f"{space.grid}, {n} steps, the {place} {guided} guided"
                    found.append(Candidate(name, plan, "found"))
        return found

    def search(self, study: optuna.Study, best: list[Candidate], alignment: float) -> None:
        """Let every worker search; meanwhile show and track what they finish.

        During the search the alignment of a trial, a share of n images, may fall below the
        teacher's by a point and its standard error; the selection is strict.
        """
        config, options = self.config, self.config.search
        grid = config.space.baseline if config.space.baseline != "best" else self._best_grid(best)
        centre = {n: sigmas for (name, n), sigmas in self.placements.items() if name == grid}
        space = SearchSpace(config.space, self.subject.noise, self.subject.spec, grid, centre)
        floor = alignment - POINT - sqrt(alignment * (1 - alignment) / config.evaluation.images)
        make_plan(self.folder, self.subject.identity, grid, floor, centre)
        reap(study, self.folder)
        enqueue(study, self.first_points(space, best))
        deadline = None if options.minutes is None else time.time() + 60 * options.minutes
        shown: set[int] = set()
        record = inf
        while True:
            futures = self.workers.search(deadline)
            running = set(futures)
            while running:
                _, running = wait(futures, timeout=1.0)
                for trial in finished(study):
                    if trial.number not in shown:
                        shown.add(trial.number)
                        record = self._show(trial, len(shown), floor, record)
                self.tracker.sync(study)
            for future in futures:
                self.workers.result(future)  # an error of a worker is ours
            if not reap(study, self.folder):
                break
        while study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            time.sleep(1)  # a worker that joined from elsewhere is at its last trial
            reap(study, self.folder)

    def _best_grid(self, best: list[Candidate]) -> str:
        """The centre of the box: it needs a placement for any number of steps."""
        return next((c.grid for c in best if c.grid), "power")

    def _show(self, trial: FrozenTrial, done: int, floor: float, record: float) -> float:
        """Report a finished trial and return the best value so far."""
        value, alignment = float(trial.value or 0), trial.user_attrs["alignment"]
        news = ""
        if value < record and not alignment < floor:
            record = value
            origin = trial.user_attrs.get("origin", self.config.search.algorithm)
            share = "" if isnan(alignment) else f", alignment {alignment:.1%}"
            news = f"trial {trial.number}: {value:.3f}{share} ({origin})"
        self.report("search", done, self.config.search.trials, news)
        return record

    def select(
        self, study: optuna.Study, best: list[Candidate], standard: Row[Candidate]
    ) -> list[Row[Candidate]]:
        """Score finalists, the best baselines and long rows again, on seeds the search never saw.

        Best first. Finalists whose alignment is more than a point below the teacher's, on the
        seeds of the teacher, are left out.
        """
        floor = alignment_floor(self.folder)
        trials = [t for t in finished(study) if not t.user_attrs["alignment"] < floor]
        trials.sort(key=lambda t: float(t.value or 0))
        entrants = [
            Candidate(f"found, trial {t.number}", schedule_of(t), "found", trial=t.number)
            for t in trials[: self.config.search.finalists]
        ]
        entrants += best[: self.config.baselines.test + 2]
        for guided in (True, False):  # the best of either kind is always there
            entrants += [c for c in best if _guided(c) == guided and c not in entrants][:1]
        entrants += long_baselines(self.config, self.subject.noise, self.subject.spec)
        seeds = seeds_of(SELECTION, self.config.evaluation.selection_images)
        rows = self.score(entrants, seeds, "selection")
        n = min(len(standard.measurement.aligned), len(seeds))
        lowest = standard.measurement.aligned[:n].mean() - POINT
        rows = [
            row
            for row in rows
            if row.candidate.kind != "found" or not row.measurement.aligned[:n].mean() < lowest
        ]
        return sorted(rows, key=lambda row: row.score.value)

    def test(self, selection: list[Row[Candidate]]) -> tuple[list[Row[Candidate]], Candidate]:
        """Test what the selection chose, once, on fresh seeds; and say which of it is exported."""
        ranked = [row.candidate for row in selection]
        found = [c for c in ranked if c.kind == "found"][:1]
        known = [c for c in ranked if c.kind == "baseline"]
        entrants = found + known[: self.config.baselines.test]
        for guided in (True, False):
            entrants += [c for c in known if _guided(c) == guided and c not in entrants][:1]
        long = [c for c in ranked if c.kind == "long"]
        for n in self.config.baselines.long_steps:
            entrants.append(next(c for c in long if c.schedule.num_steps == n))
        if self.config.teacher.test:
            entrants.append(teacher(self.config, self.subject.noise, self.subject.spec))
        rows = held_out(
            entrants,
            self.config.evaluation.test_images,
            self.config.evaluation.batch_size,
            self.subject.reference,
            self._measure,
            lambda done, total: self.report("test", done, total, ""),
            lambda c: self._dropped("test", c),
        )
        self._track(rows, "test")
        return rows, next(c for c in ranked if c.kind in ("found", "baseline"))

    def score(
        self, entrants: Sequence[Candidate], seeds: range, stage: str
    ) -> list[Row[Candidate]]:
        """Measure on the same seeds, against the reference of the search."""
        rows = score_all(
            entrants,
            seeds,
            self.config.evaluation.batch_size,
            self.subject.reference.search,
            self._measure,
            lambda done, total: self.report(stage, done, total, ""),
            lambda c: self._dropped(stage, c),
        )
        self._track(rows, stage)
        return rows

    def _track(self, rows: Sequence[Row[Candidate]], stage: str) -> None:
        for row in rows:
            self.tracker.contender(row.candidate.name, row.candidate.schedule, _metrics(row, stage))

    def _measure(
        self, jobs: Sequence[tuple[Candidate, range]]
    ) -> Iterator[tuple[int, Measurement]]:
        return self.workers.measure([(candidate.schedule, part) for candidate, part in jobs])

    def _dropped(self, stage: str, candidate: Candidate) -> None:
        self.report(stage, 1, 1, f"{candidate.name}: images are not finite, left out")


def _metrics(row: Row[Candidate], stage: str) -> dict[str, float]:
    values = {
        f"fd_{stage}": row.score.value,
        f"fd_{stage}_se": row.score.se,
        f"alignment_{stage}": row.measurement.alignment,
        "passes": float(row.candidate.schedule.passes),
    }
    return {key: value for key, value in values.items() if not isnan(value)}


def _guided(candidate: Candidate) -> bool:
    return any(step.guidance_scale != 1 for step in candidate.schedule.steps)
