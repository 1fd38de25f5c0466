"""Every placement at its best, guided and unguided, and every preset as it was published."""

from collections.abc import Callable, Sequence

import numpy as np

from stepsampler.grids import from_sigmas, is_guided
from stepsearch.baselines import Candidate, baselines, published
from stepsearch.config import RIVALS, StudyConfig
from stepsearch.distance import frechet_distance
from stepsearch.evaluate import SEARCH, SELECTION, seeds_of
from stepsearch.workers import Workers

OTHER_SOLVERS = {"ddim": 1, "dpmpp-midpoint": 3, "deis": 3, "ipndm": 4}
SHORTLIST, OF_EACH = 12, 3  # the best of all, and at least so many guided and unguided ones


def screen(config: StudyConfig, workers: Workers, tick: Callable[[], object]) -> list[dict]:
    """Each placement's best guided and unguided forms; the shortlisted ones come first, best first.

    Successive halving within each placement by FD on the search seeds; other solvers on the three
    best. Scales, solvers and orders of the shortlisted are then chosen on the selection seeds, as
    the finalists of our search are. `tick` is called after each measurement.
    """
    subject = workers.describe()
    first, last = config.baselines.rungs
    features: dict[tuple[str, bool], list[np.ndarray]] = {}

    def scores(candidates: Sequence[Candidate], seeds: range) -> dict[str, float]:
        again = seeds.start >= SELECTION
        jobs = [(c.schedule, seeds) for c in candidates]
        for place, found in workers.measure(jobs):
            tick()
            features.setdefault((candidates[place].name, again), []).append(found.features)
        whole = {c.name: np.concatenate(features[c.name, again]) for c in candidates}
        reference = subject.reference.search
        return {
            name: frechet_distance(x, reference) if np.isfinite(x).all() else np.inf
            for name, x in whole.items()
        }

    placements = {key: found.sigmas for key, found in workers.placements().items()}
    presets = published(config, subject.spec)
    known = [*baselines(config, subject.noise, subject.spec, placements), *presets]
    score = scores(known, range(SEARCH, SEARCH + first))
    groups: dict[tuple[str, bool], list[Candidate]] = {}
    for c in sorted(known, key=lambda c: score[c.name]):
        groups.setdefault((c.name.split(",")[0], guided(c)), []).append(c)
    alive = [c for (_, two), group in groups.items() for c in group[: 1 + two]]
    seeds = range(SEARCH + first, SEARCH + last)
    score = scores(alive, seeds)
    alive.sort(key=lambda c: score[c.name])
    best = dict.fromkeys(c.name.split(",")[0] for c in alive if c not in presets)
    others = [
        other_solver(c, solver, order)
        for kind in (True, False)
        for place in list(best)[:3]
        for c in [c for c in alive if c.name.split(",")[0] == place]
        if guided(c) == kind
        for solver, order in OTHER_SOLVERS.items()
    ]
    others = list({c.name: c for c in others}.values())
    scores(others, range(SEARCH, SEARCH + first))
    score |= scores(others, seeds)
    ranked = sorted([*alive, *others], key=lambda c: score[c.name])
    ranked = [c for c in ranked if np.isfinite(score[c.name])]
    short = ranked[:SHORTLIST]
    for kind in (True, False):
        more = [c for c in ranked if guided(c) == kind][:OF_EACH]
        short += [c for c in more if c not in short]
    selected = scores(short, seeds_of(SELECTION, config.evaluation.selection_images))
    ranked = sorted(short, key=lambda c: selected[c.name]) + [c for c in ranked if c not in short]
    chosen: dict[tuple[str, bool], Candidate] = {}
    for c in ranked:
        chosen.setdefault((c.name.split(",")[0], guided(c)), c)
    return [
        {
            "placement": place,
            "guided": kind,
            "name": label(c),
            "preset": c in presets,
            "fd": score[c.name],
            "n": last,
            "fd_selection": selected.get(c.name),
            "schedule": c.schedule.to_json(),
        }
        for (place, kind), c in chosen.items()
    ]


def guided(candidate: Candidate) -> bool:
    return any(is_guided(step) for step in candidate.schedule.steps)


def other_solver(candidate: Candidate, solver: str, order: int) -> Candidate:
    """The same sigmas and guidance under another solver."""
    plan = candidate.schedule
    *sigmas, final = plan.sigmas
    scales = [step.guidance_scale for step in plan.steps]
    other = from_sigmas(sigmas, final, scales, order, solver, plan.model)
    place, shape = candidate.name.split(",")[0], candidate.name.split(", ")[-1]
    return Candidate(f"{place}, {solver}, order {order}, {shape}", other, "baseline")


def label(candidate: Candidate) -> str:
    """What a row is: published numbers of another model, or a method like the paper's."""
    place, comma, rest = candidate.name.partition(",")
    names = {"ays-sd15": "AYS (SD1.5 values)", "ays-sdxl": "AYS (SDXL values)"}
    names |= {rival: rival.upper() for rival in RIVALS} | {"ld3": "LD3-like"}
    if not comma or rest == " approximate":
        return f"{place}, preset for SD1.5{comma}{rest}"
    return f"{names.get(place, place)},{rest}"
