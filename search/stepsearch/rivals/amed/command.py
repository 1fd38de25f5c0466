"""One call of `stepsearch amed`: a predictor trained on a model, and its static form."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from stepsampler.errors import UserError
from stepsampler.models import Model, check_device, note_cuts, open_model
from stepsampler.support.options import ModelOptions
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.evaluator import additions_digest, check_negative_prompt
from stepsearch.rivals.amed.predictor import Setting, save
from stepsearch.rivals.amed.training import Report, Training, bottleneck, new


def train(
    model: Model,
    prompts: Sequence[str],
    setting: Setting,
    trajectories: int,
    batch_size: int,
    out: Path,
    negative_prompt: str = "",
    report: Report = lambda done, loss: None,
    additions: Sequence[str] = (),
) -> Training:
    """Train a predictor, or go on where an earlier call was cut off, and write it to `out`.

    The state lies beside `out` meanwhile; it is removed with the last trajectory.

    Raises:
        UserError: a model that AMED is not for, or the state of another training.
    """
    setting = replace(setting, bottleneck=bottleneck(model, prompts[0]))
    training = new(model, setting, prompts, negative_prompt, additions)
    state = out.with_name(f"{out.name}.state")
    out.parent.mkdir(parents=True, exist_ok=True)
    with model.uncompiled():
        training.run(trajectories, batch_size, state, report)
    about = {
        "model": asdict(model.spec),
        "trajectories": training.done,
        "passes": training.passes,
        "negative_prompt": negative_prompt,
    }
    save(training.predictor, out, about)
    state.unlink(missing_ok=True)
    return training


def write_predictor(
    calls: int,
    out: Path,
    static: Path | None,
    options: ModelOptions,
    prompts: str,
    setting: Setting,
    trajectories: int,
    batch_size: int,
    device: str,
    negative_prompt: str = "",
) -> None:
    """Load the model, train with progress, and write predictor and static form.

    Raises:
        UserError: what `train` refuses, or an `out` that evaluate would not know.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out must end with .safetensors, got {out.name}")
    check_device(device)
    texts = [prompt.text for prompt in load_prompts(prompts)]
    model = open_model(options, device)
    check_negative_prompt(model, negative_prompt)
    note_cuts(model, texts, [negative_prompt])
    additions = additions_digest(model, options.loras, options.textual_inversions)
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=trajectories)
        training = train(
            model,
            texts,
            setting,
            trajectories,
            batch_size,
            out,
            negative_prompt,
            lambda done, loss: progress.update(task, completed=done),
            additions,
        )
    numbers = sum(values.numel() for values in training.predictor.parameters())
    passes = training.student.passes(model)
    console.print(
        f"{out}: {numbers:,} numbers, {calls} calls of the network (the paper's NFE), {passes} "
        f"passes per image; {training.done:,} trajectories took {training.passes:,} network passes"
    )
    if static:
        source = f"AMED (arXiv 2312.00094), averages of {out.name}, trained on {options.id}"
        replace(training.averages(), provenance={"source": source}).save(static)
        console.print(f"{static}: its averages, a schedule")
