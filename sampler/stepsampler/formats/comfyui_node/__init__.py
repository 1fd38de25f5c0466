"""A node for ComfyUI that runs a schedule file exactly as it is written.

Copy this folder into `ComfyUI/custom_nodes`, schedule files into `ComfyUI/models/schedules`, and
restart. `Step Schedule` gives what SamplerCustomAdvanced takes. GUIDER has the guidance of each
step (unguided ones skip the negative prompt), fractional timesteps where core nodes tell the
network whole ones, and a start at noise * sigma; it refuses a model of another kind than the file
names. SIGMAS and SAMPLER are the file's. Another sampler may take their place, as long as it calls
the network at these sigmas.

The folder works alone, for the rules that ComfyUI has. Where ComfyUI's Python can import
`stepsampler` too, every rule runs, through the same rows and loop as there.
"""

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from math import isclose, isfinite, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import comfy.conds
import comfy.model_sampling as kinds
import comfy.samplers
import folder_paths
import torch

try:
    import stepsampler
except ImportError:
    stepsampler = None  # type: ignore[assignment]

FORMAT = "stepsearch.schedule/1"
FOLDER = "schedules"  # of ComfyUI's models
MAX_BYTES = 1_000_000
OF_SCHEDULE = ("format", "solver", "guidance", "decode", "model", "steps", "final_sigma")
OF_STEP = ("sigma", "guidance_scale", "order", "guidance_rescale", "free_u")
RULES = "ddim dpmpp-midpoint dpmpp-heun exact deis unipc-bh1 unipc-bh2 ipndm heun"
STEPSAMPLER = "(ComfyUI alone cannot: install stepsampler in its Python)"
HIGHEST = 4096.0  # the end of zero terminal SNR, infinite, in files; ComfyUI has 4,519 there
CLOSE = 1e-5  # relative; ComfyUI has sigmas in float32
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
PREDICTIONS = {
    "flow_prediction": kinds.CONST,
    "sample": kinds.X0,
    "v_prediction": kinds.V_PREDICTION,
    "epsilon": kinds.EPS,  # the others but the flow inherit from it
}

PLACES = [str(Path(folder_paths.models_dir) / FOLDER)]
folder_paths.folder_names_and_paths.setdefault(FOLDER, (PLACES, {".json"}))


class Call(NamedTuple):
    """One call of the network."""

    sigma: float
    guidance_scale: float
    guidance_rescale: float
    free_u: dict[str, float] | None


class Plan(NamedTuple):
    """What a schedule file asks for."""

    sigmas: list[float]
    calls: list[Call]  # in the order in which its solver makes them
    sampler: Any  # ComfyUI's
    distilled: bool
    decode: str
    prediction: str | None  # of the model that it was made for
    noise: list[float]


def read(path: str) -> Plan:
    """Read a schedule file; ValueError: it is none, or asks for what cannot be done here."""
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"a schedule has at most {MAX_BYTES:,} bytes")
        text = content.decode("utf-8")
        return _alone(json.loads(text)) if stepsampler is None else _with_stepsampler(text)
    except MALFORMED as error:
        raise ValueError(f"{Path(path).name} cannot be used as a schedule: {error}") from error


def _with_stepsampler(text: str) -> Plan:
    from stepsampler.solvers import tableau

    schedule = stepsampler.Schedule.from_json(text)
    if any(s.time_scale != 1 or s.guidance_reuse or s.repeats for s in schedule.steps):
        raise ValueError("time_scale, guidance_reuse and repeats are not for this node")
    if schedule.boundary is not None:
        raise ValueError("boundary is not for this node: a second network has a sampler of its own")
    rows = tableau(schedule)
    calls = [
        Call(s.sigma, s.guidance_scale, s.guidance_rescale, vars(s.free_u) if s.free_u else None)
        for s in (row.step for row in rows)
        if s.calls
    ]
    model = schedule.model
    return Plan(
        list(schedule.sigmas),
        calls,
        comfy.samplers.KSAMPLER(_runner(rows, schedule.sigmas)),
        schedule.guidance == "distilled",
        schedule.decode,
        _kind(model.prediction_type, model.sigma_data) if model else None,
        list(model.noise) if model else [],
    )


