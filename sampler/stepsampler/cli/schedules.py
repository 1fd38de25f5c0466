"""The commands of `stepsample` that make, show, compare and translate schedules."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepsampler.cli.golden import learned_noise
from stepsampler.cli.options import (
    SD,
    ScheduleName,
    cost_of,
    model_of_schedule,
    numbers_of,
    open_by_statistics,
    with_loading,
    with_model_of_schedule,
)
from stepsampler.errors import UserError, counted, note
from stepsampler.presets import names, nearest, open_schedule, preset
from stepsampler.schedule import BY_STATISTICS, SOLVERS, FreeU
from stepsampler.support.files import write_text
from stepsampler.support.options import DEFAULTS, ModelOptions

if TYPE_CHECKING:
    from stepsampler.noise import Noise
    from stepsampler.schedule import Schedule, StatisticsSpec

app = typer.Typer()

Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Solver = Annotated[str, typer.Option(help="ddim, dpmpp-midpoint, unipc-bh2, …")]
Order = Annotated[int, typer.Option(min=1, help="Highest order of the solver.")]
Scale = Annotated[float, typer.Option(help="Guidance scale; 1 is none.")]
Lossy = Annotated[bool, typer.Option("--lossy", help="Leave out what the tool cannot hold.")]
WholeTimesteps = Annotated[
    bool,
    typer.Option("--whole-timesteps", help="Move the levels to whole timesteps of the model."),
]
StockSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Of the stock pipeline of a model.")
]
PRESETS_LEGEND = (
    "passes: network calls an image; ~: the file cannot hold all that was published (show NAME "
    "says what); d: for a model distilled to few steps; -: of a model that cannot be sampled here"
)


@app.command()
def presets(pattern: Annotated[str, typer.Argument(help="Part of the names.")] = "") -> None:
    """List the published schedules: name, model, steps, passes, source."""
    found = [preset(name) for name in names() if pattern.lower() in name]
    if not found:
        raise UserError(f"no preset has {pattern!r} in its name; {nearest(pattern)}")
    width = max(len(p.name) for p in found)
    typer.echo(f"{'name':<{width}}   {'model':<5} steps passes  source")
    for p in found:
        sign = "~" if p.approximate else "d" if p.distilled else " "
        model = p.model if p.sampled else "-"
        typer.echo(
            f"{p.name:<{width}} {sign} {model:<5} "
            f"{p.schedule.num_steps:>5} {p.schedule.passes:>6}  {p.source}"
        )
    typer.echo(PRESETS_LEGEND)


@app.command()
@with_model_of_schedule
def make(
    grid: Annotated[
        str, typer.Argument(help="A placement such as linspace, a preset or a schedule file.")
    ],
    out: Out,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of steps.")] = None,
    solver: Annotated[str | None, typer.Option(help="Default dpmpp-midpoint.")] = None,
    order: Annotated[int | None, typer.Option(min=1, help="Highest order; default 2.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Default 7.5, or that of the preset.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="LO,HI", help="Guided where LO < sigma <= HI only.")
    ] = None,
    free_u: Annotated[
        str | None, typer.Option("--free-u", metavar="B1,B2,S1,S2", help="Free-U, or off.")
    ] = None,
    free_u_from: Annotated[
        int, typer.Option("--free-u-from", min=0, help="First step with Free-U.")
    ] = 0,
    analytic: Annotated[
        str | None,
        typer.Option(metavar="GAIN,AT", help="Analytic first step, such as 1,0.5: half-way."),
    ] = None,
    golden_noise: Annotated[
        str | None, typer.Option(metavar="NPNET", help="File of an NPNet, or off.")
    ] = None,
    lower_order_final: Annotated[
        bool, typer.Option("--lower-order-final", help="Lower orders over the last steps.")
    ] = False,
    statistics: Annotated[
        str | None, typer.Option(help="By which dpm-v3 or a preset goes: a file or folder.")
    ] = None,
    model: ModelOptions = SD,
    whole_timesteps: WholeTimesteps = False,
) -> None:
    """Write a schedule: a placement with any number of steps, or another schedule, changed.

    Steps too early for the order, and the one onto sigma 0, get a lower one.
    """
    from stepsampler.grids import PLACEMENTS, guide, make_schedule

    interval = _interval(guidance_interval)
    noise: Noise | None = None
    if free_u_from and free_u in (None, "off"):
        raise UserError("--free-u-from is of --free-u, which is not given")
    gains = None if free_u in (None, "off") else FreeU(*numbers_of("--free-u", free_u, 4))
    file = grid.endswith(".json")
    if file or (grid in names() and (grid not in PLACEMENTS or steps is None)):
        given = {"--steps": steps, "--solver": solver, "--order": order}
        given |= dict.fromkeys(model.flags_beside(SD), True)
        given |= {"--analytic": analytic, "--lower-order-final": lower_order_final or None}
        given["--statistics"] = statistics if file else None
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} is fixed by {'' if file else 'the preset '}{grid}")
        plan = open_by_statistics(grid, statistics)
        scale = max(step.guidance_scale for step in plan.steps)
        if guidance_scale is not None or interval:
            plan = guide(plan, scale if guidance_scale is None else guidance_scale, interval)
    else:
        if steps is None:
            raise UserError(f"--steps is missing: how many steps has {grid}?")
        noise, spec, guidance = model_of_schedule(model)
        if grid == "seed-original" and solver is None and steps <= 10:
            solver = "ddim"  # as that method has it
        first = None
        if analytic is not None:
            gain, fraction = numbers_of("--analytic", analytic, 2)
            if not 0 < fraction < 1:
                raise UserError(f"--analytic: AT must be inside (0, 1), got {fraction:g}")
            first = (gain, fraction)
        solver = _solver(solver)
        if order is not None and order > SOLVERS[solver]:
            raise UserError(f"--order of {solver} is at most {SOLVERS[solver]}, got {order}")
        named = _statistics(solver, statistics)
        plan = make_schedule(
            grid,
            steps,
            noise,
            solver=solver,
            order=order or 2,
            model=spec,
            lower_order_final=lower_order_final,
            analytic=first,
            statistics=named,
        )
        scale = 7.5 if guidance_scale is None else guidance_scale
        if named and guidance_scale is None:
            scale = named.guidance_scale
        plan = replace(guide(plan, scale, interval), guidance=guidance)
    if interval and all(step.guidance_scale == 1 for step in plan.steps):
        note(f"no step lies in the interval {guidance_interval}: none is guided")
    if free_u_from >= plan.num_steps:
        raise UserError(
            f"--free-u-from: the last of {counted(plan.num_steps, 'step')} is "
            f"{plan.num_steps - 1}, got {free_u_from}"
        )
    if free_u is not None:
        steps_of = enumerate(plan.steps)
        new = [replace(step, free_u=gains if i >= free_u_from else None) for i, step in steps_of]
        plan = replace(plan, steps=tuple(new))
    if whole_timesteps:
        plan = _whole(plan, noise)
    if golden_noise is not None:
        plan = replace(plan, golden_noise=learned_noise(golden_noise))
    plan.save(out)
    typer.echo(f"{out}: {cost_of(plan)}")


@app.command()
@with_loading
def show(
    schedule: Annotated[
        str, typer.Argument(help="A preset's name or a schedule file; with --steps a model.")
    ],
    plot: Annotated[Path | None, typer.Option(help="Draw it: a PNG, SVG or PDF file.")] = None,
    steps: StockSteps = None,
    scheduler: Annotated[
        str | None, typer.Option(help="One of diffusers, in place of the model's.")
    ] = None,
    model: ModelOptions = DEFAULTS,
) -> None:
    """Print a schedule, or what the stock pipeline of a model does in so many steps.

    That is: its sigmas after every shift, the timesteps and what the network is told, guidance as w
    of uncond + w (cond - uncond), passes; found by calling it without its network's work.
    """
    from stepsampler.cli.display import describe, draw
    from stepsampler.cli.stock import check_options, describe_run

    check_options(steps, schedule, [*model.flags, *(["--scheduler"] if scheduler else [])])
    if steps is not None:
        if plot:
            raise UserError("--plot draws a schedule, not what a pipeline does")
        from stepsampler.models.stock.run import stock_run

        typer.echo(describe_run(stock_run(replace(model, id=schedule), steps, scheduler)))
        return
    if plot and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot must end with .png, .svg or .pdf, got {str(plot)!r}")
    plan = open_schedule(schedule)
    typer.echo(describe(plan))
    if plot:
        draw(plan, plot)


@app.command()
@with_loading
def diff(
    first: ScheduleName,
    second: ScheduleName,
    steps: StockSteps = None,
    model: ModelOptions = DEFAULTS,
) -> None:
    """Print what differs, step by step; exit with 0 if nothing does, else with 1.

    Where a schedule comes from (its provenance) is not compared. With --steps each may be a model
    instead, MODEL or MODEL:SCHEDULER: what its stock pipeline does then, as show prints it.
    """
    from stepsampler.cli.display import differences
    from stepsampler.cli.stock import check_options, compare, rows

    if steps is None:
        check_options(steps, first, model.flags)
        lines = differences(open_schedule(first), open_schedule(second))
    else:
        lines = compare(rows(first, steps, model), rows(second, steps, model))
    for line in lines:
        typer.echo(line)
    raise typer.Exit(1 if lines else 0)


@app.command(name="export")
def export_schedule(
    schedule: ScheduleName,
    to: Annotated[
        str, typer.Option(help="comfyui, comfyui-workflow, sd.cpp or diffusers:SCHEDULER.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: print it.")] = None,
    shift: Annotated[float, typer.Option(min=0.01, help="Of a flow scheduler.")] = 1.0,
    scheduler_config: Annotated[
        Path | None, typer.Option(help="Of a flow scheduler that is kept as it is (JSON).")
    ] = None,
    mu: Annotated[float | None, typer.Option(help="Its dynamic shift.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The file that a workflow loads.")] = None,
    for_version: Annotated[
        str | None, typer.Option(help="Of sd.cpp, for guidance per step: 97d2990 or mended.")
    ] = None,
    whole_timesteps: WholeTimesteps = False,
    lossy: Lossy = False,
) -> None:
    """Translate a schedule for another tool.

    What the tool cannot hold is refused, or with --lossy left out and listed on stderr.
    """
    from stepsampler.formats import export

    plan = open_schedule(schedule)
    if whole_timesteps:
        plan = _whole(plan, None)
    text = export(
        plan,
        to,
        lossy=lossy,
        shift=shift,
        scheduler_config=_config(scheduler_config),
        mu=mu,
        checkpoint=checkpoint,
        version=for_version,
    )
    _say(text.lost, text.notes)
    if out:
        write_text(out, text.text)
    else:
        typer.echo(text.text, nl=False)


@app.command(name="import")
@with_model_of_schedule
def import_schedule(
    file: Annotated[Path, typer.Argument(help="What the other tool takes, or a PNG of ComfyUI.")],
    source: Annotated[str, typer.Option("--from", help="comfyui, sd.cpp or diffusers.")],
    out: Out,
    model: ModelOptions = SD,
    solver: Solver = "dpmpp-midpoint",
    order: Order = 2,
    guidance_scale: Scale = 7.5,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave out what a schedule does not hold.")
    ] = False,
) -> None:
    """Make a schedule from another tool's text, or from a ComfyUI workflow.

    Solver, order and guidance are taken where the text says nothing of them. What else in it
    changes the images is refused, or with --lossy left out and listed on stderr.
    """
    from stepsampler.formats import Target, reading
    from stepsampler.formats.files import text_of

    noise, spec, guidance = model_of_schedule(model)
    target = Target(noise, spec, _solver(solver), order, guidance_scale, guidance)
    try:
        found = reading(text_of(file), source, target, lossy=lossy)
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
    _say(found.lost, found.notes)
    plan = found.schedule
    plan.save(out)
    typer.echo(f"{out}: {cost_of(plan)}")


def _say(lost: Sequence[str], notes: Sequence[str]) -> None:
    for line in (*(f"left out: {what}" for what in lost), *notes):
        print(f"stepsample: {line}", file=sys.stderr)  # noqa: T201


def _whole(plan: "Schedule", noise: "Noise | None") -> "Schedule":
    """At the whole timesteps of a model, or of the well-known one that it was made for."""
    from stepsampler.grids import whole_timesteps
    from stepsampler.noise import noise_of

    noise = noise or noise_of(plan)
    if noise is None:
        raise UserError("--whole-timesteps: those of the schedule's model are not known")
    try:
        moved = whole_timesteps(plan, noise)
    except UserError as error:
        raise UserError(f"--whole-timesteps: {error}") from error
    said = "Moved to whole timesteps; any score is that of the schedule before."
    notes = [text for text in (plan.provenance.get("note"), said) if text]
    return replace(moved, provenance={**plan.provenance, "note": " ".join(notes)})


def _config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    from stepsampler.formats.common import malformed

    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {malformed(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a scheduler's config is an object, got {type(config).__name__}")
    return config


def _statistics(solver: str, place: str | None) -> "StatisticsSpec | None":
    if (place is not None) != (solver == BY_STATISTICS):
        raise UserError(
            f"--statistics is missing: which does {solver} go by?"
            if place is None
            else f"--statistics is of {BY_STATISTICS}, the solver is {solver}"
        )
    if place is None:
        return None
    from stepsampler.statistics.file import read_spec

    return read_spec(place)


def _solver(name: str | None) -> str:
    name = name or "dpmpp-midpoint"
    if name not in SOLVERS:
        raise UserError(f"--solver must be one of {', '.join(SOLVERS)}, got {name!r}")
    return name


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, high = numbers_of("--guidance-interval", text, 2)
    if not low < high:
        raise UserError(f"--guidance-interval must rise, got {text!r}")
    return low, high
