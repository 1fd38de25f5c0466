"""The teacher: the same model with many steps, the standard for alignment."""

from math import isnan

from stepsampler.errors import percent
from stepsearch.engine.stages.tools import Tools
from stepsearch.metrics.evaluator import SEARCH, seeds_of
from stepsearch.metrics.protocol import Row
from stepsearch.rivals.baselines import Candidate, teacher


def measure_teacher(tools: Tools, first_seed: int, n: int) -> tuple[Row[Candidate], int]:
    """The teacher on the first of a stage's n seeds, and its passes.

    Raises:
        UserError: its images are not finite.
    """
    seeds = seeds_of(first_seed, min(n, tools.config.teacher.images))
    rows, passes = tools.score([make_teacher(tools)], seeds, "teacher")
    if not rows:
        raise tools.not_finite("the teacher's images are")
    alignment = rows[0].measurement.alignment
    if not isnan(alignment):
        stage = "search" if first_seed == SEARCH else "selection"
        tools.say("teacher", f"alignment {percent(alignment)} on {len(seeds)} {stage} seeds")
    return rows[0], passes


def make_teacher(tools: Tools) -> Candidate:
    subject = tools.subject
    return teacher(tools.config, subject.noise, subject.spec, subject.guidance)
