"""Which scheduler of diffusers a stock pipeline is scored under, and whether it fits."""

import copy
import inspect
from typing import Any

import torch

from stepsampler.errors import UserError, note
from stepsampler.models import Model
from stepsampler.noise.edm import is_continuous


def choose_scheduler(model: Model, name: str | None, spacing: str | None) -> Any:
    """The pipeline's own scheduler, or another class of diffusers with the same settings.

    Its grid of timesteps may be spaced otherwise: distilled models want theirs trailing.
    """
    import diffusers

    own = model.pipeline.scheduler
    continuous = is_continuous(own.config)
    if continuous and (name or type(own).__name__) != "EulerDiscreteScheduler":
        raise UserError(
            f"--scheduler: {name or type(own).__name__} is not for this model, whose network is "
            "told ln(sigma) / 4 (timestep_type continuous): EulerDiscreteScheduler tells it so"
        )
    if name is None and spacing is None:
        _note_dropped(own)
        return own
    if name and not (name.endswith("Scheduler") and hasattr(diffusers, name)):
        raise UserError(
            f"--scheduler: diffusers has no {name!r}; give a class such as "
            "DPMSolverMultistepScheduler"
        )
    cls = getattr(diffusers, name) if name else type(own)
    name = cls.__name__
    if spacing and "timestep_spacing" not in inspect.signature(cls.__init__).parameters:
        raise UserError(f"--timestep-spacing: {name} has none, got {spacing!r}")
    spaced = {"timestep_spacing": spacing} if spacing else {}
    try:
        made = cls.from_config(own.config, **spaced)
    except Exception as error:  # whatever such a class raises, a package that it needs included
        raise UserError(f"--scheduler: {name} cannot be made: {_reason(error)}") from error
    flow = model.spec.prediction_type == "flow_prediction"
    if flow != (name.startswith("FlowMatch") or bool(made.config.get("use_flow_sigmas"))):
        kind = "flow" if flow else "variance-preserving"
        raise UserError(f"--scheduler: {name} is not for a {kind} model with these settings")
    edm = model.spec.sigma_data is not None
    if not continuous and edm != name.startswith("EDM"):
        words = "has EDM's preconditioning" if edm else "has none of EDM's preconditioning"
        raise UserError(f"--scheduler: {name} is not for this model, which {words}")
    _note_dropped(made)
    return made


def _note_dropped(scheduler: Any) -> None:
    """Some classes of diffusers keep the option in their config and do nothing with it."""
    known = inspect.signature(type(scheduler).__init__).parameters
    option = "rescale_betas_zero_snr"
    if scheduler.config.get(option) and option not in known and "beta_schedule" in known:
        note(
            f"{type(scheduler).__name__} drops {option} in silence: it does not start from the "
            "pure noise that the model was trained on"
        )


def rehearse(scheduler: Any, steps: int, flow: bool) -> None:
    """Take all steps on zeros, as a pipeline would, so that a misfit shows before any image.

    Raises:
        UserError: the scheduler has no such steps, or is called otherwise than pipelines do.
    """
    trial, x = copy.deepcopy(scheduler), torch.zeros(1, 4, 8, 8)
    try:
        shift = {"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}
        trial.set_timesteps(steps, **shift)
        if not flow:
            x = x * trial.init_noise_sigma
        for timestep in trial.timesteps:
            scaled = x if flow else trial.scale_model_input(x, timestep)
            trial.step(scaled, timestep, x)
        _ = trial.order
    except Exception as error:  # schedulers have no errors of their own
        name = type(scheduler).__name__
        raise UserError(
            f"--stock: {name} cannot take {steps} steps of this pipeline: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
