"""The bundled model and the rulers, and the methods: each makes a contender of (calls, scale)."""

import argparse
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from methods.learned import Teacher, learn
from methods.searched import search, study
from methods.spent import Spent
from stepsampler.estimate import EVERY, estimate
from stepsampler.grids import guide, make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.npnet.files import BUNDLED, digest_of
from stepsampler.schedule import GoldenNoise, LearnedNoise, Schedule, StatisticsSpec
from stepsampler.schedule import load as load_schedule
from stepsampler.statistics.file import read_statistics
from stepsearch.compare.contenders import Contender, OnSchedule
from stepsearch.compare.harness import Clock, Harness
from stepsearch.compare.learned import OnPredictor
from stepsearch.config import StudyConfig
from stepsearch.metrics.alignment import ClassAlignment, load_prompts
from stepsearch.metrics.evaluator import Metric, model_digest
from stepsearch.metrics.features import load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.rivals.amed.command import train
from stepsearch.rivals.amed.predictor import Setting
from stepsearch.rivals.amed.predictor import load as load_predictor
from stepsearch.rivals.amed.training import Training

BASE, DPM, V3 = "UniPC", "DPM++(2M)", "DPM-Solver-v3"
NEURAL, STATIC, PREDICTED = "NeuralSolver-like", "AMED, static", "AMED, learned"
OURS = "ours, searched"
SOLVERS = {BASE: "unipc-bh2", DPM: "dpmpp-midpoint", V3: "dpm-v3"}
LEARNED_AT = 2.0  # guidance scale under which methods learn, and the first that is tried
INTERVALS = 120  # of statistics, as those that are bundled
GOLDEN = ("raw golden noise", "learned golden noise")


