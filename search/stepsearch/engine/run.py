"""The main job: baselines, teacher, search, selection, test. Every stage resumes from its cache."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from math import ceil, inf, isnan
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from stepsampler.errors import UserError
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.ladder import passes_spent
from stepsearch.engine.pareto import dominated
from stepsearch.engine.result import Result
from stepsearch.engine.selection import keeping, with_front
from stepsearch.engine.stopping import stopped
from stepsearch.engine.study import (
    alignment_floor,
    check_identity,
    claim_folder,
    distance_of,
    enqueue,
    finished,
    make_plan,
    open_study,
    pruned,
    reap,
    schedule_of,
    usable,
)
from stepsearch.engine.tracking import Tracker
from stepsearch.engine.transfer import earlier_best, start_points
from stepsearch.engine.workers import Workers
from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.evaluator import SEARCH, SELECTION, Measurement, seeds_of
from stepsearch.metrics.protocol import Row, held_out, score_all
from stepsearch.rivals.baselines import (
    Candidate,
    baselines,
    long_baselines,
    published,
    teacher,
    wanted,
)
from stepsearch.space.box import Params, SearchSpace
from stepsearch.space.starts import first_points

STAGES = ("rivals", "baselines", "teacher", "trials", "selection")  # what a search pays for
# (stage, done, total, news); what a stage's name has in brackets may change
Report = Callable[[str, int, int, str], None]


@dataclass
class Run:
    """One call of the main job; `run` is its story."""

    config: StudyConfig
    folder: Path
    workers: Workers
    tracker: Tracker
    report: Report
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))  # passes

    def run(self) -> Result:
        """Run a study, or resume it.

        Raises:
            UserError: something is missing or does not fit, or five trials in a row failed.
        """
        config = self.config
        if config.search.start_from:
            earlier_best(Path(config.search.start_from), 1)  # refuses before the first image
        claim_folder(self.folder, config)
        self.report("loading", 0, 1, "")
        self.subject = self.workers.describe()
        check_identity(self.folder, self.subject.identity)
        self.report("loading", 1, 1, "")
        self.tracker.start(config, self.folder)
        subject = self.subject
        rivals = len(wanted(config, subject.guidance))
        if rivals:
            self.report("rivals", 0, rivals, "")
        placed = self.workers.placements(subject.guidance)
        self.placements = {key: found.sigmas for key, found in placed.items()}
        self.spent["rivals"] = sum(found.passes for found in placed.values())
        if rivals:
            self.report("rivals", rivals, rivals, "")
        known = baselines(config, subject.noise, subject.spec, self.placements, subject.guidance)
        known += published(config, subject.spec, subject.guidance)
        best, screened = self.screen(known)
        evaluation = config.evaluation
        teacher_row = self.measure_teacher(SEARCH, evaluation.images)
        self.alignment = teacher_row.measurement.alignment
        teacher_row = self.measure_teacher(SELECTION, evaluation.selection_images)
        study = open_study(self.folder, config)
        self.search(study, best)
        selection = self.select(study, best, teacher_row)
        test, winner = self.test(selection)
        ended = pruned(study)
        every = study.get_trials(deepcopy=False)  # failed ones cost as much
        self.spent["trials"] = self._versions * passes_spent(every, config.evaluation)
        return Result(
            self.subject,
            teacher_row,
            screened,
            selection,
            test,
            winner,
            len(finished(study)) + len(ended),
            len(ended),
            self.spent,
            stopped(study, config.search.patience),
        )

    @property
    def _versions(self) -> int:
        """How often a schedule is measured, each time with other guidance."""
        return len(self.config.evaluation.guidance_scales) or 1

    def _pay(self, stage: str, jobs: Sequence[tuple[Schedule, range]]) -> None:
        """Count the passes of images, also of those that are in the cache."""
        passes = sum(schedule.passes * len(seeds) for schedule, seeds in jobs)
        self.spent[stage] += self._versions * passes

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
            self._pay("baselines", jobs)
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

    def measure_teacher(self, first_seed: int, n: int) -> Row[Candidate]:
        """The teacher on the first of a stage's n seeds: the standard for alignment there."""
        candidate = self._teacher()
        seeds = seeds_of(first_seed, min(n, self.config.teacher.images))
        rows = self.score([candidate], seeds, "teacher")
        if not rows:
            raise self._not_finite("the teacher's images are")
        row = rows[0]
        if not isnan(row.measurement.alignment):
            stage = "search" if first_seed == SEARCH else "selection"
            share = f"alignment {row.measurement.alignment:.1%} on {len(seeds)} {stage} seeds"
            self.report("teacher", 1, 1, share)
        return row

    def _teacher(self) -> Candidate:
        return teacher(self.config, self.subject.noise, self.subject.spec, self.subject.guidance)

    def first_points(self, space: SearchSpace, best: list[Candidate]) -> list[tuple[Params, str]]:
        """What the search is shown first."""
        return first_points(space, best)

    def search(self, study: optuna.Study, best: list[Candidate]) -> None:
        """Let every worker search; meanwhile show and track what they finish."""
        config, options = self.config, self.config.search
        grid = config.space.baseline if config.space.baseline != "best" else self._best_grid(best)
        subject = self.subject
        centre = {n: sigmas for (name, n), sigmas in self.placements.items() if name == grid}
        space = SearchSpace(
            config.space, subject.noise, subject.spec, grid, subject.guidance, centre
        )
        floor = self.alignment - options.alignment_drop
        make_plan(self.folder, subject.identity, grid, floor, centre)
        reap(study, self.folder)
        if options.start_from:
            enqueue(study, start_points(Path(options.start_from), space, options.finalists))
        enqueue(study, self.first_points(space, best))
        shown: set[int] = set()
        record = inf
        while True:
            futures = self.workers.search()
            running = set(futures)
            while running:
                _, running = wait(futures, timeout=1.0)
                ended = pruned(study)
                for trial in finished(study) + ended:
                    if trial.number not in shown:
                        shown.add(trial.number)
                        record = self._show(trial, len(shown), len(ended), floor, record)
                self.tracker.sync(study)
            for future in futures:
                self.workers.result(future)  # an error of a worker is ours
            if not reap(study, self.folder):
                break
        while study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            time.sleep(1)  # a worker that joined from elsewhere is at its last trial
            reap(study, self.folder)
        if reason := stopped(study, options.patience):
            done = len(finished(study)) + len(pruned(study))
            news = f"stopped after {done} of {options.trials} trials: {reason}"
            self.report("search", done, done, news)

    def _best_grid(self, best: list[Candidate]) -> str:
        """The centre of the box: it needs a placement for any number of steps."""
        return next((c.grid for c in best if c.grid), "power")

    def _show(
        self, trial: FrozenTrial, done: int, ended: int, floor: float, record: float
    ) -> float:
        """Report a trial and return the best value so far; pruned ones only count."""
        value, alignment = distance_of(trial), trial.user_attrs["alignment"]
        news = ""
        whole = trial.state == TrialState.COMPLETE
        if whole and value < record and not alignment < floor:
            record = value
            origin = trial.user_attrs.get("origin", self.config.search.algorithm)
            share = "" if isnan(alignment) else f", alignment {alignment:.1%}"
            news = f"trial {trial.number}: {value:.3f}{share} ({origin})"
        stage = f"search ({ended} pruned)" if ended else "search"
        self.report(stage, done, self.config.search.trials, news)
        return record

    def select(
        self, study: optuna.Study, best: list[Candidate], standard: Row[Candidate]
    ) -> list[Row[Candidate]]:
        """Score finalists, the best baselines and long rows again, on seeds the search never saw.

        Best first. Finalists that lose too much of the teacher's alignment are left out, or only
        kept as members of the Pareto front.
        """
        entrants = [
            Candidate(f"found, trial {t.number}", schedule_of(t), "found", trial=t.number)
            for t in self.finalists(study)
        ]
        entrants += best[: self.config.baselines.test + 2]
        for guided in (True, False):  # the best of either kind is always there
            entrants += [c for c in best if _guided(c) == guided and c not in entrants][:1]
        subject = self.subject
        entrants += long_baselines(self.config, subject.noise, subject.spec, subject.guidance)
        seeds = seeds_of(SELECTION, self.config.evaluation.selection_images)
        rows = self.score(entrants, seeds, "selection")
        rows.sort(key=lambda row: row.score.value)
        kept = keeping(rows, standard.measurement.aligned, self.config.search.alignment_drop)
        return with_front(rows, kept) if self.config.search.both else kept

    def finalists(self, study: optuna.Study) -> list[FrozenTrial]:
        """The best trials that keep the alignment; of two objectives an even part of the front.

        Half of them have the teacher's whole alignment: those near the floor can all lose it on
        other seeds.
        """
        floor, most = alignment_floor(self.folder), self.config.search.finalists
        trials = usable(study)
        aligned = [t for t in trials if not t.user_attrs["alignment"] < floor]
        if not self.config.search.both:
            safe = [t for t in aligned if not t.user_attrs["alignment"] < self.alignment]
            chosen = aligned[: most - most // 2]
            chosen += [t for t in safe if t not in chosen][: most // 2]
            return chosen + [t for t in aligned if t not in chosen][: most - len(chosen)]
        out = dominated([(t.values[0], -t.values[1]) for t in trials])
        front = [t for t, worse in zip(trials, out, strict=True) if not worse]
        best = aligned[:1]
        others = [t for t in front if t not in best]
        places = np.linspace(0, len(others) - 1, min(len(others), most - len(best)))
        return best + [others[round(place)] for place in places]

    def test(self, selection: list[Row[Candidate]]) -> tuple[list[Row[Candidate]], Candidate]:
        """Test what the selection chose, once, on fresh seeds; and say which of it is exported."""
        ranked = [row.candidate for row in selection]
        found = [c for c in ranked if c.kind == "found"][:1]
        known = [c for c in ranked if c.kind == "baseline"]
        entrants = found + [c for c in ranked if c.kind == "front"]
        entrants += known[: self.config.baselines.test]
        for guided in (True, False):
            entrants += [c for c in known if _guided(c) == guided and c not in entrants][:1]
        long = [c for c in ranked if c.kind == "long"]
        for n in self.config.baselines.long_steps:
            entrants += [c for c in long if c.schedule.num_steps == n][:1]
        if self.config.teacher.test:
            entrants.append(self._teacher())
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
        tested = {row.candidate.name for row in rows}
        exported = [c for c in ranked if c.kind in ("found", "baseline") and c.name in tested]
        if not exported:
            raise self._not_finite("the images of all schedules are")
        return rows, exported[0]

    def score(
        self, entrants: Sequence[Candidate], seeds: range, stage: str
    ) -> list[Row[Candidate]]:
        """Measure on the same seeds, against the reference of the search."""
        self._pay(stage, [(c.schedule, seeds) for c in entrants])
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

    def _not_finite(self, what: str) -> UserError:
        return UserError(f"{what} not finite in {self.config.model.dtype}: try another model.dtype")

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
