"""The best finalists and baselines polished, which are selected beside what they were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import optuna
from numpy.typing import NDArray

from stepsampler.errors import counted
from stepsampler.noise import Noise
from stepsearch.config import StudyConfig
from stepsearch.config.space import OFF, SpaceConfig
from stepsearch.engine.stages.selection import lost, ranked
from stepsearch.engine.stages.stage import RANKING
from stepsearch.engine.stages.tools import Tools
from stepsearch.metrics.distance import Moments
from stepsearch.metrics.protocol import Row, in_parts, part_of
from stepsearch.polish.descent import Room, Settings, StuckError, polish
from stepsearch.polish.knobs import Knobs, numbers_of
from stepsearch.polish.looking import Heard, Seen, Sides, joined
from stepsearch.rivals.baselines import Candidate, gained
from stepsearch.space.likeness import same

PART = "polish_part"  # attribute of the study: images of a job of many plans, at most
WHOLE = 0.01  # of a training timestep, within which a level is at a whole one


def part_of_looks(tools: Tools, study: optuna.Study) -> int:
    """Images of a job of many plans: a batch, or fewer so that each worker of the run has one.

    Noted with the trials when the first polish begins, as what has been measured is recalled in
    the same parts alone: a run that goes on with other workers takes those of its beginning.
    """
    if PART not in study.user_attrs:
        evaluation = tools.config.evaluation
        each = -(-evaluation.images // tools.workers.sharing)
        study.set_user_attr(PART, min(evaluation.batch, each))
    return int(study.user_attrs[PART])


def gains_beside(config: StudyConfig) -> list[float]:
    """Gains with which finalists stand beside what they are: those of the baselines but 1."""
    return [g for g in config.baselines.gains if g != 1] if config.search.polish_gain else []


def with_gains(finalists: Sequence[Candidate], gains: Sequence[float]) -> list[Candidate]:
    """The finalists, and each with each of the gains, but for what one of them is already."""
    found = list(finalists)
    for candidate in gained(finalists, gains):
        if not any(same(candidate.schedule, other.schedule) for other in found):
            found.append(candidate)
    return found


def may_begin(candidate: Candidate, space: SpaceConfig, noise: Noise) -> bool:
    """Whether a baseline has what the box promises of all that it holds, as a polish keeps it.

    That is guidance that is off or constant, levels of its formula or at whole timesteps: tools
    for which a study asks that take nothing else.
    """
    scales = {step.guidance_scale for step in candidate.schedule.steps}
    if space.guidance == OFF and scales != {1.0}:
        return False
    if space.guidance == "constant" and len(scales) > 1:
        return False
    if space.placement != "curve" and candidate.grid != space.placement:
        return False
    if not space.whole_timesteps:
        return True
    times = [noise.timestep(step.sigma) for step in candidate.schedule.steps]
    return all(abs(time - round(time)) < WHOLE for time in times)


def polish_best(
    tools: Tools,
    finalists: Sequence[Candidate],
    known: Sequence[Candidate],
    teacher: NDArray[np.float32],
    part: int | None = None,
) -> tuple[list[Candidate], int]:
    """The best of finalists and baselines, made better where they can be, and the passes of that.

    The best on selection seeds, where they keep the alignment that `teacher` has there, as the
    selection will rank them: the best trial of many was lucky too. What that measures is the
    selection's, which recalls it. Baselines are among them as they can have what the box has not,
    a solver or a gain; where a polish may turn gains, finalists come with those gains as well, and
    of one schedule with several gains one is polished. After each iteration the better half goes
    on. One that cannot be moved, or that no check finds better, has none. `part` is of
    `SharedLooks`.
    """
    if not tools.config.search.polish:
        return [], 0
    own = [c for c in known if not any(same(c.schedule, f.schedule) for f in finalists)]
    rows, _ = ranked(tools, [*finalists, *own], teacher, RANKING)
    most = tools.config.search.alignment_drop
    kin: dict[str, Row[Candidate]] = {}  # of one schedule with several gains the best
    for row in rows:
        if row.candidate.kind == "found" or not lost(teacher, row.measurement.aligned, 0) > most:
            kin.setdefault(row.candidate.plain or row.candidate.name, row)
    rows = list(kin.values())[: tools.config.search.polish]
    if not rows:
        why = "no finalist or baseline has finite images and keeps the alignment"
        tools.report("polish", 1, 1, f"none is polished: {why}")
        return [], 0
    settings, numbers = Settings.of_study(tools.config), numbers_of(tools.config)
    alive = [_Turned(row, Knobs(row.candidate.schedule, **numbers)) for row in rows]
    parts, looks = taking_part(len(rows), settings.iterations), SharedLooks(tools, part)
    most = max(one.knobs.start.passes for one in alive)
    images = images_at_most(settings, len(rows), max(len(one.knobs.names) for one in alive))
    total, done = 100 * sum(parts), 0
    cost = f"at most {tools.versions * most * images:,} network passes"
    tools.report("polish", 0, total, f"{counted(len(rows), 'schedule')}, {cost}")
    ended: list[_Turned] = []
    for iteration, count in enumerate(parts, 1):
        alive.sort(key=lambda one: one.distance)
        ended, alive = [*alive[count:], *ended], alive[:count]
        if parts[iteration : iteration + 1] == [count]:
            continue  # all of them go on
        for one in alive:
            before, new = done, iteration - one.iterations

            def show(at: float, _: str = "", one: _Turned = one, before: int = before) -> None:
                share = max(0.0, at - one.iterations)  # what it had before is recalled
                tools.report("polish", before + round(100 * share), total, "")

            room = room_of(tools, one.row, teacher)
            news = one.go_on(looks, replace(settings, iterations=iteration), show, room)
            done += 100 * new
            tools.report("polish", done, total, f"{one.row.candidate.name}: {news}")
    alive += ended
    return [one.better for one in alive if one.better], sum(one.passes for one in alive)


def taking_part(count: int, iterations: int) -> list[int]:
    """How many of so many schedules have each iteration: always the better half goes on."""
    return [-(-count // 2**i) for i in range(iterations)]


def images_at_most(settings: Settings, count: int, numbers: int) -> int:
    """Of so many schedules together, each of at most so many numbers."""
    once, twice = (replace(settings, iterations=i).most_images(numbers) for i in (1, 2))
    first, *others = taking_part(count, settings.iterations)
    return first * once + sum(others) * (twice - once)


@dataclass
class _Turned:
    """A schedule that is polished, and how far it has come."""

    row: Row[Candidate]
    knobs: Knobs
    iterations: int = 0
    passes: int = 0
    distance: float = inf
    better: Candidate | None = None

    def go_on(
        self,
        looks: "SharedLooks",
        settings: Settings,
        show: Callable[[float, str], None],
        room: Room,
    ) -> str:
        """Up to the last iteration of `settings`; what came of it."""
        start = self.row.candidate
        try:
            came = polish(looks, self.knobs, settings, show, room)
        except StuckError as error:
            self.passes = error.passes
            return f"{error}"
        finally:
            self.iterations = settings.iterations
        self.passes, self.distance = came.passes, came.best.distance
        if not came.best.iteration:
            return "no check was better and kept the alignment"
        name = f"{start.name}, polished"
        self.better = Candidate(name, came.schedule, "found", trial=start.trial)
        return f"{came.checks[0].distance:.3f} -> {self.distance:.3f} on selection seeds"


def room_of(tools: Tools, start: Row[Candidate], teacher: NDArray[np.float32]) -> Room:
    """As much alignment may be lost as the selection allows, or the start has lost already."""
    most = max(tools.config.search.alignment_drop, lost(teacher, start.measurement.aligned, 0))
    return lambda aligned: most - lost(teacher, aligned, 0)


@dataclass(frozen=True)
class SharedLooks:
    """Looks whose images the workers of a run share, `part` of them a job, without it a batch."""

    tools: Tools
    part: int | None = None

    @property
    def reference(self) -> Moments:
        return self.tools.subject.reference.search

    @property
    def versions(self) -> int:
        return self.tools.versions

    def __call__(self, plans: Sequence[Sides], seeds: range, heard: Heard) -> list[Seen | str]:
        """A batch at a time at most where there are many plans, whose first calls are the same; of
        one, parts as the selection measures them, which recalls them."""
        batch = self.tools.config.evaluation.batch
        parts = in_parts(seeds, (self.part or batch) if len(plans) > 1 else part_of(batch))
        found: dict[int, list[Seen | str]] = {}
        for place, seen in self.tools.workers.look(plans, parts):
            found[place] = seen
            heard(len(found) / len(parts))
        return joined([found[place] for place in range(len(parts))])
