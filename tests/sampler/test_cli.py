import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
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
