"""The README's commands, as they stand there; the demo as --quick."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from stepsampler.grids import make_schedule
from stepsampler.models import load
from stepsearch.config import load_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:].split("#")[0].strip() for line in lines if line.startswith("$ ")]


@pytest.mark.skipif(not (ROOT / ".venv/installed").exists(), reason="scripts/demo would install")
def test_the_commands_in_their_order(tmp_path):
    folder, ran = tmp_path / "run", []
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    for command in commands():
        words = shlex.split(command)
        if words[0] == "scripts/test" or words[:2] == ["stepsearch", "run"]:
            continue  # this, and what the demo calls
        if words[0] == "scripts/demo":
            words = [str(ROOT / "scripts/demo"), "--quick", "--run", str(folder)]
        elif words[0] in ("stepsearch", "stepsample"):
            package = {"stepsearch": "stepsearch", "stepsample": "stepsampler"}[words[0]]
            main = f"from {package}.cli import main; main()"
            extra = ["--run", str(folder)] if words[:2] == ["stepsearch", "export"] else []
            words = [sys.executable, "-c", main, *words[1:], *extra]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        ran.append(command.split()[0])
    assert ran == ["scripts/demo", "stepsearch", "stepsample", "stepsample"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 17

    run_python(tmp_path)


def run_python(folder):
    """The snippet, beside best.json: it leaves an image for each seed."""
    (python,) = blocks("python")
    subprocess.run([sys.executable, "-c", python], cwd=folder, check=True, capture_output=True)
    made = [Image.open(folder / f"bag-{seed}.png") for seed in range(4)]
    assert [image.size for image in made] == [(32, 32)] * 4


def test_the_python_snippet_saves_its_images(tmp_path):
    model = load("tiny")
    make_schedule("power", 2, model.noise, model=model.spec).save(tmp_path / "best.json")
    run_python(tmp_path)


def test_the_studies_that_it_names_are_there_and_valid():
    named = set(re.findall(r"studies/[\w-]+\.toml", TEXT))
    assert len(named) > 1
    for study in named:
        load_config(ROOT / study)


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
