"""A main job on a toy whose best schedule is known and which needs no network."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.study import work
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess, Subject, Workers
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.evaluator import Measurement
from stepsearch.polish.looking import Seen
from stepsearch.rivals.dmn import dmn
from stepsearch.rivals.placement import Placement
from stepsearch.space.box import SearchSpace

SD = NoiseSchedule.scaled_linear()
SPEC = SD.spec("stable-diffusion", "epsilon")
AXES = 4
# Axes of a box; all that can be switched on beside placement and guidance.
EVERYTHING = {
    "solvers": ["dpmpp-midpoint", "unipc-bh2", "deis"],
    "guidance_rescale": (0.0, 0.9),
    "order": "per-step",
    "corrector": True,
    "prediction": True,
    "analytic": (0.8, 1.0),
    "analytic_at": (0.2, 0.8),
    "churn": (0.0, 0.3),
    "gain": (0.9, 1.2),
    "decode": True,
    "free_u": True,
    "free_u_sets": 2,
}


def space(num_steps=5, passes=8, grid="power", **options):
    """A box of Stable Diffusion's noise around a grid; `options` are keys of a study's space."""
    options = {"guidance": "per-step", **options}
    config = SpaceConfig(num_steps=num_steps, passes=passes, **options)
    return SearchSpace(config, SD, SPEC, grid)


def rising(steps):
    """A schedule of the linspace grid whose guidance rises by a tenth a step, from 2."""
    plan = make_schedule("linspace", steps, SD, order=1, model=SPEC)
    guided = (replace(s, guidance_scale=2 + i / 10) for i, s in enumerate(plan.steps))
    return replace(plan, steps=tuple(guided))


class Here(InThisProcess):
    """One worker in this process in the place of those that a session starts."""

    def __init__(self, config, folder, *_):
        super().__init__(config, folder)


class Reference:
    metric = "fd_toy4"
    parts = ()
    search = test = Moments(np.zeros(AXES), np.eye(AXES), 1000)


class ToyWorkers:
    """Workers in this process. The distance grows with the distance of the last evaluated sigma
    from `target`; the teacher has none. Alignment is `aligned(schedule)`.
    Schedules that are `broken` are so on the seeds from `broken_from` on; those that are `refused`
    are not looked at by a polish."""

    saved = 0
    result = staticmethod(Workers.result)
    identity = "toy"

    def __init__(
        self,
        config,
        folder,
        target=0.05,
        aligned=lambda s: 1.0,
        broken=lambda s: False,
        broken_from=0,
        refused=lambda s: False,
        sharing=1,
    ):
        self.config, self.folder = config, folder
        self.target, self.aligned, self.broken = target, aligned, broken
        self.reference = Reference
        self.model = SimpleNamespace(
            noise=SD,
            spec=SPEC,
            guidance="classifier-free",
            experts=SimpleNamespace(boundary=None),
            statistics=(),
        )
        self.broken_from, self.images, self.refused = broken_from, 0, refused
        self.sharing, self.looks = sharing, []

    def describe(self):
        return Subject(SD, SPEC, Reference, "toy", "classifier-free")

    def placements(self, guidance):
        steps = (3, 6) if self.config.baselines.rivals else ()
        return ((("dmn", n), Placement(dmn(n, SD), 70, 0.0)) for n in steps)

    def measure(self, jobs, seeds=None):
        if seeds is not None:  # as an evaluator
            return self._measure(jobs, seeds)
        return ((i, self._measure(schedule, part)) for i, (schedule, part) in enumerate(jobs))

    def _measure(self, schedule, seeds):
        self.images += len(seeds)
        rows = [np.random.default_rng(seed).normal(size=AXES + 1) for seed in seeds]
        rows = np.array(rows)
        off = abs(np.log(schedule.steps[-1].sigma / self.target))
        features = rows[:, :AXES] + (0 if schedule.num_steps > 15 else off)
        if seeds.start >= self.broken_from and self.broken(schedule):
            features[:] = np.nan
        lucky = (rows[:, AXES] % 1) < self.aligned(schedule)
        return Measurement(features.astype(np.float32), lucky.astype(np.float32))

    def look(self, plans, parts):
        self.looks.append((len(plans), list(parts)))
        for k, part in enumerate(parts):
            yield k, [self._seen(sides, part) for sides in plans]

    def _seen(self, sides, seeds):
        if self.refused(sides[0]):
            return "the toy does not take it"
        return Seen(0, self._measure(sides[0], seeds))

    def search(self):
        future = Future()
        future.set_result(work(self.folder, self.config, self, 0))
        return [future]


def settings(**search):
    return StudyConfig.model_validate(
        {
            "name": "toy",
            "space": {"num_steps": 3, "passes": 6, "max_steps": 6},
            "evaluation": {"images": 60, "selection_images": 100, "test_images": 400},
            "baselines": {
                "rungs": [20, 60],
                "guidance_scales": [2.0],
                "long_steps": [20],
                "rivals": ["dmn"],
            },
            "teacher": {"images": 100, "test": True},
            "search": {"trials": 40, "algorithm": "tpe", **search},
        }
    )


def run(tmp_path, config=None, news=None, **toy):
    config = config or settings()
    workers = ToyWorkers(config, tmp_path, **toy)
    report = (lambda *line: news.append(line)) if news is not None else (lambda *line: None)
    return run_study(config, tmp_path, workers, NoTracking(), report), config, workers
