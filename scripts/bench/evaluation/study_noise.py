"""Does a search get further where its GP is told how well each trial was measured?

    python scripts/bench/evaluation/study_noise.py simulate
    python scripts/bench/evaluation/study_noise.py search       # resumes; on the bundled model

Optuna's GP fits one noise variance for all trials, but a trial that was stopped at the first rung
was measured on fewer images. Here the variances of some trials are added to the diagonal of its
covariance, while it is fitted and after: "jackknife" adds the squared error of each trial's own
score, "rung" to pruned trials alone the spread of what their prediction is made of
(`predicted` in `engine/algorithms.py`), "true" in simulations what was drawn. All are of log FD.

Optuna 5 has no such option, BoTorchSampler of optuna-integration 5 neither; that of OptunaHub knows
neither constraints as Optuna 5 has them nor running trials. So this replaces a private class of
Optuna for the time of a fit.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import exp
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna._gp import gp
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState

from stepsampler.grids import make_schedule
from stepsearch.config import StudyConfig
from stepsearch.engine import algorithms
from stepsearch.engine.algorithms import ERROR, make_algorithm
from stepsearch.engine.claim import claim_folder
from stepsearch.engine.ladder import RungPruner, infeasible, passes_spent
from stepsearch.engine.study import (
    enqueue,
    finished,
    open_study,
    pruned,
    reap,
    run_trials,
    schedule_of,
)
from stepsearch.metrics.distance import Score, score
from stepsearch.metrics.evaluator import SELECTION, Evaluator, seeds_of
from stepsearch.paths import write_whole
from stepsearch.rivals.baselines import Candidate
from stepsearch.space.box import SearchSpace
from stepsearch.space.starts import first_points

Variances = Callable[[Sequence[FrozenTrial]], np.ndarray]  # of log FD, as the GP sees trials
GRID = ("kl-optimal", 2.0)  # the box's placement and the guidance scale of its middle
FLOOR = 0.95  # of alignment
BEST = 3  # finalists, of which a run would take the best


def none(trials: Sequence[FrozenTrial]) -> np.ndarray:
    return np.zeros(len(trials))


def jackknife(trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Squared relative errors of FD, each on the images that its trial had."""
    found = []
    for trial in trials:
        if ERROR in trial.user_attrs:
            found.append(0.0)
            continue
        left_out = np.array(trial.user_attrs["left_out"])
        found.append((Score(0.0, left_out).se / left_out.mean()) ** 2)
    return np.array(found)


