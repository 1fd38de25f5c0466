"""Whether the model at hand can run what is in a box."""

import numpy as np

from stepsampler.errors import UserError
from stepsampler.models import Model
from stepsearch.config.space import SpaceConfig
from stepsearch.space.box import SearchSpace

PROBES = 100  # random points at which a box is tried out


def check_box(config: SpaceConfig, model: Model) -> None:
    """Refuse a box that holds schedules which the model cannot run, before the first image.

    Raises:
        UserError: names the axis; or what is wrong with one of some random points.
    """
    if not model.conditional and config.guidance != "off":
        raise UserError(
            f'space.guidance must be "off", the model is unconditional, got "{config.guidance}"'
        )
    if config.free_u and not hasattr(model.net, "enable_freeu"):
        raise UserError("space.free_u: only U-Nets with skips have Free-U, the model is none")
    highest = model.noise.sigma_max
    for name in ("final_sigma", "sigma_min"):
        interval = getattr(config, name)
        if interval and interval[1] >= highest:
            raise UserError(
                f"space.{name}: high must be below the model's largest sigma, {highest:g}, "
                f"got {interval[1]}"
            )
    if config.boundary and not model.experts.two:
        raise UserError("space.boundary: the model has one network, so there is nothing to part")
    if config.boundary and config.boundary[1] > highest:
        raise UserError(
            f"space.boundary: high must be at most the model's largest sigma, {highest:g}, got "
            f"{config.boundary[1]}"
        )
    known = [found.spec for found in model.statistics]
    space = SearchSpace(config, model.noise, model.spec, "linspace", model.guidance, known=known)
    box = space.distributions
    if not box:
        raise UserError("space: every value is fixed, so there is nothing to search")
    generator = np.random.default_rng(0)
    for _ in range(PROBES):
        point = {name: float(generator.uniform(d.low, d.high)) for name, d in box.items()}
        try:
            model.check(space.schedule(point))
        except UserError as error:
            raise UserError(f"space has schedules that do not fit the model: {error}") from error
