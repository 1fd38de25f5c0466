"""What a single file says of its noise, and what is asked for, against the scheduler's config."""

from typing import Any, get_args

from stepsampler.errors import UserError
from stepsampler.models.conditions import WIDER, wider
from stepsampler.noise import ZERO_SNR_OF_EPSILON, is_edm, is_flow
from stepsampler.support.options import ModelOptions, Prediction
from stepsampler.support.weights import EPSILON, Header, V

PREDICTIONS = get_args(Prediction)  # that may be asked for
# What SDXL's EDM checkpoints with a v-prediction leave unsaid (CosXL; as ComfyUI reads them)
COSXL = {"sigma_min": 0.002, "sigma_data": 1.0, "sigma_schedule": "exponential"}


def check_file(options: ModelOptions, header: Header) -> str | None:
    """Refuse from its header what cannot be sampled; returns the prediction type, if known."""
    name, asked = options.id, options.prediction_type
    if header.unsupported:  # before its kind: those of Nunchaku are networks alone, too
        raise UserError(f"model {name!r}: {header.unsupported}")
    if header.kind not in ("a whole checkpoint", "something unknown"):
        way = {
            "a LoRA": "give it with --lora, beside a model",
            "a textual inversion": "give it with --textual-inversion, beside a model",
            "a VAE": "give it with --vae, beside a model",
        }.get(header.kind, "which is not supported as a model")
        raise UserError(f"model {name!r} is {header.kind}: {way}")
    if header.input_channels in WIDER:
        raise UserError(f"model {name!r}: {wider(header.input_channels, 4)}")
    zero = header.zero_snr
    if len(set(zero.values())) > 1 and options.zero_snr is None:
        facts = ", ".join(f"{marker} says {str(on).lower()}" for marker, on in zero.items())
        raise UserError(
            f"model {name!r} contradicts itself on zero terminal SNR: {facts}: give --zero-snr or "
            "--no-zero-snr"
        )
    if asked is not None:
        return asked
    stated = header.predictions
    for marker, said in stated.items():
        if said not in PREDICTIONS:
            raise UserError(f"model {name!r}: its marker {marker} says {said!r}, which is unknown")
    if len(set(stated.values())) > 1:
        facts = ", ".join(f"{marker} says {said}" for marker, said in stated.items())
        raise UserError(f"model {name!r} contradicts itself: {facts}: give --prediction-type")
    if not stated and header.is_sd2 and options.config is None:
        raise UserError(
            f"model {name!r} is Stable Diffusion 2.x and does not say what it predicts: give "
            "--prediction-type epsilon (2-base, 2.1-base: 512 pixels) or v_prediction (2, 2.1: "
            "768 pixels), or --config"
        )
    known = next(iter(stated.values()), None)
    if options.zero_snr is None and any(zero.values()) and known == EPSILON:
        raise UserError(f"model {name!r}: its marker {next(iter(zero))}: {ZERO_SNR_OF_EPSILON}")
    return known


def heed(pipeline: Any, options: ModelOptions, header: Header | None = None) -> None:
    """Have the pipeline's scheduler say what is asked for, or else what the file's markers say.

    Where no config was given, markers overrule the one that diffusers guessed.

    Raises:
        UserError: markers and a given config say different things, or what is asked for is not of
            such a model.
    """
    if header is not None:
        _heed_edm(pipeline, options, header)
    config = pipeline.scheduler.config
    if options.prediction_type is not None:
        _set_prediction(pipeline, options.prediction_type)
    elif header is not None and not is_flow(config):
        marker, said = next(iter(header.predictions.items()), ("", None))
        theirs = config.get("prediction_type", EPSILON)
        if said not in (None, theirs):
            _not_given(options, marker, said, theirs, "--prediction-type")
            _set_prediction(pipeline, str(said))
    if options.zero_snr is not None:
        _set_zero_snr(pipeline, options.zero_snr)
    elif header is not None and "beta_schedule" in config and not is_edm(config):
        marker, zero = next(iter(header.zero_snr.items()), ("", None))
        if zero not in (None, bool(config.get("rescale_betas_zero_snr"))):
            words = ("no zero terminal SNR", "zero terminal SNR")
            _not_given(options, marker, words[zero], words[not zero], "--zero-snr or --no-zero-snr")
            _set_zero_snr(pipeline, zero)


def _not_given(options: ModelOptions, marker: str, said: object, theirs: str, way: str) -> None:
    if options.config is not None:
        raise UserError(
            f"model {options.id!r}: its marker {marker} says {said}, but the config "
            f"{options.config!r} says {theirs}: give {way}, which overrules both"
        )


def _heed_edm(pipeline: Any, options: ModelOptions, header: Header) -> None:
    """Markers of EDM: Playground v2.5's mean of the latents, or the highest sigma of a CosXL."""
    if header.edm is None or is_edm(pipeline.scheduler.config):
        return
    if options.config is not None or header.edm == "edm_mean":
        source = "diffusers takes it for" if options.config is None else "the config says"
        raise UserError(
            f"model {options.id!r}: its marker {header.edm} says a model with EDM's preconditioning"
            f", but {source} another: give a --config whose scheduler is an EDMEulerScheduler or "
            "EDMDPMSolverMultistepScheduler"
        )
    from diffusers import EDMEulerScheduler
    from safetensors import safe_open

    with safe_open(options.id, "pt") as file:
        names = [f"edm_vpred.sigma_{end}" for end in ("min", "max")]
        ends = {n[10:]: float(file.get_tensor(n)) for n in names if n in header.tensors}
    scheduler = EDMEulerScheduler(**{**COSXL, **ends}, prediction_type=V)
    put_scheduler(pipeline, scheduler)


def _set_prediction(pipeline: Any, prediction_type: str) -> None:
    scheduler = pipeline.scheduler
    if is_flow(scheduler.config):
        raise UserError("--prediction-type is not of flow models: they predict the flow")
    changed = type(scheduler).from_config(scheduler.config, prediction_type=prediction_type)
    if changed.config.get("prediction_type") != prediction_type:
        raise UserError(f"a {type(scheduler).__name__} has no prediction type that could be set")
    put_scheduler(pipeline, changed)


def _set_zero_snr(pipeline: Any, zero: bool) -> None:
    """Not all schedulers of diffusers know the option; it says what the model is all the same."""
    scheduler = pipeline.scheduler
    if "beta_schedule" not in scheduler.config or is_edm(scheduler.config):
        raise UserError("--zero-snr and --no-zero-snr are of models with betas")
    config = {**scheduler.config, "rescale_betas_zero_snr": zero}
    defaults = [k for k in config.get("_use_default_values", ()) if k != "rescale_betas_zero_snr"]
    changed = type(scheduler).from_config({**config, "_use_default_values": defaults})
    put_scheduler(pipeline, changed)


def put_scheduler(pipeline: Any, scheduler: Any) -> None:
    """In the place of the pipeline's own; modular pipelines call it otherwise."""
    if hasattr(pipeline, "update_components"):
        pipeline.update_components(scheduler=scheduler)
    else:
        pipeline.register_modules(scheduler=scheduler)
