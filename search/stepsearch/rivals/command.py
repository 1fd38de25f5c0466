"""One call of `stepsearch placement`: a rival's placement for a model, as a schedule file."""

from dataclasses import replace
from pathlib import Path

from stepsampler.errors import UserError, counted
from stepsampler.grids import from_sigmas
from stepsampler.models import check_device, note_cuts, open_model
from stepsampler.schedule import SOLVERS, Schedule
from stepsampler.support.options import ModelOptions
from stepsearch.config.parts import RIVALS
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.evaluator import check_negative_prompt
from stepsearch.rivals.placement import place


def write_placement(
    method: str,
    num_steps: int,
    out: Path,
    options: ModelOptions,
    prompts: str,
    guidance_scale: float,
    solver: str,
    order: int,
    batch_size: int,
    device: str,
    negative_prompt: str = "",
) -> None:
    """Load the model, compute the placement and write a schedule with it.

    Raises:
        UserError: an unknown name, a missing file, or a model that the method does not know.
    """
    for option, value, known in (
        ("the method", method, RIVALS),
        ("--solver", solver, tuple(SOLVERS)),
    ):
        if value not in known:
            raise UserError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    check_device(device)
    texts = [prompt.text for prompt in load_prompts(prompts)]
    model = open_model(options, device)
    check_negative_prompt(model, negative_prompt)
    note_cuts(model, texts, [negative_prompt])
    found = place(model, texts, method, num_steps, guidance_scale, batch_size, negative_prompt)
    *sigmas, final = found.sigmas
    scales = [guidance_scale] * num_steps
    schedule = from_sigmas(sigmas, final, scales, order, solver, model.spec)
    if found.schedule:  # with its own solver and order, that it was learned under
        schedule = Schedule.from_json(found.schedule)
    source = f"{method}, computed for {options.id}"
    schedule = replace(schedule, guidance=model.guidance, provenance={"source": source})
    schedule.save(out)
    print(  # noqa: T201
        f"{out}: {counted(schedule.num_steps, 'step')}, "
        f"{counted(schedule.passes, 'pass')} per image; "
        f"took {found.passes:,} network passes and {found.seconds:.0f} s"
    )