def _runner(rows: Any, sigmas: Any) -> Callable[..., Any]:
    """The loop of stepsampler as one of ComfyUI's sampler functions."""
    from stepsampler.sample import execute

    def run(model: Any, x: Any, given: Any, extra_args: Any, callback: Any, **_: Any) -> Any:
        if not _close(given.tolist(), sigmas, CLOSE):
            raise ValueError(
                "the SAMPLER of a schedule runs all of it: give it the SIGMAS beside it"
            )
        seen: Any = x

        def denoise(x: Any, step: Any) -> Any:
            nonlocal seen
            seen = model(x, x.new_full((len(x),), step.sigma), **extra_args)
            return seen

        generator = torch.Generator().manual_seed(extra_args.get("seed") or 0)

        def draw() -> torch.Tensor:
            return torch.randn(x.shape, generator=generator).to(x)

        draw()  # that is the noise from which the sampler starts
        for i, state in enumerate(execute(denoise, x, rows, draw)):
            if callback is not None:
                callback({"i": i, "x": state, "denoised": seen, "sigma": given[i]})
        return state

    return run


def _alone(data: dict[str, Any]) -> Plan:
    """Without stepsampler: what ComfyUI's own samplers do; anything else is refused by name."""
    if data.get("format") != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}, got {data.get('format')!r}")
    steps = data["steps"]
    more = {key for key in data if key not in (*OF_SCHEDULE, "provenance")}
    more |= {key for step in steps for key in step if key not in OF_STEP}
    if more:
        raise ValueError(f"it has {', '.join(sorted(more))} {STEPSAMPLER}")
    sigmas = [_number(x) for x in (*(step["sigma"] for step in steps), data["final_sigma"])]
    if not steps or any(a <= b for a, b in pairwise(sigmas)) or sigmas[-1] < 0:
        raise ValueError(f"sigmas must fall to 0 or above, got {sigmas}")
    calls = []
    for i, step in enumerate(steps):
        scale = _number(step["guidance_scale"])
        phi, free_u = _number(step.get("guidance_rescale", 0.0)), step.get("free_u")
        if free_u:
            free_u = {name: _number(free_u[name]) for name in ("b1", "b2", "s1", "s2")}
        twice = data["solver"] == "heun" and step["order"] == 2
        calls += [Call(sigma, scale, phi, free_u) for sigma in sigmas[i : i + 1 + twice]]
    model = data.get("model") or {}
    prediction = _kind(model.get("prediction_type"), model.get("sigma_data"))
    orders = [step["order"] for step in steps]
    name = stock_sampler(data["solver"], orders, sigmas[-1], prediction == "flow_prediction")
    return Plan(
        sigmas,
        calls,
        comfy.samplers.sampler_object(name),
        data.get("guidance") == "distilled",
        data.get("decode", "x"),
        prediction,
        [_number(x) for x in model.get("noise", [])],
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def stock_sampler(solver: str, orders: list[int], final_sigma: float, flow: bool) -> str:
    """ComfyUI's sampler that runs these orders of this rule; ValueError: there is none."""
    n = len(orders)
    last = {n - 1} if final_sigma == 0 else set()  # the step onto sigma 0 has order 1 in all
    patterns = {
        "dpmpp_2m": ("dpmpp-midpoint", [1 if i in last else min(i + 1, 2) for i in range(n)]),
        "heun": ("heun", [1 if i in last else 2 for i in range(n)]),
        "ipndm": ("ipndm", [1 if i in last else min(i + 1, 4) for i in range(n)]),
    }
    if set(orders) == {1} and solver in RULES.split():  # each is Euler's at order 1
        return "euler"
    for name, pattern in patterns.items():
        if pattern == (solver, orders) and not (flow and name == "dpmpp_2m"):
            return name
    raise ValueError(f"it asks for {solver} at orders {' '.join(map(str, orders))} {STEPSAMPLER}")


def check_model(plan: Plan, sampling: Any) -> None:
    """Refuse a model of another kind than the schedule was made for; ValueError names it."""
    kind, wanted = _prediction(sampling), plan.prediction
    if wanted is None and kind == "flow_prediction":
        raise ValueError("the model is a flow model: a schedule for it must name one")
    if wanted is not None and kind != wanted:
        raise ValueError(f"the schedule is for {wanted}, but the model has {kind}")
    if plan.prediction == "flow_prediction":
        return
    levels = [float(s) for s in sampling.sigmas]
    found = [levels[round((len(levels) - 1) * k / 4)] for k in range(5)]
    ends = ([min(s, HIGHEST) for s in noise] for noise in (plan.noise, found))
    near = 1e-2 if "sigma_data" in kind else 1e-3  # EDM's table has no entry at a quarter
    if plan.noise and not _close(next(ends), next(ends), near):
        ours, theirs = (", ".join(f"{s:.4g}" for s in noise) for noise in (plan.noise, found))
        raise ValueError(f"the schedule is for sigmas {ours}, but the model has {theirs}")
    if (first := plan.sigmas[0]) > (top := levels[-1]) * 1.001 and top < HIGHEST:
        raise ValueError(f"the first sigma, {first:g}, is above the model's highest, {top:g}")


def _close(a: Any, b: Any, relative: float) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(isclose(x, y, rel_tol=relative) for x, y in pairs)


def _prediction(sampling: Any) -> str:
    names = [name for name, kind in PREDICTIONS.items() if isinstance(sampling, kind)]
    edm = isinstance(sampling, kinds.ModelSamplingContinuousEDM)
    if edm:  # diffusers calls EDM's own network one of epsilon; the one of V is told an angle
        angle = isinstance(sampling, kinds.ModelSamplingContinuousV)
        v = [] if angle or "v_prediction" not in names else ["v_prediction"]
        names = ["epsilon"] if isinstance(sampling, kinds.EDM) else v
    return str(_kind(names[0] if names else type(sampling).__name__, edm and sampling.sigma_data))


def _kind(prediction: str | None, data: float | None) -> str | None:
    return f"{prediction} with sigma_data {data:g}" if data else prediction


def exact(sampling: Any, plan: Plan) -> Any:
    """The model's `model_sampling` with a start, timesteps and an end as in stepsampler."""
    base = type(sampling)
    whole = base.timestep is kinds.ModelSamplingDiscrete.timestep
    final = plan.sigmas[-1]

    class Exact(base):  # type: ignore[misc, valid-type]
        def timestep(self, sigma: Any) -> Any:
            """Fractional: log sigma is linear between whole timesteps, as in `sigma()`."""
            if not whole:
                return super().timestep(sigma)
            levels = self.sigmas.double().clamp(max=HIGHEST).log().cpu()
            log = sigma.double().log().cpu().clamp(levels[0], levels[-1])
            at = torch.searchsorted(levels, log).clamp(1, len(levels) - 1)
            below, above = levels[at - 1], levels[at]
            return (at - 1 + (log - below) / (above - below)).float().to(sigma.device)

        def noise_scaling(self, sigma: Any, noise: Any, latent: Any, *_: Any, **__: Any) -> Any:
            return super().noise_scaling(sigma, noise, latent, False)

        def inverse_noise_scaling(self, sigma: Any, latent: Any) -> Any:
            """A latent in which the schedule leaves noise is decoded as it says."""
            if not (final > 0 and isclose(float(sigma), final, rel_tol=CLOSE)):
                return super().inverse_noise_scaling(sigma, latent)
            return latent if plan.decode == "x" else latent / sqrt(1 + final**2)

    made = copy.deepcopy(sampling)
    made.__class__ = Exact
    return made


class StepGuider(comfy.samplers.CFGGuider):  # type: ignore[misc]
    """Guidance as the schedule has it for each call of the network."""

    def __init__(self, model: Any, plan: Plan) -> None:
        super().__init__(model)
        self.plan = plan
        self.position = 0

    def inner_sample(self, *args: Any, **kwargs: Any) -> Any:
        self.position = 0
        return super().inner_sample(*args, **kwargs)

    def _call(self, sigma: float) -> Call:
        """The next call at this sigma: Heun's method has two at one sigma, of different steps."""
        for i in range(self.position, len(self.plan.calls)):
            if isclose(self.plan.calls[i].sigma, sigma, rel_tol=CLOSE):
                self.position = i + 1
                return self.plan.calls[i]
        raise ValueError(
            f"the sampler calls the network at sigma {sigma:g}, which is none of the schedule's "
            "there; use the SIGMAS and SAMPLER beside the GUIDER"
        )

    def predict_noise(
        self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None
    ) -> Any:
        call = self._call(float(timestep.flatten()[0]))
        options = dict(model_options or {})
        self.cfg = 1.0 if self.plan.distilled else call.guidance_scale
        if self.plan.distilled:
            scale = torch.FloatTensor([call.guidance_scale])
            for cond in self.conds["positive"]:
                cond["model_conds"]["guidance"] = comfy.conds.CONDRegular(scale)
        elif self.cfg != 1 and call.guidance_rescale:
            options["sampler_cfg_function"] = _rescaling(
                call.guidance_rescale, self.inner_model.model_sampling
            )
        if call.free_u:
            _add_free_u(options, call.free_u, self.inner_model.diffusion_model.num_res_blocks[-1])
        return super().predict_noise(x, timestep, options, seed)


def _add_free_u(options: dict[str, Any], values: dict[str, float], blocks: int) -> None:
    """Free-U (Si et al. 2023) where diffusers has it: in the first two levels of the decoder.

    ComfyUI's own node asks for the number of channels instead, and meets other blocks.
    """

    def patch(h: Any, skip: Any, at: dict[str, Any]) -> tuple[Any, Any]:
        level = at["block"][1] // (blocks + 1)
        if level > 1:
            return h, skip
        gain, scale = values[f"b{level + 1}"], values[f"s{level + 1}"]
        half = h.shape[1] // 2
        both, axes = torch.cat([h[:, :half] * gain, h[:, half:]], dim=1), (-2, -1)
        spectrum = torch.fft.fftshift(torch.fft.fftn(skip.float(), dim=axes), dim=axes)
        row, column = skip.shape[-2] // 2, skip.shape[-1] // 2
        spectrum[..., row - 1 : row + 1, column - 1 : column + 1] *= scale
        low = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=axes), dim=axes).real
        return both, low.to(skip.dtype)

    transformer = dict(options.get("transformer_options", {}))
    patches = dict(transformer.get("patches", {}))
    patches["output_block_patch"] = [*patches.get("output_block_patch", []), patch]
    options["transformer_options"] = transformer | {"patches": patches}


