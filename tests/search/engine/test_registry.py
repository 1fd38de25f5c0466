"""A schedule as a model of MLflow's registry, as a program that knows nothing of us loads it."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from reporting import command

from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsampler.support.pictures import save_png
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import claim_folder

SPACE = {"num_steps": 2, "passes": 4}
PROMPTS, SEEDS = ["a photo of a bag", "a photo of a sneaker"], [3, 4]
PAGE = Path(__file__).parents[3] / "docs" / "running.md"
# After the snippet of the page, which has loaded the model
MORE = """
import json, sys
frame = pandas.DataFrame({"prompt": json.loads(sys.argv[1]), "seed": json.loads(sys.argv[2])})
frame.index = [7, 9]
for row, data in model.predict(frame)["image"].items():
    open(f"{row}.png", "wb").write(data)
import stepsampler, torch
assert not torch.cuda.is_available()
print(stepsampler.__file__, [name for name in ("stepsearch", "optuna") if name in sys.modules])
"""


@pytest.fixture
def folder(tmp_path):
    """A run that has its schedule, of the bundled model."""
    folder = tmp_path / "runs" / "tiny-3-steps"
    claim_folder(folder, StudyConfig.model_validate({"name": "two", "space": SPACE}))
    model = load("tiny")
    make_schedule("power", 2, model.noise, model=model.spec).save(folder / "best.json")
    return folder


def test_a_registered_schedule_makes_its_pictures_in_a_process_of_its_own(folder, tmp_path):
    done = command("sync", folder, "--register", "three-steps")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "models:/three-steps/1"
    again = command("sync", folder, "--register", "three-steps")
    assert again.stdout.splitlines()[-1] == "models:/three-steps/1: it was registered before"

    stored = [p.suffix for p in (folder / "mlartifacts").rglob("*") if p.is_file()]
    assert not {".pkl", ".pickle", ".pt", ".bin"} & set(stored)
    (snippet,) = re.findall(r"  ```python\n(.*?)  ```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = textwrap.dedent(snippet) + MORE
    quiet = {"CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(PROMPTS), json.dumps(SEEDS)],
        cwd=tmp_path,
        env=known | quiet,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    place, _, others = ran.stdout.strip().rpartition(" [")
    assert str(folder / "mlartifacts") in place  # the copy beside the schedule, not ours
    assert others == "]"

    assert Image.open(tmp_path / "bag.png").size == (32, 32)
    model = load("tiny")
    schedule = make_schedule("power", 2, model.noise, model=model.spec)
    (batch,) = generate(model, schedule, PROMPTS, SEEDS, batch_size=2)
    for row, image in zip((7, 9), batch.images, strict=True):
        save_png(image, tmp_path / "own.png")
        ours, theirs = Image.open(tmp_path / "own.png"), Image.open(tmp_path / f"{row}.png")
        both = [torch.tensor(list(p.tobytes()), dtype=torch.int16) for p in (ours, theirs)]
        assert (both[0] - both[1]).abs().max() <= 1  # batches of other sizes


@pytest.mark.parametrize("name", ["a/b", "a:b", "", "a'b"])
def test_a_name_that_mlflow_does_not_take_is_refused(folder, name):
    said = command("sync", folder, "--register", name)
    assert "--register: a model's name has none of / : . % and quotes" in str(said.exception)
    assert not (folder / "mlflow.db").exists()


def test_what_is_not_finished_is_not_registered(folder):
    (folder / "best.json").unlink()
    said = command("sync", folder, "--register", "x")
    assert str(said.exception).endswith("has no best.json: its run is not finished")


def test_a_model_by_code_is_not_registered(tmp_path):
    config = {"name": "own", "space": SPACE, "model": "mine:make"}
    claim_folder(tmp_path, StudyConfig.model_validate(config))
    (tmp_path / "best.json").write_text("{}")
    said = command("sync", tmp_path, "--register", "x")
    assert "the study's model is code, mine:make, which is not copied" in str(said.exception)
