"""Our own search, as it is called, under both extractors and with few passes."""

import json
from functools import partial
from pathlib import Path

from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import Workers
from stepsearch.paths import write_whole

SMALL = 100  # images of a trial, below which no rung lies before


def study(calls: int, trials: int, images: int, batch: int) -> dict:
    """A study of so many guided steps; what is named here is what keeps it small."""
    return {
        "name": f"ours-{calls}",
        "model": {"id": "tiny"},  # float32: compiling its sizes of batches would not pay
        "space": {
            "num_steps": calls,
            "passes": 2 * calls,
            "max_steps": min(2 * calls, calls + 2),
            "guidance": "per-step",
            "guidance_scale": (0.2, 5.0),
            "solvers": ("dpmpp-midpoint", "unipc-bh2"),
        },
        "evaluation": {
            "extractor": "texture+lite0",
            "rulers": (),
            "images": images,
            "rungs": (images // 2, images) if images >= SMALL else (),
            "selection_images": 2 * images,
            "test_images": max(8, batch),  # the test is the table's
            "batch_size": batch,
        },
        "baselines": {
            "guidance_scales": (2.0,),
            "orders": (2,),
            "solvers": ("unipc-bh2",),
            "presets": (),
            "rungs": (max(2, images // 5), max(3, images // 2)),
            "test": 1,
        },
        "teacher": {"steps": 20, "images": images},
        "search": {"trials": trials, "finalists": 4},
    }


def search(config: StudyConfig, folder: Path, device: str) -> tuple[Schedule, int]:
    """What it chose, and the passes that it took; a killed search goes on."""
    path = folder / "entry.json"
    if not path.exists():

        def report(stage: str, done: int, total: int, news: str) -> None:
            if news:
                print(f"  {stage}: {news}", flush=True)

        folder.mkdir(parents=True, exist_ok=True)
        with Workers(config, folder, [device]) as workers:
            result = run_study(config, folder, workers, NoTracking(), report)
        plan = result.winner.schedule.to_json()
        entry = json.dumps({"schedule": plan, "passes": result.search_passes})
        write_whole(path, partial(Path.write_text, data=entry, encoding="utf-8"))
    found = json.loads(path.read_text())
    return Schedule.from_json(found["schedule"]), found["passes"]