def _rescaling(phi: float, sampling: Any) -> Callable[[dict[str, Any]], Any]:
    """Lin et al. 2023, eq. 15 and 16, phi in [0, 1], on what the network predicts: `base` - x0."""

    kind = _prediction(sampling)

    def combine(args: dict[str, Any]) -> Any:
        x, sigma = args["input"], args["sigma"].view(-1, *[1] * (args["input"].ndim - 1))
        v = x / (1 + (sigma / getattr(sampling, "sigma_data", 1.0)) ** 2)
        base = {"sample": 0 * x, "epsilon": x, "flow_prediction": x}.get(kind, v)
        cond, uncond = base - args["cond_denoised"], base - args["uncond_denoised"]
        guided = uncond + args["cond_scale"] * (cond - uncond)
        axes = tuple(range(1, x.ndim))
        ratio = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        return x - base + guided * (phi * ratio + 1 - phi)

    return combine


class StepSchedule:
    """The node."""

    CATEGORY = "sampling/custom_sampling"
    DESCRIPTION = "A schedule file of models/schedules, for SamplerCustomAdvanced."
    RETURN_TYPES = ("SIGMAS", "SAMPLER", "GUIDER")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "schedule": (folder_paths.get_filename_list(FOLDER),),
            },
            "optional": {"negative": ("CONDITIONING",)},
        }

    @classmethod
    def IS_CHANGED(cls, schedule: str, **_: Any) -> float:  # noqa: N802  ComfyUI's name
        return Path(folder_paths.get_full_path_or_raise(FOLDER, schedule)).stat().st_mtime

    def make(
        self, model: Any, positive: Any, schedule: str, negative: Any = None
    ) -> tuple[Any, Any, Any]:
        plan = read(folder_paths.get_full_path_or_raise(FOLDER, schedule))
        sampling = model.get_model_object("model_sampling")
        check_model(plan, sampling)
        network = model.get_model_object("diffusion_model")
        if any(call.free_u for call in plan.calls) and not hasattr(network, "num_res_blocks"):
            raise ValueError(f"{schedule} uses Free-U, which only U-Nets with skips have")
        guided = not plan.distilled and any(call.guidance_scale != 1 for call in plan.calls)
        if guided and negative is None:
            raise ValueError(f"{schedule} has guided steps: connect a negative prompt")
        patched = model.clone()
        patched.add_object_patch("model_sampling", exact(sampling, plan))
        guider = StepGuider(patched, plan)
        guider.inner_set_conds({"positive": positive, **({"negative": negative} if guided else {})})
        return torch.FloatTensor(plan.sigmas), plan.sampler, guider


NODE_CLASS_MAPPINGS = {"StepSchedule": StepSchedule}
NODE_DISPLAY_NAME_MAPPINGS = {"StepSchedule": "Step Schedule"}
