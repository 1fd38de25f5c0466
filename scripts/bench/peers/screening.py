"""Every placement at its best, guided and unguided, and every preset, at its own guidance too."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from stepsampler.grids import GRIDS, from_sigmas, guide, is_guided
from stepsampler.noise import Noise
from stepsampler.presets import MODELS, Preset, names, preset
from stepsearch.config import StudyConfig
from stepsearch.config.parts import RIVALS
from stepsearch.engine.workers import Workers
from stepsearch.metrics.distance import frechet_distance, frechet_infinity
from stepsearch.metrics.evaluator import SEARCH, SELECTION, seeds_of
from stepsearch.metrics.protocol import measure_all
from stepsearch.rivals.baselines import Candidate, baselines

OTHER_SOLVERS = {"ddim": 1, "dpmpp-midpoint": 3, "unipc-bh2": 3, "deis": 3, "ipndm": 4}
BEST = 3  # placements of either kind that get these, scales in between, and guidance intervals
SHORTLIST, OF_EACH = 8, 3  # the best of all, and at least so many guided and unguided ones
FAR = 1.25  # times the FD of the best of its kind: no second look at a form
LABELS = {"ays-sd15": "AYS (SD1.5 values)", "ays-sdxl": "AYS (SDXL values)"}
LABELS |= {rival: rival.upper() for rival in RIVALS} | {
    "ld3": "LD3-like",
    "amed": "AMED's averages",
}


@dataclass(frozen=True)
class Form:
    """A placement under one solver, with one guidance scale or with guidance of its own."""

    place: str  # of `GRIDS` or RIVALS, with " interval" or not, or "preset " and its name
    scale: str  # "" where guidance is the preset's own
    candidate: Candidate

    @property
    def guided(self) -> bool:
        return any(map(is_guided, self.candidate.schedule.steps))

    @property
    def label(self) -> str:
        """What a row is: published numbers of another model, or a method like the paper's."""
        _, _, rest = self.candidate.name.partition(", ")
        return f"{LABELS.get(self.place, self.place)}{', ' if rest else ''}{rest}"


def screen(config: StudyConfig, workers: Workers, tick: Callable[[], object]) -> list[dict]:
    """Each placement's best guided and unguided forms; the shortlisted ones come first, best first.

    Of the solvers the better one goes on, by FD on the first search seeds; forms that are far worse
    than the best of their kind do not. Guidance scales are chosen by FD-infinity, because the bias
    of FD at small n depends on how varied the images are, which guidance changes: on all search
    seeds, and of the shortlisted on the selection seeds. The best placements of either kind are
    tried under other solvers, the guided ones at scales in between and with the same passes on more
    steps, of which some are guided. Placements that did not go on come last, without an
    FD-infinity. `tick` is called after each measurement.
    """
    subject = workers.describe()
    first, last = config.baselines.rungs
    reference = subject.reference.search
    features: dict[tuple[str, bool], list[np.ndarray]] = {}

    def made(found: Sequence[Form], seeds: range) -> dict[str, np.ndarray]:
        """Features on those seeds and the ones before."""
        again = seeds.start >= SELECTION
        schedules = [form.candidate.schedule for form in found]
        size = config.evaluation.batch_size

        def ticking(*progress: int) -> None:
            tick()

        whole = measure_all(schedules, seeds, size, workers.measure, ticking)
        for form, measured in zip(found, whole, strict=True):
            features.setdefault((form.candidate.name, again), []).append(measured.features)
        return {
            form.candidate.name: np.concatenate(features[form.candidate.name, again])
            for form in found
        }

    def score(form: Form, whole: dict[str, np.ndarray], infinity: bool = True) -> float:
        x = whole[form.candidate.name]
        distance = frechet_infinity if infinity else frechet_distance
        return distance(x, reference) if np.isfinite(x).all() else np.inf

    placed = dict(workers.placements())
    placements = {key: found.sigmas for key, found in placed.items()}
    known = baselines(config, subject.noise, subject.spec, placements)
    forms = [*map(_form, known), *_presets(config)]
    opening, seeds = range(SEARCH, SEARCH + first), range(SEARCH + first, SEARCH + last)
    whole = made(forms, opening)
    early = {form.candidate.name: score(form, whole, False) for form in forms}
    bounds = {
        kind: FAR * min(early[f.candidate.name] for f in forms if f.guided == kind)
        for kind in (True, False)
    }
    better: dict[tuple[str, str], Form] = {}
    for form in sorted(forms, key=lambda f: early[f.candidate.name]):
        better.setdefault((form.place, form.scale), form)
    alive = [f for f in better.values() if early[f.candidate.name] <= bounds[f.guided]]
    whole = made(alive, seeds)
    alive.sort(key=lambda f: score(f, whole))
    best: dict[tuple[bool, str], Form] = {}
    for form in alive:
        if not form.place.startswith("preset "):
            best.setdefault((form.guided, form.place), form)
    guided, unguided = (
        [form for (kind, _), form in best.items() if kind == wanted] for wanted in (True, False)
    )
    others = [
        other_solver(form, solver, order)
        for form in guided[:BEST] + unguided[:BEST]
        for solver, order in OTHER_SOLVERS.items()
    ]
    others += _between(guided[:BEST], config.baselines.guidance_scales)
    others += [new for form in guided[:BEST] for new in _intervals(form, config, subject.noise)]
    new = made(others, opening)
    others = [f for f in others if score(f, new, False) <= bounds[f.guided]]
    whole |= made(others, seeds)
    ranked = sorted([*alive, *others], key=lambda f: score(f, whole))
    ranked = [f for f in ranked if np.isfinite(score(f, whole))]
    short = ranked[:SHORTLIST]
    for kind in (True, False):
        more = [f for f in ranked if f.guided == kind][:OF_EACH]
        short += [f for f in more if f not in short]
    again = made(short, seeds_of(SELECTION, config.evaluation.selection_images))
    selected = {f.candidate.name: score(f, again) for f in short}
    ranked = sorted(short, key=lambda f: selected[f.candidate.name]) + [
        f for f in ranked if f not in short
    ]
    chosen: dict[tuple[str, bool], Form] = {}
    for form in [*ranked, *better.values()]:  # those that did not go on come last
        chosen.setdefault((form.place, form.guided), form)
    rows = []
    for (place, kind), form in chosen.items():
        plan, name = form.candidate.schedule, form.candidate.name
        cost = placed.get((place, plan.num_steps))
        rows.append(
            {
                "placement": place,
                "guided": kind,
                "name": form.label,
                "fd_infinity": score(form, whole) if form in ranked else None,
                "n": last if form in ranked else first,
                "fd": early.get(name),
                "fd_infinity_selection": selected.get(name),
                "passes": cost.passes if cost else 0,  # of computing the placement
                "seconds": cost.seconds if cost else 0.0,
                "schedule": plan.to_json(),
            }
        )
    return rows


