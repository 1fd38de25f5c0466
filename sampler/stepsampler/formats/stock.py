"""Stock diffusers: `timesteps=` or `sigmas=` of a pipeline, in the convention of its scheduler.

    pipe.scheduler = SCHEDULER.from_config(pipe.scheduler.config, **config)
    pipe(prompt, guidance_scale=guidance_scale, **call)

EulerDiscrete takes sigmas with the one on which the last step lands, DPMSolverMultistep whole
timesteps, FlowMatchEuler sigmas without the last, 0, to which it applies its shift again. Nothing
else takes a list without changing it. DPMSolverMultistep works at unit variance: it starts 0.2 %
above ours, and a latent that keeps noise is decoded as alpha * x. StepScheduler is ours: its text
is the file `scheduler/scheduler_config.json` of a pipeline's folder.
"""

import json
from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.common import Sampler, Target, Text
from stepsampler.noise import FlowSchedule, NoiseSchedule, noise_of
from stepsampler.schedule import Schedule, Step

EULER, DPM, FLOW = (
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
OFF = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
BETAS = {  # of Stable Diffusion, and of DDPM and DiT
    NoiseSchedule.scaled_linear(): ("scaled_linear", 0.00085, 0.012),
    NoiseSchedule.linear(): ("linear", 0.0001, 0.02),
}
CLOSE = 1e-4  # relative; sigmas nearer than that are the same


def export(schedule: Schedule, name: str | None, shift: float) -> Text:
    """The list for the scheduler `name`, or the config of a StepScheduler."""
    if name == "StepScheduler":
        return _step_scheduler(schedule)
    if name not in (EULER, DPM, FLOW):
        raise UserError(
            f"diffusers: of the stock schedulers {EULER}, {DPM} and {FLOW} can be given a schedule "
            f"unchanged, not {name!r}; StepScheduler runs any"
        )
    if schedule.flow != (name == FLOW):
        kind = "a flow model" if schedule.flow else "a model with betas"
        raise UserError(f"{name} is not for {kind}, for which the schedule was made")
    lost = common.losses(schedule)
    if not common.one_guidance(schedule):
        lost.append(f"guidance per step ({common.highest_guidance(schedule):g} instead)")
    export_to = {EULER: _euler, DPM: _dpm}.get(name)
    config, call, more = export_to(schedule) if export_to else _flow(schedule, shift)
    data = {
        "scheduler": name,
        "config": config,
        "call": call,
        "guidance_scale": common.highest_guidance(schedule),
    }
    return Text(json.dumps(data, indent=2) + "\n", (*lost, *more))


def _step_scheduler(schedule: Schedule) -> Text:
    """Rows and betas, or a flow; guidance and Free-U of each step are `guided`'s."""
    from stepsampler.scheduler import StepScheduler

    config: dict[str, Any] = {"prediction_type": "flow_prediction"}
    if not schedule.flow:
        noise = noise_of(schedule)
        if not isinstance(noise, NoiseSchedule):
            raise UserError(
                "the betas of the schedule's model are not known; make the scheduler from the "
                "pipeline's: StepScheduler.from_config(pipe.scheduler.config, schedule=...)"
            )
        kind = schedule.model.prediction_type if schedule.model else "epsilon"
        names = ("beta_schedule", "beta_start", "beta_end")
        config = {**dict(zip(names, BETAS[noise], strict=True)), "prediction_type": kind}
    text = StepScheduler(**config, schedule=schedule).to_json_string()
    lost = [] if common.one_guidance(schedule) else ["guidance per step"]
    if any(step.free_u for step in schedule.steps):
        lost.append("Free-U per step")
    if any(step.guidance_rescale for step in schedule.steps):
        lost.append("guidance_rescale")
    return Text(text, tuple(lost))


Parts = tuple[Mapping[str, object], Mapping[str, Sequence[float]], list[str]]  # config, call, lost


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
    config = {"timestep_spacing": "trailing", **OFF}
    return config, {"sigmas": list(schedule.sigmas)}, lost


def _flow(schedule: Schedule, shift: float) -> Parts:
    lost = _order_one(schedule)
    if schedule.final_sigma > 0:
        lost.append(f"the final sigma {schedule.final_sigma:g} (0 instead)")
    noise = _flow_noise(shift)
    sigmas = [noise.timestep(step.sigma) / noise.last for step in schedule.steps]
    config = {"shift": shift, "use_dynamic_shifting": False, "shift_terminal": None, **OFF}
    return config, {"sigmas": sigmas}, lost


def _flow_noise(shift: float) -> FlowSchedule:
    if not 0.001 <= shift <= 1000:  # nearer to 0 or infinity, all sigmas would be one
        raise UserError(f"shift must be at least 0.001 and at most 1000, got {shift:g}")
    return FlowSchedule(shift)


def _dpm(schedule: Schedule) -> Parts:
    noise = noise_of(schedule)
    if not isinstance(noise, NoiseSchedule):
        raise UserError(f"{DPM} takes timesteps, and those of the schedule's model are not known")
    exact = [noise.timestep(step.sigma) for step in schedule.steps]
    whole = [round(t) for t in exact]
    lost = [
        f"the timestep {t:.2f} of step {i} ({n} instead)"
        for i, (step, t, n) in enumerate(zip(schedule.steps, exact, whole, strict=True))
        if not isclose(noise.sigma(n), step.sigma, rel_tol=CLOSE)
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


def read(text: str, target: Target) -> Schedule:
    """What `export` writes: `scheduler`, `config`, `call`, `guidance_scale`."""
    try:
        data = json.loads(text)
        name, config, call = data["scheduler"], data["config"], data["call"]
        key = "timesteps" if name == DPM else "sigmas"
        numbers = [float(x) for x in call[key]]
        scale = float(data.get("guidance_scale", target.guidance_scale))
        shift, order = float(config.get("shift", 1.0)), int(config.get("solver_order", 2))
        heun, ends = config.get("solver_type") == "heun", config.get("final_sigmas_type", "zero")
        lower_last = bool(config.get("lower_order_final", True))
    except common.MALFORMED as error:
        raise UserError(
            "expected JSON with scheduler, config, call (sigmas or timesteps) and guidance_scale, "
            f"got {type(error).__name__}: {error}"
        ) from error
    if name not in (EULER, DPM, FLOW):
        raise UserError(f"scheduler must be one of {EULER}, {DPM}, {FLOW}, got {name!r}")
    flow = isinstance(target.noise, FlowSchedule)
    if flow != (name == FLOW):
        kind = "a flow model" if flow else "a model with betas"
        raise UserError(f"{name} is not for {kind}; name another with --model")
    if not numbers:
        raise UserError(f"{key} must not be empty")
    if name == EULER:
        return common.build(numbers, [scale] * (len(numbers) - 1), Sampler("ddim", 1, True), target)
    scales = [scale] * len(numbers)
    if isinstance(target.noise, FlowSchedule):
        noise = _flow_noise(shift)
        for number in numbers:
            if not 0 < number <= 1:
                raise UserError(f"a sigma of a flow must be above 0 and at most 1, got {number:g}")
        sigmas = [noise.sigma(s * noise.last) for s in numbers]
        return common.build([*sigmas, 0.0], scales, Sampler("ddim", 1, True), target)
    sigmas = [target.noise.sigma(t) for t in numbers]
    final = target.noise.sigma_min if ends == "sigma_min" else 0.0
    orders = dpm_orders(len(sigmas), order, lower_last, ends)
    steps = [Step(s, scale, o) for s, o in zip(sigmas, orders, strict=True)]
    solver = "ddim" if order == 1 else "dpmpp-heun" if heun else "dpmpp-midpoint"
    decode = "alpha-x" if final else "x"
    return Schedule(tuple(steps), final, solver, target.model, decode=decode)
