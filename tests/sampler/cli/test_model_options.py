"""--variant, --prediction-type, --vae and their like reach each command that loads a model."""

import json

import ldm
import pipelines
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from stepsampler import load
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


@pytest.mark.parametrize("program", [app, search])
def test_every_command_that_takes_a_model_says_how_it_is_loaded(program):
    loads = {
        name: {flag for parameter in command.params for flag in parameter.opts}
        for name, command in get_command(program).commands.items()
    }
    loads = {name: flags for name, flags in loads.items() if "--model" in flags}
    assert len(loads) >= 5
    wanted = {"--config", "--variant", "--prediction-type", "--zero-snr", "--size", "--dtype"}
    assert {name: wanted - flags for name, flags in loads.items() if wanted - flags} == {}


@pytest.fixture(scope="module")
def file(place):
    """A single file that says nothing of its noise."""
    path = str(place / "x.safetensors")
    save_file(ldm.checkpoint(pipelines.stable_diffusion()), path)
    pipelines.stable_diffusion().save_pretrained(place / "configs")
    return path, ["--config", str(place / "configs"), "--prediction-type", V, "--zero-snr"]


def test_commands_about_schedules_load_a_single_file_by_its_config(file, tmp_path):
    name, options = file

    def call(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    made, back = tmp_path / "s.json", tmp_path / "back.json"
    call("make", "linspace", "--steps", 3, "--model", name, *options, "-o", made)
    assert load(made).model.prediction_type == V
    assert load(made).model.noise[-1] == pytest.approx(4096, rel=1e-6)  # pure noise
    (tmp_path / "c.txt").write_text("3.0, 1.0, 0.0")
    words = ["--from", "comfyui", "--model", name, *options]
    call("import", tmp_path / "c.txt", *words, "-o", back)
    assert load(back).model == load(made).model
    shown = call("show", name, "--steps", 3, *options).splitlines()
    assert float(shown[2].split()[3]) > 1000  # the first sigma
    assert call("diff", name, name, "--steps", 3, *options) == ""
    said = str(CliRunner().invoke(app, ["show", str(made), *options]).exception)
    assert said == "--config goes with a model and --steps"


def test_a_model_without_files_is_not_loaded_otherwise(tmp_path):
    words = ["make", "linspace", "--steps", "3", "--zero-snr", "-o", str(tmp_path / "s.json")]
    said = str(CliRunner().invoke(app, words).exception)
    assert said == "--zero-snr goes with the files of a model, and sd has none"


def test_evaluate_refuses_the_options_where_nothing_is_made(tmp_path):
    (tmp_path / "images").mkdir()
    called = ["evaluate", str(tmp_path / "images"), "--variant", "fp16"]
    said = str(CliRunner().invoke(search, called).exception)
    assert said.startswith("--variant: of the model, but nothing that it makes is scored")
