"""`stepsearch status`: how far a run is, once or for as long as it changes."""

import time
from contextlib import nullcontext
from pathlib import Path

import optuna
from optuna import Study
from rich.console import Console
from rich.live import Live

from stepsampler.errors import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import RESULT, SETTINGS, STUDY, claimed, is_damaged
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.store.database import open_database
from stepsearch.engine.study import read_study
from stepsearch.report.cards import Data
from stepsearch.report.live.snapshot import FINISHED, snapshot
from stepsearch.report.live.view import ending, line, view
from stepsearch.report.plain import print_json

EVERY = 1.0  # seconds between two looks


def show_status(folder: Path, storage: str | None, watch: bool, as_json: bool) -> None:
    """Print it; with `watch` again whenever it changes, until the run is finished.

    In a terminal the view stays in its place; elsewhere each change is a line.

    Raises:
        UserError: no run is there, or its files or trials cannot be read.
    """
    config, study = _opened(folder, storage)
    most = costs(config)
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def look() -> Data:
        return snapshot(folder, config, study, most)

    if not watch:
        data = look()
        if as_json:
            print_json(data)
            return
        _print(console, data)
        return
    before: object = None
    moving = console.is_terminal and not as_json
    shown = Live(console=console, auto_refresh=False, transient=True) if moving else nullcontext()
    with shown as live:
        while True:
            data = look()
            if isinstance(live, Live):
                live.update(view(data), refresh=True)
            elif before != (now := _changes(data)):
                before = now
                print_json(data, None) if as_json else console.print(line(data))
            if data["state"] == FINISHED:
                break
            time.sleep(EVERY)
            if not study.get_trials(deepcopy=False):  # in memory, until there is a journal
                config, study = _opened(folder, storage)
    if moving:
        _print(console, data)


def _changes(data: Data) -> object:
    """What makes a line of its own."""
    stage, best = data["stage"], data["best"]
    counts = {k: v for k, v in data["trials"].items() if k not in ("running", "waiting")}
    return data["state"], stage and stage["name"], counts, best and best["value"]


def _print(console: Console, data: Data) -> None:
    console.print(f"{data['folder']}: {data['state']}")
    console.print(view(data))
    if data["file"]:
        ended = data["state"] == FINISHED or data["verdict"]
        so = "ended" if ended else "under way again; of an earlier end"
        if not ended and is_damaged(damaged := Path(data["folder"]) / RESULT):
            so = f"{damaged} is damaged, and the same stepsearch run makes it anew; of its end"
        console.print(f"  {so}: {data['file']}")
    if said := ending(data):
        console.print(said)


def _opened(folder: Path, storage: str | None) -> tuple[StudyConfig, Study]:
    """Settings and trials of a run; of one in a database from there alone, if need be."""
    if storage is None or (folder / STUDY).exists():
        config = claimed(folder)
        return config, read_study(folder, config, storage)
    name = folder.stem if folder.suffix == ".toml" else folder.name
    try:
        study = optuna.load_study(study_name=name, storage=open_database(storage))
        return StudyConfig.model_validate(study.user_attrs[SETTINGS]), study
    except KeyError as error:
        raise UserError(f"--storage: no run {name!r} has begun there") from error
