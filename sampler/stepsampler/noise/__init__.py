"""The kinds of noise: timestep <-> sigma of a pretrained model, and what its network is told.

A network F gives x0 = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, eq. 7); `Scales` has
the first three numbers, `network_time` the last.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from stepsampler.errors import UserError
from stepsampler.noise.edm import EDMSchedule, is_continuous
from stepsampler.noise.flow import FlowSchedule
from stepsampler.noise.variance_preserving import NoiseSchedule
from stepsampler.schedule import Schedule

__all__ = ["EDMSchedule", "FlowSchedule", "Noise", "NoiseSchedule"]

Noise = NoiseSchedule | FlowSchedule | EDMSchedule


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config is that of a flow model."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "shift" in config and "beta_schedule" not in config and not is_edm(config)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config has EDM's preconditioning.

    CosineDPMSolverMultistepScheduler (Stable Audio) tells its network an angle; it has a solver's
    order and no choice of the algorithm. EulerDiscreteScheduler has it with continuous timesteps.
    """
    if is_continuous(config):
        return True
    edm = all(config.get(key) for key in ("sigma_data", "sigma_schedule", "rho"))
    return edm and ("solver_order" not in config or "algorithm_type" in config)


def read_noise(config: Mapping[str, Any], tokens: int = 0) -> tuple[Noise, str]:
    """Noise and prediction type of a diffusers scheduler config; `tokens`: see `FlowSchedule`.

    Raises:
        UserError: levels of another kind, or a prediction that does not go with them.
    """
    kind = str(config.get("prediction_type", "epsilon"))
    if is_flow(config):
        return FlowSchedule.from_scheduler_config(config, tokens), "flow_prediction"
    known, edm = PREDICTIONS, is_edm(config)
    noise: Noise
    if edm:
        noise, known = EDMSchedule.from_scheduler_config(config), PREDICTIONS[:2]
    elif "beta_schedule" in config:
        noise = NoiseSchedule.from_scheduler_config(config)
    else:
        name = config.get("_class_name")
        raise UserError(
            f"the model's scheduler{f' ({name})' if name else ''} has neither betas, nor EDM's "
            "preconditioning with a network that is told log sigma, nor the shift of a flow"
        )
    if kind not in known:
        raise UserError(f"prediction_type must be one of {', '.join(known)}, got {kind!r}")
    if config.get("rescale_betas_zero_snr") and kind == "epsilon" and not edm:
        raise UserError(ZERO_SNR_OF_EPSILON)
    value = config.get("timestep_type")
    if value not in ("discrete", "continuous", None):
        raise UserError(
            f"timestep_type of the model's scheduler must be discrete or continuous, got {value!r}"
        )
    if value == "continuous" and not edm:
        raise UserError(
            f"timestep_type {value} of the model's scheduler goes with prediction_type "
            f"v_prediction alone, as of a CosXL, got {kind}: diffusers itself then tells the "
            "network discrete timesteps"
        )
    return noise, kind


PREDICTIONS: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
ZERO_SNR_OF_EPSILON = (
    "zero terminal SNR does not go with a model that predicts epsilon, which in pure noise says "
    "nothing of x0: give --prediction-type v_prediction, or --no-zero-snr, as it was trained"
)


def noise_of(schedule: Schedule) -> Noise | None:
    """The noise levels of the model that a schedule was made for, if they are well-known.

    A schedule for no model in particular is taken as one for Stable Diffusion, if it can be.
    """
    model = schedule.model
    if schedule.flow:
        return FlowSchedule()
    if model and model.sigma_data:
        return EDMSchedule(min(model.noise), max(model.noise), model.sigma_data, None)
    for noise in WELL_KNOWN:
        if model is None:
            return noise if schedule.steps[0].sigma <= noise.sigma_max * 1.001 else None
        if not model.mismatch(noise.spec(model.family, model.prediction_type)):
            return noise
    return None


def timesteps_to_sigmas(noise: Noise, timesteps: Iterable[float]) -> list[float]:
    return [noise.sigma(t) for t in timesteps]


WELL_KNOWN: tuple[NoiseSchedule, ...] = (NoiseSchedule.scaled_linear(), NoiseSchedule.linear())
WELL_KNOWN += tuple(noise.zero_terminal_snr() for noise in WELL_KNOWN)
