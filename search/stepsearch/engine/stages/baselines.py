"""First stages: the placements of rivals, and the screening of every baseline."""

from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from stepsampler.errors import counted
from stepsampler.schedule import Schedule
from stepsearch.engine.stages.selection import lost
from stepsearch.engine.stages.tools import Tools, is_guided
from stepsearch.metrics.distance import frechet_distance
from stepsearch.metrics.evaluator import SEARCH
from stepsearch.rivals.baselines import Candidate, Placements, baselines, published, wanted, whole


@dataclass(frozen=True)
class Placed:
    """Where the study's rivals put the steps."""

    placements: Placements
    passes: int
    whole: dict[tuple[str, int], Schedule]  # of those that say more than where the steps are


def place_rivals(tools: Tools) -> Placed:
    """Compute what the study's rivals propose for this very model."""
    guidance = tools.subject.guidance
    rivals = wanted(tools.config, guidance)
    if rivals:
        names = ", ".join(dict.fromkeys(name for name, _ in rivals))
        tools.report("rivals", 0, len(rivals), f"{counted(len(rivals), 'placement')} of {names}")
    placed = {}
    for key, found in tools.workers.placements(guidance):
        placed[key] = found
        tools.report("rivals", len(placed), len(rivals), "")
    return Placed(
        {key: found.sigmas for key, found in placed.items()},
        sum(found.passes for found in placed.values()),
        {k: Schedule.from_json(f.schedule) for k, f in placed.items() if f.schedule},
    )


def known_schedules(tools: Tools, placed: Placed) -> list[Candidate]:
    """Every baseline of the study: by formula, by rivals, and as published."""
    config, subject = tools.config, tools.subject
    known = baselines(
        config,
        subject.noise,
        subject.spec,
        placed.placements,
        subject.guidance,
        subject.statistics,
    )
    known += whole(config, placed.whole, subject.guidance)
    return known + published(
        config, subject.spec, subject.guidance, subject.two_networks, subject.statistics
    )


@dataclass(frozen=True)
class Screened:
    """Baselines after their successive halving."""

    best: list[Candidate]  # survivors of the last rung, best first
    all: list[tuple[Candidate, int, float]]  # every baseline, the n it reached, its FD there
    passes: int
    aligned: dict[str, NDArray[np.float32]]  # of each of the best, by name, on the search seeds

    def keeping(self, teacher: NDArray[np.float32], most: float) -> list[Candidate]:
        """The best that lose no more than `most` of the alignment that `teacher` has there."""
        return [c for c in self.best if not lost(teacher, self.aligned[c.name], 0) > most]


def screen(tools: Tools, candidates: list[Candidate]) -> Screened:
    """Successive halving on the search seeds; equal n within a rung.

    Guided and unguided ones are thinned out apart: the bias of FD at small n depends on how varied
    the images are. Gains but the first of the study join at the last rung, of what has come so far:
    they move all schedules alike, so that it is not they which decide about the others.
    """
    options, reference = tools.config.baselines, tools.subject.reference.search

    def keep(ranked: list[Candidate]) -> list[Candidate]:
        return ranked[: max(options.test, ceil(len(ranked) * options.keep))]

    kin: dict[str, Candidate] = {}  # of one name but for their gain, the first
    for c in candidates:
        kin.setdefault(c.plain or c.name, c)
    alive = list(kin.values()) if len(options.rungs) > 1 else list(candidates)
    features: dict[str, list[NDArray[np.float32]]] = {c.name: [] for c in candidates}
    aligned: dict[str, list[NDArray[np.float32]]] = {c.name: [] for c in candidates}
    last: dict[str, tuple[Candidate, int, float]] = {}
    before = passes = 0
    for n in options.rungs:
        if before:
            kinds = ([c for c in alive if is_guided(c) == guided] for guided in (True, False))
            alive = [c for kind in kinds for c in keep(kind)]
        if before and n == options.rungs[-1]:
            kept = {c.plain or c.name for c in alive}
            alive += [c for c in candidates if c not in alive and (c.plain or c.name) in kept]
        jobs = [
            (c.schedule, range(SEARCH + (before if features[c.name] else 0), SEARCH + n))
            for c in alive
        ]
        passes += tools.passes(jobs)
        stage = f"baselines, {n} images"
        tools.report(stage, 0, len(jobs), "")
        for done, (place, found) in enumerate(tools.workers.measure(jobs)):
            features[alive[place].name].append(found.features)
            aligned[alive[place].name].append(found.aligned)
            tools.report(stage, done + 1, len(jobs), "")
        for c in alive:
            whole = np.concatenate(features[c.name])
            finite = np.isfinite(whole).all()
            last[c.name] = (c, n, frechet_distance(whole, reference) if finite else inf)
        alive.sort(key=lambda c: last[c.name][2])
        every = counted(len(alive), "baseline")
        news = f"the best of {every}: {alive[0].name}: {last[alive[0].name][2]:.3f}"
        tools.report(stage, len(jobs), len(jobs), news)
        before = n
    kept_aligned = {c.name: np.concatenate(aligned[c.name]) for c in alive}
    return Screened(alive, list(last.values()), passes, kept_aligned)
