"""Toy runs with pages to make of them."""

import torch
from PIL import Image
from running import ToyWorkers, run, settings
from typer.testing import CliRunner

from stepsearch.cli.app import app
from stepsearch.engine.claim import claim_folder
from stepsearch.report.pictures import save_each
from stepsearch.report.summary import write

ROWS = ("found, trial 1", "power, order 2, w 2", "teacher, w 2")


def small(name="toy", trials=12, **evaluation):
    config = settings(trials=trials, algorithm="random")
    of = config.evaluation.model_copy(update=evaluation)
    return config.model_copy(update={"name": name, "evaluation": of})


def toy_run(folder, name="toy", prompts=("a shoe", "a bag"), side=32, **evaluation):
    """A finished run in `folder`, with noise for pictures. Returns its result."""
    result, config, _ = run(folder, small(name, **evaluation))
    write(result, config, folder)
    pictures(folder, prompts, side)
    return result


def toy_runs(folder, prompts=("a shoe", "a bag")):
    """Finished runs of 6 and of 8 passes, whose names look like markup."""
    folders = []
    for steps in (3, 4):
        config, passes = small(trials=6), 2 * steps
        fixed = {"num_steps": steps, "passes": passes, "max_steps": None}
        space = config.space.model_copy(update=fixed)
        known = config.baselines.model_copy(update={"rivals": ()})
        place = folder / f"<b>{passes}"
        changed = {"space": space, "baselines": known}
        result, config, _ = run(place, config.model_copy(update=changed))
        write(result, config, place)
        pictures(place, prompts)
        folders.append(place)
    return folders


def pictures(folder, prompts, side=32, rows=ROWS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    seeds = range(20_000_000, 20_000_000 + len(prompts))
    each = [
        (
            name,
            name.split(",")[0],
            list(
                torch.randint(
                    0, 256, (len(prompts), 3, side, side), dtype=torch.uint8, generator=draw
                )
            ),
        )
        for name in rows
    ]
    save_each(each, folder, seeds, prompts)


def session_of(folder, monkeypatch, show="all", tracking="none"):
    """What `stepsearch run` does, on a toy."""
    from stepsearch.report import session

    class Pooled(ToyWorkers):
        def __init__(self, config, folder, *_):
            super().__init__(config, folder)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(session, "Workers", Pooled)
    grid = Image.new("RGB", (40, 8))
    monkeypatch.setattr(session, "write_pictures", lambda *_: grid.save(folder / "grid.png"))
    session.run_session(small(), folder, ["cpu"], tracking, False, show=show)


def begun(folder):
    """A run that has only said what it is of."""
    folder.mkdir(exist_ok=True)
    claim_folder(folder, small())


def command(*options):
    return CliRunner().invoke(app, [*map(str, options)])
