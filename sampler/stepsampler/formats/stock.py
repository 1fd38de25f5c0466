"""Stock diffusers: `timesteps=` or `sigmas=` of a pipeline, in the convention of its scheduler.

    pipe.scheduler = SCHEDULER.from_config(pipe.scheduler.config, **config)
    pipe(prompt, guidance_scale=guidance_scale, **call)  # or true_cfg_scale, as the text has it

EulerDiscrete takes sigmas with the one on which the last step lands, DPMSolverMultistep whole
timesteps, FlowMatchEuler sigmas without the last, 0, which it shifts again and, in some configs,
stretches (`stock_flow`). Nothing else takes a list without changing it. DPMSolverMultistep works
at unit variance: it starts 0.2 % above ours, and a latent that keeps noise is decoded as alpha * x.
StepScheduler is ours: its text is the file `scheduler/scheduler_config.json` of a pipeline.
"""

import json
from collections.abc import Mapping, Sequence
from math import floor, isclose, isfinite
from typing import Any

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.common import Options, Reading, Sampler, Target, Text
from stepsampler.formats.stock_flow import RANDOM, REPLACING, Shifting
from stepsampler.noise import WELL_KNOWN, EDMSchedule, FlowSchedule, Noise, NoiseSchedule, noise_of
from stepsampler.schedule import PURE_NOISE, ModelSpec, Schedule, Step
from stepsampler.support.scales import ALONE, called, sentence