def other_solver(form: Form, solver: str, order: int) -> Form:
    """The same sigmas and guidance under another solver."""
    plan = form.candidate.schedule
    *sigmas, final = plan.sigmas
    scales = [step.guidance_scale for step in plan.steps]
    other = from_sigmas(sigmas, final, scales, order, solver, plan.model)
    shape = form.candidate.name.split(", ")[-1]
    name = f"{form.place}, {solver}, order {order}, {shape}"
    return replace(form, candidate=Candidate(name, other, "baseline"))


def _between(forms: Sequence[Form], scales: Sequence[float]) -> Iterator[Form]:
    """At the means of neighbouring scales."""
    ordered = sorted(scales)
    for form in forms:
        start, _, _ = form.candidate.name.rpartition(", ")
        for a, b in pairwise(ordered):
            at, w = f"w {(a + b) / 2:g}", (a + b) / 2
            plan = guide(form.candidate.schedule, w)
            yield Form(form.place, at, Candidate(f"{start}, {at}", plan, "baseline"))


def _intervals(form: Form, config: StudyConfig, noise: Noise) -> Iterator[Form]:
    """As many passes on more steps, an interval of them guided (Kynkaanniemi et al. 2024).

    Every interval at every scale, of placements with a formula for any number of steps.
    """
    plan, passes, place = form.candidate.schedule, config.space.passes, form.place
    if place not in GRIDS:
        return
    order = max(step.order for step in plan.steps)
    for n in range(plan.num_steps + 1, config.space.most_steps + 1):
        *sigmas, final = GRIDS[place](n, noise)
        on = passes - n
        for start, w in product(range(n - on + 1), config.baselines.guidance_scales):
            scales = [w if start <= i < start + on else 1.0 for i in range(n)]
            other = from_sigmas(sigmas, final, scales, order, plan.solver, plan.model)
            name = f"{place} interval, {n} steps, {start + 1}-{start + on} guided, w {w:g}"
            yield Form(f"{place} interval", f"w {w:g}", Candidate(name, other, "baseline"))


def _form(baseline: Candidate) -> Form:
    return Form(baseline.name.split(",")[0], baseline.name.split(", ")[-1], baseline)


def _presets(config: StudyConfig) -> Iterator[Form]:
    """As they were published, at the scales of the study, and without guidance.

    With golden noise, and where some steps are guided and some are not, they stay as they are.
    """
    passes = config.space.passes
    for found in presets_of_its_kind():
        plan = found.schedule
        place = f"preset {found.name}{' (approximate)' if found.approximate else ''}"
        same = len({step.guidance_scale for step in plan.steps if step.calls}) == 1
        plain = same and not plan.raw_noise
        if plan.passes == passes:
            yield Form(place, "", Candidate(f"{place}, as published", plan, "baseline"))
            for w in config.baselines.guidance_scales if plain else ():
                at, guided = f"w {w:g}", guide(plan, w)
                if guided.passes == passes:  # a distilled model's has no guidance and half of them
                    yield Form(place, at, Candidate(f"{place}, {at}", guided, "baseline"))
        elif plain and plan.passes == 2 * passes:
            at = f"{plan.num_steps} unguided steps"
            yield Form(place, at, Candidate(f"{place}, {at}", guide(plan, 1.0), "baseline"))


def presets_of_its_kind() -> list[Preset]:
    """Those for the kind of model that the bundled one is."""
    models = [(found, found.schedule.model) for found in map(preset, names())]
    return [
        found
        for found, model in models
        if model
        and not model.mismatch(MODELS["sd15"])
        and found.schedule.guidance == "classifier-free"
    ]