def rung(trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Of pruned trials the squared relative error of the prediction, from finished ones."""
    whole = [t for t in trials if not _stopped(t) and ERROR not in t.user_attrs]
    found = np.zeros(len(trials))
    for place, trial in enumerate(trials):
        if _stopped(trial):
            n = trial.last_step
            shifts = [
                t.intermediate_values[n] - exp(t.value) for t in whole if n in t.intermediate_values
            ]
            if len(shifts) > 1:
                found[place] = np.var(shifts, ddof=1) / exp(2 * trial.value)
    return found


def true(trials: Sequence[FrozenTrial]) -> np.ndarray:
    return np.array([t.user_attrs["own"] ** 2 for t in trials])


def _stopped(trial: FrozenTrial) -> bool:
    """Of a trial that is shown as finished."""
    return trial.last_step is not None and trial.last_step == trial.user_attrs.get("images")


ARMS: dict[str, Variances] = {"one": none, "jackknife": jackknife, "rung": rung, "true": true}


class Known(gp.GPRegressor):
    """A GP with known variances on the diagonal of its training covariance."""

    extra: torch.Tensor | None = None  # (trials,), of whatever is fitted meanwhile

    def kernel(
        self, first: torch.Tensor | None = None, second: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = super().kernel(first, second)
        if first is None and self.extra is not None:
            found = found + torch.diag(self.extra)
        return found


class Noisy(GPSampler):
    """Optuna's GP with known variances of its objective; its constraints have none."""

    def __init__(self, variances: Variances, **options: object) -> None:
        super().__init__(**options)
        self.variances = variances

    def _sample_relative_impl(self, study, trials, running, space):
        spread = np.var([t.value for t in trials])  # values are standardised before the fit
        with known(self.variances(trials) / max(spread, 1e-10)):
            return super()._sample_relative_impl(study, trials, running, space)

    def _get_constraints_acqf_args(self, *args):
        with known(None):
            return super()._get_constraints_acqf_args(*args)


@contextmanager
def known(extra: np.ndarray | None) -> Iterator[None]:
    """Every GP that is fitted meanwhile has these variances."""
    before = gp.GPRegressor, Known.extra
    gp.GPRegressor, Known.extra = Known, None if extra is None else torch.from_numpy(extra)
    try:
        yield
    finally:
        gp.GPRegressor, Known.extra = before


@contextmanager
def told(arm: str) -> Iterator[None]:
    """The product's algorithms with another GP."""
    algorithms.GPSampler = partial(Noisy, ARMS[arm])
    try:
        yield
    finally:
        algorithms.GPSampler = GPSampler


# A known function with the noise of the bundled model: errors of log FD of one image, that which
# all trials share, as their seeds are common, and the rest (docs/evaluation.md: common seeds are
# worth four times the images).
SHARED, OWN = 0.97, 0.56
RUNGS = (50, 100, 250)
AXES = 6


def simulated(arm: str, seed: int, trials: int) -> float:
    """How far the best finalist of a search lies above the lowest value, in units of FD."""
    draw = np.random.default_rng(seed)
    centre, weights = draw.uniform(0.2, 0.8, AXES), draw.uniform(5, 60, AXES)
    sizes = np.diff((0, *RUNGS))

    def rise(x: np.ndarray) -> float:
        return float(weights @ (x - centre) ** 2 + 0.3 * (1 - np.cos(12 * (x - centre))).sum())

    def steps(size: float) -> np.ndarray:
        """Means over the images of each rung of errors of `size` an image."""
        parts = draw.normal(0, size * np.sqrt(sizes))
        return np.cumsum(parts) / np.array(RUNGS)

    shared = steps(SHARED)
    study = optuna.create_study(pruner=RungPruner(BEST))
    with told(arm):
        study.sampler = make_algorithm("gp-local", seed, trials=trials)
        for _ in range(trials):
            trial = study.ask()
            x = np.array([trial.suggest_float(f"x{k}", 0, 1) for k in range(AXES)])
            own = steps(OWN)
            for k, n in enumerate(RUNGS):
                fd = (9 + rise(x)) * exp(shared[k] + own[k]) + 1000 / n
                error = fd * np.hypot(SHARED, OWN) / np.sqrt(n)
                if n == RUNGS[-1]:
                    break
                trial.report(fd, n)
                if trial.should_prune():
                    break
            trial.set_user_attr("own", OWN / np.sqrt(n))
            trial.set_user_attr("images", n)
            trial.set_user_attr("left_out", [fd - error, fd + error])  # whose jackknife it is
            trial.set_user_attr("rise", rise(x))
            ended = TrialState.COMPLETE if n == RUNGS[-1] else TrialState.PRUNED
            study.tell(trial, fd if ended == TrialState.COMPLETE else None, ended)
    whole = study.get_trials(states=(TrialState.COMPLETE,))
    return min(t.user_attrs["rise"] for t in sorted(whole, key=lambda t: t.value)[:BEST])


def searched(args: argparse.Namespace, arm: str, seed: int, end: float) -> dict | None:
    """A search of three steps on the bundled model, and its best trial on seeds that it never saw.

    None where `end`, of `time.monotonic()`, comes before.
    """
    data = {
        "name": "noise",
        "space": {
            "num_steps": 3,
            "max_steps": 5,
            "passes": 6,
            "guidance": "per-step",
            "guidance_scale": [0.6, 5.0],
            "gain": [1.0, 1.14],
        },
        "evaluation": {"extractor": "texture", "images": args.rungs[-1], "rungs": args.rungs},
        "search": {"trials": args.trials, "seed": seed, "finalists": BEST},
    }
    config = StudyConfig.model_validate(data)
    evaluator = Evaluator(config, args.run / "cache", "cpu")
    model, (grid, scale) = evaluator.model, GRID
    space = SearchSpace(config.space, model.noise, model.spec, grid)
    middle = make_schedule(grid, 3, model.noise, order=2, guidance_scale=scale)
    folder = args.run / f"{arm}-{seed}-{args.trials}-{'-'.join(map(str, args.rungs))}"
    claim_folder(folder, config)
    with told(arm):
        study = open_study(folder, config)
    reap(study, folder)
    enqueue(study, folder, first_points(space, [Candidate(grid, middle, "baseline", grid)]))
    run_trials(study, folder, config, space, evaluator, FLOOR, end)
    trials = finished(study) + pruned(study)
    if len(trials) < args.trials:
        return None
    best = min(finished(study), key=lambda t: (infeasible(t), t.value))
    seeds = seeds_of(SELECTION, args.held_out)
    found = evaluator.measure(schedule_of(best), seeds)
    fd = score(found.features, evaluator.reference.search)
    return {
        "arm": arm,
        "seed": seed,
        "finished": len(finished(study)),
        "passes": passes_spent(trials, config.evaluation),
        "searched": best.value,
        "fd": fd.value,
        "se": fd.se,
        "alignment": found.alignment,
        "variance": float(np.mean(jackknife(trials))),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("simulate", "search"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=None)
    parser.add_argument("--seeds", type=int, default=None, help="8 simulations, 3 searches")
    parser.add_argument(
        "--trials", type=int, default=None, help="40 of simulations, 30 of searches"
    )
    parser.add_argument("--rungs", type=int, nargs="+", default=[40, 100], help="of searches")
    parser.add_argument("--held-out", type=int, default=400, help="images of the best trial")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--run", type=Path, default=Path("runs/noise"))
    args = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    simulate = args.what == "simulate"
    args.trials = args.trials or (40 if simulate else 30)
    if not simulate and "true" in (args.arms or ()):
        parser.error("--arms true: of a search nobody knows the true variances")
    arms = args.arms or (list(ARMS) if simulate else ["one", "jackknife", "rung"])
    end = time.monotonic() + 3600 * args.hours
    rows = []
    for seed in range(args.seeds or (8 if simulate else 3)):
        for arm in arms:
            if time.monotonic() > end:
                break
            if simulate:
                row = {"arm": arm, "seed": seed, "fd": simulated(arm, seed, args.trials)}
            else:
                row = searched(args, arm, seed, end)
            if row:
                rows.append(row)
                print(json.dumps(row), flush=True)
    args.run.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows, indent=1)
    write_whole(args.run / f"{args.what}.json", lambda p: p.write_text(text + "\n"))
    first = {r["seed"]: r["fd"] for r in rows if r["arm"] == arms[0]}
    for arm in arms:
        mine = {r["seed"]: r["fd"] for r in rows if r["arm"] == arm and r["seed"] in first}
        apart = np.array([value - first[seed] for seed, value in mine.items()])
        if len(apart) > 1:
            error = apart.std(ddof=1) / np.sqrt(len(apart))
            print(
                f"{arm}: {np.mean(list(mine.values())):.2f} over {len(apart)} seeds, "
                f"{apart.mean():+.2f} ± {error:.2f} beside {arms[0]}"
            )


if __name__ == "__main__":
    main()
