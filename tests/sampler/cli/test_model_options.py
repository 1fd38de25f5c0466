"""--variant, --prediction-type and --vae reach each command that samples."""

import json

import pipelines
import pytest
from PIL import Image
from typer.testing import CliRunner

from stepsampler.cli.app import app
from stepsampler.grids import make_schedule
from stepsampler.models import from_pipeline
from stepsearch.cli.app import app as search

V = "v_prediction"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model whose config says epsilon, as a variant alone; a schedule for v; a prompt."""
    path = tmp_path_factory.mktemp("options")
    pipelines.stable_diffusion().save_pretrained(path / "model", variant="fp16")
    model = from_pipeline(pipelines.stable_diffusion(V))
    make_schedule("power", 2, model.noise, guidance_scale=2.0, model=model.spec).save(
        path / "s.json"
    )
    (path / "p.txt").write_text("a fox\n")
    return path


def arguments(command, place, out):
    schedule, prompts = str(place / "s.json"), str(place / "p.txt")
    size = ["--size", "32", "--model", str(place / "model")]
    return {
        "generate": ["generate", schedule, "--prompts", prompts, "-o", str(out), *size],
        "batch": ["batch", schedule, "--prompts", prompts, "-o", str(out), *size],
        "grid": ["grid", schedule, "--prompt", "a fox", "-o", str(out / "g.png"), *size],
        "evaluate": [
            *["evaluate", schedule, "--prompts", prompts, "--images", "2", "--fit", "crop"],
            *["--cache", str(out / "c"), "-o", str(out / "e.json"), *size],
        ],
    }[command]


@pytest.mark.parametrize("command", ["generate", "batch", "grid", "evaluate"])
def test_the_options_reach_every_command(command, place, tmp_path):
    called = arguments(command, place, tmp_path)
    runner, program = CliRunner(), search if command == "evaluate" else app
    plain = runner.invoke(program, arguments(command, place, tmp_path / "plain"))
    assert "made for prediction type 'v_prediction', but the model has 'eps" in str(plain.exception)
    good = runner.invoke(program, [*called, "--prediction-type", V, "--variant", "fp16"])
    assert good.exit_code == 0, (good.output, good.exception)
    for option, value, said in (
        ("--variant", "bf16", "holds its weights as the variants fp16 but not bf16"),
        ("--prediction-type", "v", "must be one of epsilon, v_prediction, sample, got 'v'"),
        ("--vae", str(place / "s.json"), "must be a .safetensors file, by that name"),
    ):
        assert said in str(runner.invoke(program, [*called, option, value]).exception)


def test_the_images_are_those_of_the_model_that_predicts_v(place, tmp_path):
    pipelines.stable_diffusion(V).save_pretrained(tmp_path / "v")
    own = arguments("generate", place, tmp_path / "a")
    theirs = arguments("generate", place, tmp_path / "b")
    theirs[theirs.index("--model") + 1] = str(tmp_path / "v")
    for called in ([*own, "--prediction-type", V], theirs):
        assert CliRunner().invoke(app, called).exit_code == 0
    ours, expected = (Image.open(tmp_path / n / "p0000-s00000.png").tobytes() for n in "ab")
    assert ours == expected


def test_a_batch_that_was_begun_before_the_options_goes_on(place, tmp_path):
    """They are in the model's digest: the manifest does not name them."""
    called = [*arguments("batch", place, tmp_path), "--prediction-type", V]
    assert CliRunner().invoke(app, called).exit_code == 0
    first = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])
    assert set(first["additions"]) == {"config", "vae", "lora", "textual_inversion"}


def test_evaluate_refuses_the_options_where_nothing_is_made(tmp_path):
    (tmp_path / "images").mkdir()
    called = ["evaluate", str(tmp_path / "images"), "--variant", "fp16"]
    said = str(CliRunner().invoke(search, called).exception)
    assert said.startswith("--variant: of the model, but nothing that it makes is scored")
