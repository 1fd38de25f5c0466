"""Schedulers of the stock classes and ours, for the tests."""

import logging
from contextlib import contextmanager

import diffusers
import pipelines

from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.scheduler import StepScheduler

SD = NoiseSchedule.scaled_linear()


def stock(prediction_type="epsilon", **options):
    return diffusers.DDIMScheduler(
        **pipelines.BETAS, prediction_type=prediction_type, clip_sample=False, **options
    )


def holding(schedule, prediction_type="epsilon"):
    return StepScheduler.from_config(stock(prediction_type).config, schedule=schedule)


def without_schedule():
    return StepScheduler(**pipelines.BETAS)


def some_schedule(n=5, **options):
    return make_schedule("karras", n, SD, **options)


@contextmanager
def warned():
    """Collects what the scheduler's logger warns of."""
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("stepsampler.scheduler")
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)
