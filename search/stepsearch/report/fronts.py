"""Several runs at once as something to report on: the page of `stepsearch front`."""

import shutil
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from stepsampler.errors import counted
from stepsearch.compare.front import Entry, Finished, Front
from stepsearch.report.pictures import FOLDER, read_index, write_index
from stepsearch.report.sources import Contender, Source, Value


def of_front(
    front: Front, runs: Sequence[Finished], left_out: Sequence[str], folder: Path
) -> Source:
    """The page's source. Pictures of the runs are gathered in `folder`, which must stay."""
    metric = str(front.entries[0].schedule.provenance["metric"])
    before: Entry | None = None
    found, rows = [], []
    for entry, beaten in zip(front.entries, front.beaten, strict=True):
        aligned = isfinite(entry.alignment)
        minus = {}
        if before and before.score and entry.score:
            minus[metric] = Value(*entry.score.minus(before.score))
        found.append(
            Contender(
                entry.name,
                "dominated" if beaten else "front",
                entry.schedule.num_steps,
                entry.schedule.passes,
                _images(entry),
                {metric: Value(entry.fd, entry.se)},
                minus,
                Value(entry.alignment) if aligned else None,
                entry.schedule,
            )
        )
        rows.append(
            {
                "name": entry.name,
                "passes": entry.schedule.passes,
                "value": entry.fd,
                "se": entry.se,
                "alignment": entry.alignment if aligned else None,
                "dominated": beaten,
            }
        )
        before = before if beaten else entry
    return Source(
        f"Front of {counted(len(runs), 'run')}",
        f"{front.title}.",
        tuple(found),
        (metric,),
        pictures=folder if _gather(runs, folder) else None,
        front={"metric": metric, "entries": rows, "runs": [_told(run) for run in runs]},
        problems=tuple(f"left out: {sentence}" for sentence in left_out),
    )


def _images(entry: Entry) -> int:
    first, last = entry.schedule.provenance["test_seeds"]
    return int(last) - int(first) + 1


def _told(run: Finished) -> dict[str, Any]:
    known = run.best.provenance
    return {
        "folder": str(run.folder),
        "study": run.config.name,
        "model": run.config.model.id,
        "digest of model, reference and prompts": run.identity,
        "passes of the search": known.get("search_passes"),
        "versions": known.get("versions"),
    }


def _gather(runs: Sequence[Finished], folder: Path) -> bool:
    """The first row of each run's pictures, which is what it ended with, and the last teacher's.

    Returns whether there are any; those of other seeds or prompts than the first ones are left.
    """
    rows: list[dict[str, Any]] = []
    shown: tuple[Any, Any] | None = None
    last: dict[str, Any] | None = None
    for number, run in enumerate(runs):
        index = read_index(run.folder)
        if index is None or not index["rows"]:
            continue
        head = index["seeds"], index["prompts"]
        shown = shown or head
        if head != shown:
            continue
        for place, row in enumerate(index["rows"]):
            if place and row["kind"] != "teacher":
                continue
            files = []
            for file in row["files"]:
                name = f"{number}-{Path(str(file)).name}"
                there = run.folder / FOLDER / str(file)
                if there.is_file():
                    (folder / FOLDER).mkdir(exist_ok=True)
                    shutil.copyfile(there, folder / FOLDER / name)
                files.append(name)
            if row["kind"] == "teacher":
                last = {**row, "files": files}
            else:
                rows.append({**row, "name": f"{run.folder.name}: {row['name']}", "files": files})
    if not rows or shown is None:
        return False
    write_index(folder, *shown, rows + ([last] if last else []))
    return True
