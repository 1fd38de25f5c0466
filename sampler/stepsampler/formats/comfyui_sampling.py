"""What ComfyUI calls its samplers and schedulers, and how its node ManualSigmas reads (0.30)."""

import re
from collections.abc import Callable
from math import atan, exp, log, tan
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import beta as beta_distribution

from stepsampler.errors import UserError
from stepsampler.formats.common import Sampler
from stepsampler.noise import EDMSchedule, Noise, NoiseSchedule

SAMPLERS = {
    "euler": Sampler("ddim", 1, True),
    "heun": Sampler("heun", 2, True),
    "ipndm": Sampler("ipndm", 4, True),
    "dpmpp_2m": Sampler("dpmpp-midpoint", 2, False),  # lambda of a flow: -log sigma, not ours
}
# `sampling` of ModelSamplingContinuousEDM -> prediction type and sigma_data; others are not ours
EDM_KINDS = {
    "edm_playground_v2.5": ("epsilon", 0.5),  # sets the scale of SDXL's latents too
    "edm": ("epsilon", 0.5),
    "v_prediction": ("v_prediction", 1.0),
}
ALIASES = {"ddim": "euler"}  # the same from pure noise


def manual_sigmas(text: Any) -> list[float]:
    """The numbers that the node ManualSigmas finds in a text: it knows no exponents.

    Raises:
        UserError: not a text, no number, or a number with an exponent, of which it makes two.
    """
    if not isinstance(text, str):
        raise UserError(f"expected a list of sigmas, got {text!r}")
    odd = re.search(r"\d[eE][-+]?\d+", text)
    if passed := re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE):
        raise UserError(f"ManualSigmas knows no {passed[0]!r}, and passes over it")
    words = re.findall(r"[-+]?(?:\d*\.*\d+)", text)
    try:
        sigmas = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"expected a list of sigmas, {error}") from error
    if odd:
        raise UserError(f"ManualSigmas knows no exponents, and reads {odd[0]!r} as two numbers")
    if not sigmas:
        raise UserError(f"expected a list of sigmas, found no number in {text[:40]!r}")
    return sigmas


class Levels(NamedTuple):
    """The levels of a model as ComfyUI's schedulers see them."""

    size: int
    at: Callable[[float], float]  # sigma of a timestep, in the model's own unit
    entry: Callable[[int], float]  # sigma of the entry of its table
    first: float  # timestep of the highest entry
    last: float  # of the lowest

    @classmethod
    def of(cls, noise: Noise, count: int) -> "Levels":
        """`count` is that of a flow's table: 10,000 for FLUX, 1,000 for others."""
        if isinstance(noise, NoiseSchedule):
            top = noise.last
            return cls(top + 1, noise.sigma, noise.sigma, top, 0)
        if isinstance(noise, EDMSchedule):  # 1,000 log-linear levels, at times of ln(sigma) / 4
            low, high = log(noise.sigma_min), log(noise.sigma_max)
            step = (high - low) / 999
            return cls(1000, lambda t: exp(4 * t), lambda i: exp(low + i * step), high / 4, low / 4)

        def at(time: float) -> float:
            return noise.sigma(noise.last * time)

        lowest = at(1 / count)
        return cls(count, at, lambda i: at((i + 1) / count), 1.0, lowest)  # sigma taken as a time


def scheduler(name: str, n: int, levels: Levels) -> list[float]:
    """The sigmas of a scheduler by its name in ComfyUI, with the last 0; for some not n of them.

    Raises:
        UserError: one that is not read.
    """
    high, low, top = levels.entry(levels.size - 1), levels.entry(0), levels.size - 1
    if name == "normal":
        sigmas = [levels.at(t) for t in np.linspace(levels.first, levels.last, n).tolist()]
    elif name == "sgm_uniform":
        sigmas = [levels.at(t) for t in np.linspace(levels.first, levels.last, n + 1).tolist()[:-1]]
    elif name == "simple":
        sigmas = [levels.entry(top - int(i * (levels.size / n))) for i in range(n)]
    elif name == "ddim_uniform":
        sigmas = [levels.entry(i) for i in range(1, levels.size, max(levels.size // n, 1))][::-1]
    elif name == "beta":
        places = np.rint(beta_distribution.ppf(1 - np.arange(n) / n, 0.6, 0.6) * top)
        sigmas = [levels.entry(int(i)) for i in dict.fromkeys(places)]
    elif name == "karras":
        sigmas = (np.linspace(high ** (1 / 7), low ** (1 / 7), n) ** 7).tolist()
    elif name == "exponential":
        sigmas = np.geomspace(high, low, n).tolist()
    elif name == "kl_optimal":
        sigmas = [tan(angle) for angle in np.linspace(atan(high), atan(low), n).tolist()]
    else:
        raise UserError(
            "scheduler must be one of normal, sgm_uniform, simple, ddim_uniform, beta, karras, "
            f"exponential, kl_optimal, got {name!r}"
        )
    return [*sigmas, 0.0]