EULER, DPM, FLOW = (
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
OFF = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
# EulerDiscrete's words for EDM's preconditioning with a sigma_data of 1, as of a CosXL
CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
BETAS = (("scaled_linear", 0.00085, 0.012), ("linear", 0.0001, 0.02))  # as WELL_KNOWN has them
FLOW_KEYS = (
    "shift",
    "use_dynamic_shifting",
    "time_shift_type",
    "shift_terminal",
    *REPLACING,
    RANDOM,
)
# What a config may say beside what is read: it has no say where a list is given.
READ = {
    EULER: ("timestep_spacing", "interpolation_type", "timestep_type", *OFF),
    DPM: (
        "algorithm_type",
        "solver_type",
        "solver_order",
        "lower_order_final",
        "final_sigmas_type",
        "timestep_spacing",
    ),
    FLOW: FLOW_KEYS,
}
MODEL = (  # of the model, which is the target
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
    "rescale_betas_zero_snr",
    "steps_offset",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
)
ZERO = "rescale_betas_zero_snr"
CLOSE = 1e-4  # relative; sigmas nearer than that are the same


def export(schedule: Schedule, options: Options) -> Text:
    """The list for the scheduler `name`, or the config of a StepScheduler."""
    name = options.detail
    if name == "StepScheduler":
        return _step_scheduler(schedule)
    if name not in (EULER, DPM, FLOW):
        other = f"not {name!r}" if name else "so give one after a colon"
        raise UserError(
            f"diffusers: of the stock schedulers {EULER}, {DPM} and {FLOW} can be given a schedule "
            f"unchanged, {other}; StepScheduler runs any levels, and guided() all of it"
        )
    if schedule.flow != (name == FLOW):
        kind = "a flow model" if schedule.flow else "a model with betas"
        raise UserError(f"{name} is not for {kind}, for which the schedule was made")
    if isinstance(noise_of(schedule), EDMSchedule) and not (
        name == EULER and _is_continuous(schedule.model)
    ):
        raise UserError(
            f"{name} has no levels of EDM, and diffusers' EDM schedulers change any list that they "
            "are handed; StepScheduler runs the schedule"
        )
    lost = common.losses(schedule)
    if not common.one_guidance(schedule):
        lost.append(f"guidance per step ({common.highest_guidance(schedule):g} instead)")
    export_to = {EULER: _euler, DPM: _dpm}.get(name)
    config, call, more = export_to(schedule) if export_to else _flow(schedule, options)
    family = schedule.model.family if schedule.model else None
    w, (name_of_scale, less) = common.highest_guidance(schedule), called(family, schedule.guidance)
    data = {
        "scheduler": name,
        "config": config,
        "call": {**call, **ALONE.get(family or "", {})},
        name_of_scale: w - less,
    }
    told = sentence(family, schedule.guidance, w)
    return Text(json.dumps(data, indent=2) + "\n", (*lost, *more), (told,) if told else ())


def _step_scheduler(schedule: Schedule) -> Text:
    """Rows and betas, or a flow; guidance and Free-U of each step are `guided`'s."""
    from stepsampler.scheduler import StepScheduler, plan

    config: dict[str, Any] = {"prediction_type": "flow_prediction"}
    if not schedule.flow:
        noise = noise_of(schedule)
        kind = schedule.model.prediction_type if schedule.model else "epsilon"
        if isinstance(noise, EDMSchedule):
            levels = {f"sigma_{k}": getattr(noise, f"sigma_{k}") for k in ("min", "max", "data")}
            config = {**levels, "sigma_schedule": "karras", "rho": 7.0, "prediction_type": kind}
        elif not isinstance(noise, NoiseSchedule):
            raise UserError(
                "the betas of the schedule's model are not known; make the scheduler from the "
                "pipeline's: StepScheduler.from_config(pipe.scheduler.config, schedule=...)"
            )
        else:
            config = {**_betas(noise), "prediction_type": kind, **_zero(schedule)}
    # its rows, not the schedule: what these cannot hold is said by us, not once more by diffusers
    rows = plan(schedule, StepScheduler(**config).config)
    text = StepScheduler(**config, schedule=rows).to_json_string()
    lost = [] if common.one_guidance(schedule) else ["guidance per step"]
    if any(step.free_u for step in schedule.steps):
        lost.append("Free-U per step")
    if any(step.guidance_reuse for step in schedule.steps):
        lost.append("guidance_reuse")
    if schedule.boundary is not None:
        lost.append("boundary")
    if any(step.guidance_rescale for step in schedule.steps):
        lost.append("guidance_rescale")
    return Text(text, tuple(lost))


def _is_continuous(model: ModelSpec | None) -> bool:
    """Whether EulerDiscrete's continuous timesteps are those of a model."""
    said = model and (model.sigma_data, model.prediction_type)
    return said == (1.0, CONTINUOUS["prediction_type"])


def _zero(schedule: Schedule) -> dict[str, bool]:
    """The option of a config, where the schedule's model needs it."""
    noise = noise_of(schedule)
    zero = isinstance(noise, NoiseSchedule) and noise.ends_in_noise
    return {ZERO: True} if zero else {}


Parts = tuple[Mapping[str, object], Mapping[str, Any], list[str]]  # config, call, lost


def _order_one(schedule: Schedule) -> list[str]:
    orders = " ".join(str(step.order) for step in schedule.steps)
    return (
        [] if common.rule(schedule) == "ddim" else [f"the rule {schedule.solver}, orders {orders}"]
    )


def _euler(schedule: Schedule) -> Parts:
    lost = _order_one(schedule)
    if schedule.final_sigma > 0 and schedule.decode != "x":
        lost.append(f"decode {schedule.decode!r}")
    # "trailing" makes it start from noise * sigma; "leading" from noise * sqrt(1 + sigma^2)
    config = {"timestep_spacing": "trailing", **OFF, **_zero(schedule)}
    if _is_continuous(schedule.model):
        config |= CONTINUOUS
    return config, {"sigmas": list(schedule.sigmas)}, lost


def _flow(schedule: Schedule, options: Options) -> Parts:
    lost = _order_one(schedule)
    if schedule.final_sigma > 0:
        lost.append(f"the final sigma {schedule.final_sigma:g} (0 instead)")
    given = options.scheduler_config
    config = {
        "shift": options.shift,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "invert_sigmas": False,
        "stochastic_sampling": False,
        **OFF,
    }
    shifting = Shifting.of(config if given is None else given, options.mu)
    sigmas = shifting.handed([step.sigma for step in schedule.steps])
    if given is None:
        return config, {"sigmas": sigmas}, lost
    kept = {name: given[name] for name in FLOW_KEYS if name in given}
    dynamic = {"mu": options.mu} if given.get("use_dynamic_shifting") else {}
    return kept, {"sigmas": sigmas, **dynamic}, lost


def _dpm(schedule: Schedule) -> Parts:
    noise = noise_of(schedule)
    if not isinstance(noise, NoiseSchedule):
        raise UserError(f"{DPM} takes timesteps, and those of the schedule's model are not known")
    exact = [noise.timestep(step.sigma) for step in schedule.steps]
    whole = [round(t) for t in exact]
    lost = [
        f"the timestep {t:.2f} of step {i} ({n} instead)"
        for i, (step, t, n) in enumerate(zip(schedule.steps, exact, whole, strict=True))
        if not isclose(noise.sigma(n), step.sigma, rel_tol=CLOSE) and step.sigma <= PURE_NOISE
    ]
    if len(set(whole)) < len(whole):
        raise UserError(f"{DPM} takes whole timesteps, of which two steps would get the same")
    ends = "zero" if schedule.final_sigma == 0 else "sigma_min"
    if ends == "sigma_min" and not isclose(schedule.final_sigma, noise.sigma_min, rel_tol=CLOSE):
        ends = "zero"
        lost.append(f"the final sigma {schedule.final_sigma:g} (0 instead)")
    elif ends == "sigma_min" and schedule.decode == "x":
        lost.append("decode 'x' with a final sigma above 0 ('alpha-x' instead)")
    order, lower_last, more = _dpm_order(schedule, ends)
    config = {
        "algorithm_type": "dpmsolver++",
        "solver_type": "heun" if common.rule(schedule) == "dpmpp-heun" else "midpoint",
        "solver_order": order,
        "lower_order_final": lower_last,
        "euler_at_final": False,
        "final_sigmas_type": ends,
        "use_lu_lambdas": False,
        **OFF,
        **_zero(schedule),
    }
    return config, {"timesteps": whole}, lost + more


def _dpm_order(schedule: Schedule, ends: str) -> tuple[int, bool, list[str]]:
    orders = [step.order for step in schedule.steps]
    if common.rule(schedule) in ("ddim", "dpmpp-midpoint", "dpmpp-heun"):
        for order in (1, 2, 3):
            for lower_last in (True, False):
                if dpm_orders(len(orders), order, lower_last, ends) == orders:
                    return order, lower_last, []
    listed = " ".join(map(str, orders))
    return min(2, max(orders)), True, [f"the rule {schedule.solver}, orders {listed}"]


def dpm_orders(n: int, order: int, lower_last: bool, ends: str) -> list[int]:
    """The orders that DPMSolverMultistep runs in n steps."""
    few = lower_last and n < 15
    orders = [min(i + 1, order) for i in range(n)]
    if few and n > 1:
        orders[-2] = min(orders[-2], 2)
    if few or ends == "zero":
        orders[-1] = 1
    return orders


def read(text: str, target: Target) -> Reading:
    """What `export` writes: `scheduler`, `config`, `call` and the scale; or bare timesteps."""
    if not text.lstrip().startswith("{"):
        return Reading(_bare(text, target))
    try:
        data = json.loads(text)
        if isinstance(data, dict) and "_class_name" in data and "scheduler" not in data:
            name = data["_class_name"]
            ours = "holds rows, of which no schedule is made again: keep the schedule's own file"
            stocks = "says nothing of steps; give the list that the pipeline is called with"
            raise UserError(f"the config of {name} {ours if name == 'StepScheduler' else stocks}")
        name, config, call = data["scheduler"], data["config"], data["call"]
        if name not in (EULER, DPM, FLOW):
            raise UserError(f"scheduler must be one of {EULER}, {DPM}, {FLOW}, got {name!r}")
        if "timesteps" in call and "sigmas" in call:
            raise UserError("the call has both sigmas and timesteps: a pipeline takes one of them")
        key = "timesteps" if name == DPM else "sigmas"
        numbers = [float(x) for x in call[key]]
        family = target.model.family if target.model else None
        name_of_scale, less = called(family, target.guidance)
        given = data.get(name_of_scale)
        scale = target.guidance_scale if given is None else float(given) + less
        order = int(config.get("solver_order", 2))
        heun, ends = config.get("solver_type") == "heun", config.get("final_sigmas_type", "zero")
        lower_last = bool(config.get("lower_order_final", True))
        mu = None if call.get("mu") is None else float(call["mu"])
        if ends not in ("zero", "sigma_min"):
            raise UserError(f"final_sigmas_type must be zero or sigma_min, got {ends!r}")
        flow = isinstance(target.noise, FlowSchedule)
        if flow != (name == FLOW):
            kind = "a flow model" if flow else "a model with betas"
            raise UserError(f"{name} is not for {kind}; name another with --model")
        if not numbers:
            raise UserError(f"{key} must not be empty")
        zero = isinstance(target.noise, NoiseSchedule) and target.noise.ends_in_noise
        if bool(config.get(ZERO, zero)) != zero:
            raise UserError(f"{ZERO} is that of another model; name it with --model")
        kind = config.get("timestep_type", "discrete")
        edm = isinstance(target.noise, EDMSchedule)
        if (kind == "continuous") != edm or (edm and not _is_continuous(target.model)):
            raise UserError(f"timestep_type {kind} is that of another model; name it with --model")
        known = ("scheduler", "config", "call", name_of_scale)
        without = ALONE.get(family or "", {})
        more = [key for key, value in without.items() if call.get(key, key) != value]
        call = {key: value for key, value in call.items() if key not in without}
        lost = _unread(name, config, call) + _of_another_model(config, target)
        lost += tuple(f"guidance beside w, by {key} of the call or by default" for key in more)
        lost += tuple(key for key in data if key not in known)
        if name == DPM:  # which makes whole numbers of them
            lost += tuple(
                f"the timestep {t:g}, of which it takes {floor(t)}"
                for t in numbers
                if isfinite(t) and t % 1
            )
            numbers = [float(floor(t)) if isfinite(t) else t for t in numbers]
        shifting = Shifting.of(config, mu) if name == FLOW else None
    except common.MALFORMED as error:
        raise UserError(
            "expected JSON with scheduler, config, call (sigmas or timesteps) and guidance_scale: "
            f"{common.malformed(error)}"
        ) from error
    if name == EULER:
        scales = [scale] * (len(numbers) - 1)
        return Reading(common.build(numbers, scales, Sampler("ddim", 1, True), target), lost)
    scales = [scale] * len(numbers)
    if shifting:
        sigmas = [*shifting.run(numbers), 0.0]
        return Reading(common.build(sigmas, scales, Sampler("ddim", 1, True), target), lost)
    sigmas = _sigmas(numbers, target)
    final = target.noise.sigma_min if ends == "sigma_min" else 0.0
    orders = dpm_orders(len(sigmas), order, lower_last, ends)
    steps = [Step(s, scale, o) for s, o in zip(sigmas, orders, strict=True)]
    solver = "ddim" if order == 1 else "dpmpp-heun" if heun else "dpmpp-midpoint"
    decode = "alpha-x" if final else "x"
    return Reading(Schedule(tuple(steps), final, solver, target.model, decode=decode), lost)


def _unread(name: str, config: Mapping[str, Any], call: Mapping[str, Any]) -> tuple[str, ...]:
    """What else is said, and changes the images."""
    known = (*READ[name], *MODEL)
    lost = [
        f"{key} = {json.dumps(value)} of the config"
        for key, value in config.items()
        if value not in (None, False) and key not in known and not key.startswith("_")
    ]
    if config.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
        lost.append(f"algorithm_type = {json.dumps(config['algorithm_type'])} of the config")
    mine = ("timesteps", "sigmas", "mu", "num_inference_steps")
    return tuple(lost + [f"{key} of the call" for key in call if key not in mine])


def _betas(noise: Noise) -> dict[str, Any]:
    """As a config says them; nothing where they are not well known."""
    if not isinstance(noise, NoiseSchedule) or noise not in WELL_KNOWN:
        return {}
    names = ("beta_schedule", "beta_start", "beta_end")
    return dict(zip(names, BETAS[WELL_KNOWN.index(noise) % len(BETAS)], strict=True))


def _of_another_model(config: Mapping[str, Any], target: Target) -> tuple[str, ...]:
    """What a config says of its model that is not so of the target."""
    lost = []
    kind = config.get("prediction_type")
    if kind and target.model and kind != target.model.prediction_type:
        lost.append(f"prediction_type = {json.dumps(kind)} of another model")
    for name, value in _betas(target.noise).items():
        if config.get(name, value) != value:
            lost.append(f"{name} = {json.dumps(config[name])} of another model")
    return tuple(lost)


def _bare(text: str, target: Target) -> Schedule:
    """The timesteps of a call, from the first to the last; the last step lands on sigma 0.

    Raises:
        UserError: something else, such as sigmas.
    """
    timesteps = common.numbers_from(text, "timesteps")
    if timesteps and timesteps[0] <= target.noise.sigma_max:
        raise UserError(
            f"a bare list is one of timesteps, up to {target.noise.last}, and this one starts at "
            f"{timesteps[0]:g}: sigmas are read with --from comfyui"
        )
    return common.build([*_sigmas(timesteps, target), 0.0], None, None, target)


def _sigmas(timesteps: Sequence[float], target: Target) -> list[float]:
    last = target.noise.last
    for t in timesteps:
        if not 0 <= t <= last:
            raise UserError(f"a timestep must be at least 0 and at most {last}, got {t:g}")
    if isinstance(target.noise, FlowSchedule):  # the network is told 1000 sigma, whatever the shift
        return [t / last for t in timesteps]
    return [target.noise.sigma(t) for t in timesteps]
