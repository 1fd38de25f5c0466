import subprocess
import sys

import ldm
import pipelines
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.cli import app, parse_seeds
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule

SD = NoiseSchedule.scaled_linear()


@pytest.fixture
def schedule(tmp_path):
    path = tmp_path / "s.json"
    make_schedule("power", 2, SD, guidance_scale=2.0).save(path)
    return path


def test_images_and_a_grid_are_written(schedule, tmp_path):
    out = tmp_path / "out"
    arguments = [str(schedule), "--prompt", "a bag", "--seeds", "0-2,7", "-o", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in out.iterdir())
    assert names == ["grid.png", *(f"p0000-s0000{s}.png" for s in (0, 1, 2, 7))]
    assert Image.open(out / "p0000-s00007.png").size == (32, 32)
    assert "4 images of 2 steps, 4 passes each" in result.output


def test_a_prompt_file_gives_prompt_k_seed_k(schedule, tmp_path):
    (tmp_path / "p.txt").write_text("a bag\n\na shirt\na dress\n")
    out = tmp_path / "out"
    arguments = [str(schedule), "--prompts", str(tmp_path / "p.txt"), "--batch-size", "2"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.glob("p*.png")}
    assert names == {"p0000-s00000.png", "p0001-s00001.png", "p0002-s00002.png"}


def test_an_unconditional_model_takes_seeds_alone(tmp_path):
    pipelines.ddpm().save_pretrained(tmp_path / "model")
    steps = make_schedule("power", 2, NoiseSchedule.scaled_linear(0.001, 0.012))
    steps.save(tmp_path / "s.json")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "s.json"), "--seeds", "3-4", "-o", str(out), "--model"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in out.glob("p*.png")} == {"p0000-s00003.png", "p0000-s00004.png"}
    result = CliRunner().invoke(app, [*arguments, "tiny"])
    assert str(result.exception) == "no prompt: give --prompt or --prompts"


def test_a_checkpoint_with_additions(schedule, tmp_path):
    pipeline = pipelines.stable_diffusion()
    pipeline.save_pretrained(tmp_path / "model")
    save_file(ldm.checkpoint(pipeline), tmp_path / "x.safetensors")
    save_file({"<hat>": torch.zeros(1, 32)}, tmp_path / "hat.safetensors")
    arguments = [str(schedule), "--prompt", "a <hat>", "-o", str(tmp_path / "out")]
    for option, name in {
        "--model": "x.safetensors",
        "--config": "model",
        "--vae": "model",
        "--textual-inversion": "hat.safetensors",
    }.items():
        arguments += [option, str(tmp_path / name)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "out" / "p0000-s00000.png").size == (32, 32)
    result = CliRunner().invoke(app, [*arguments, "--lora", "absent.safetensors:0.5"])
    assert "peft" in str(result.exception) or "no such file" in str(result.exception)


def test_show_prints_every_step(schedule):
    result = CliRunner().invoke(app, ["show", str(schedule)])
    assert "2 steps, 4 passes per image" in result.output
    assert result.output.count("\n") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.json", "--prompt", "x"], "stepsample: absent.json: No such file or directory"),
        (["{schedule}"], "stepsample: no prompt: give --prompt or --prompts"),
        (["{schedule}", "--prompt", "x", "--seeds", "3-1"], "a range must rise, got '3-1'"),
        (["{schedule}", "--prompt", "x", "--dtype", "int8"], "--dtype must be float32, float16"),
        (["{schedule}", "--prompts", "absent.txt"], "--prompts absent.txt"),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_two(schedule, arguments, message):
    arguments = [a.format(schedule=schedule) for a in arguments]
    code = "from stepsampler.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_seeds_are_read_as_written(seeds):
    assert parse_seeds(",".join(map(str, seeds))) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-3", "1--2", "1.5", "1,,2"])
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("package", ["stepsampler", "stepsearch"])
def test_help_loads_nothing_heavy(package):
    code = (
        f"import sys; sys.argv = ['x', '--help']\n"
        f"from {package}.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'optuna', 'mlflow', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