class Bench:
    """The model and the rulers, and what methods are made of.

    What learns by gradients or differences does it in float32, whatever the images are made in.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load("tiny", args.device, args.dtype, compile=args.compile)
        plain = args.dtype == "float32" and not args.compile
        self.exact = self.model if plain else load("tiny", args.device)
        assert isinstance(self.model, LatentModel)
        assert isinstance(self.exact, LatentModel)
        self.digest = model_digest(self.model)
        cache = args.run / "images"
        extractors = [load_extractor(name, args.device) for name in ("texture", "lite0")]
        metrics = [Metric(e, load_reference("fashion-mnist", e, 32, cache)) for e in extractors]
        prompts = load_prompts("fashion-mnist")
        self.texts = [prompt.text for prompt in prompts]
        clock, judge = Clock(torch.device(args.device)), ClassAlignment(args.device)
        self.harness = Harness(metrics, prompts, args.batch, cache, clock, judge)
        self.spent = Spent(args.run / "spent.json")

    def on(self, name: str, schedule: Schedule) -> Contender:
        return OnSchedule(name, schedule, self.model, self.digest)

    def rule(self, name: str, calls: int, w: float) -> Contender:
        """A solver of order 2, and of order 1 in its last step, as diffusers runs it."""
        named = self.statistics(w) if name == V3 else None
        plan = make_schedule(
            "linspace",
            calls,
            self.model.noise,
            solver=SOLVERS[name],
            guidance_scale=w,
            model=self.model.spec,
            lower_order_final=True,
            statistics=named,
        )
        return self.on(name, plan)

    def statistics(self, w: float) -> StatisticsSpec:
        """Those of DPM-Solver-v3 at a scale: bundled, or estimated here."""
        path = self.args.run / f"statistics-{w:g}.safetensors"
        for found in self.model.statistics:
            if found.guidance_scale == w:
                return found.spec
        work = f"{V3} w {w}"
        if not path.exists():
            print(f"w {w:g}: statistics of {V3}", flush=True)
            samples = self.args.samples
            with self.spent.on(work), torch.no_grad():
                deque(estimate(self.exact, self.texts, w, INTERVALS, samples, path, batch_size=32))
            calls = INTERVALS + 1 + INTERVALS // EVERY + 1
            self.spent.passes(work, 2 * samples * calls)
        found = read_statistics(str(path), self.model.noise, self.model.shape)
        self.model.statistics = (*self.model.statistics, found)
        return found.spec

    def golden(self, how: str, name: str, calls: int, w: float) -> Contender:
        """A method from golden noise: raw, by inversion from the second level, or learned, by the
        network that is bundled for `tiny`."""
        plain = METHODS[name](self, calls, w)
        assert isinstance(plain, OnSchedule)
        plan = plain.schedule
        if how == GOLDEN[0]:
            noise = GoldenNoise(plan.sigmas[1], w, "inversion")
        else:
            noise = LearnedNoise(digest_of(BUNDLED / "tiny.safetensors"))
        return self.on(f"{name}, {how}", replace(plan, golden_noise=noise))

    def amed(self, calls: int) -> Path:
        """A predictor of the authors' setting, trained here."""
        path = self.args.run / f"amed-{calls}.safetensors"
        work = f"{PREDICTED} {calls}"
        if not path.exists():
            print(f"{calls} calls: training of AMED", flush=True)
            setting = Setting(calls, LEARNED_AT, 0)
            with self.spent.on(work):
                train(self.exact, self.texts, setting, self.args.trajectories, 32, path)
        self.spent.passes(work, load_predictor(path)[1]["passes"])
        return path

    def amed_learned(self, calls: int, w: float) -> Contender:
        found = OnPredictor(self.amed(calls), self.model, self.digest, guidance_scale=w)
        found.name = PREDICTED
        return found

    def amed_static(self, calls: int, w: float) -> Contender:
        """The averages of that predictor, as a schedule."""
        path = self.amed(calls).with_suffix(".json")
        if not path.exists():
            predictor, _ = load_predictor(self.amed(calls))
            work = f"{STATIC} {calls}"
            with self.spent.on(work):
                training = Training(predictor, self.exact, self.texts)
                training.averages().save(path)
            self.spent.passes(work, training.passes)
        return self.on(STATIC, guide(load_schedule(path), w))

    def neural(self, calls: int, w: float) -> Contender:
        """Levels and weights learned from a teacher."""
        path = self.args.run / f"neural-{calls}.json"
        work = f"{NEURAL} {calls}"
        if not path.exists():
            print(f"{calls} calls: training of levels and weights", flush=True)
            where = self.args.run / f"teacher-{self.args.taught}.safetensors"
            teacher = Teacher(self.exact, self.texts, LEARNED_AT, self.args.taught, where)
            with self.spent.on(NEURAL):
                teacher.goals(self.args.part)
            self.spent.passes(NEURAL, teacher.passes)
            with self.spent.on(work):
                plan, passes = learn(teacher, calls, self.args.iterations, self.args.part)
            self.spent.passes(work, passes)
            plan.save(path)
        return self.on(NEURAL, guide(load_schedule(path), w))

    def ours(self, calls: int) -> Contender:
        """What our search finds for these passes, at its own guidance."""
        args = self.args
        images = args.trial_images
        options = study(calls, args.trials, images, args.batch)
        work = f"{OURS} {calls}"
        with self.spent.on(work):
            config = StudyConfig.model_validate(options)
            plan, passes = search(config, args.run / config.name, args.device)
        self.spent.passes(work, passes)
        return self.on(OURS, replace(plan, provenance={}))

    def works(self, name: str, calls: int, w: float | None) -> list[str]:
        """Names of the work that a row's method took before its scale was chosen."""
        name = next(plain for plain in (*METHODS, OURS) if name.startswith(plain))
        more = {STATIC: [f"{PREDICTED} {calls}"], NEURAL: [NEURAL], V3: [f"{V3} w {w}"]}
        return [f"{name} {calls}", *more.get(name, [])]


Method = Callable[[Bench, int, float], Contender]
METHODS: dict[str, Method] = {
    BASE: lambda b, n, w: b.rule(BASE, n, w),
    DPM: lambda b, n, w: b.rule(DPM, n, w),
    V3: lambda b, n, w: b.rule(V3, n, w),
    STATIC: Bench.amed_static,
    PREDICTED: Bench.amed_learned,
    NEURAL: Bench.neural,
}
