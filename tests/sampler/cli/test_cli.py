import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import ldm
import pipelines
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from stepsampler import FreeU, UserError, load
from stepsampler.cli.app import app
from stepsampler.cli.display import describe
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import MODELS, names, preset

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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\ufeff a bag \n  \na\u2028shirt\n"),
        ("p.csv", "prompt\na bag\na shirt\n"),
        ("p.json", '[{"prompt": "a bag"}, {"prompt": "a shirt"}]'),
    ],
)
def test_generate_and_batch_find_the_same_prompts_in_a_file(schedule, tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    out = ["--prompts", str(file), "--batch-size", "4", "-o"]
    made = CliRunner().invoke(app, [str(schedule), *out, str(tmp_path / "g")])
    assert made.exit_code == 0, made.output
    made = CliRunner().invoke(app, ["batch", str(schedule), *out, str(tmp_path / "b")])
    assert made.exit_code == 0, made.output
    ours, theirs = ([p.read_bytes() for p in sorted((tmp_path / folder).glob(pattern))]
                    for folder, pattern in (("g", "p*.png"), ("b", "0*.png")))  # fmt: skip
    assert len(ours) == 2
    assert ours == theirs


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
        (
            ["{schedule}", "--prompt", "x", "--dtype", "int8"],
            "--dtype must be one of float32, float16",
        ),
        (["{schedule}", "--prompts", "absent.txt"], "stepsample: absent.txt: No such file"),
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


@pytest.mark.parametrize("command", ["generate", "batch", "grid"])
def test_a_file_in_the_place_of_the_folder_is_refused_before_a_model_loads(tmp_path, command):
    (tmp_path / "p.txt").write_text("a bag\n")
    arguments = [command, "seed-sd-4", "--prompts", str(tmp_path / "p.txt"), "--model", "absent"]
    below = tmp_path / "p.txt" / "below.png"
    for out in [below] if command == "grid" else [below, tmp_path / "p.txt"]:
        result = CliRunner().invoke(app, [*arguments, "-o", str(out)])
        assert isinstance(result.exception, UserError)
        assert "must be a folder, but" in str(result.exception)
    (tmp_path / "x.png").mkdir()
    result = CliRunner().invoke(app, ["grid", *arguments[1:], "-o", str(tmp_path / "x.png")])
    assert "--out must name a file, but" in str(result.exception)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="takes no file, of root either")
@pytest.mark.parametrize("command", ["generate", "batch", "grid", "statistics"])
def test_a_place_that_takes_no_file_is_refused_before_a_model_loads(tmp_path, command):
    (tmp_path / "p.txt").write_text("a bag\n")
    arguments = ["--prompts", str(tmp_path / "p.txt"), "--model", "absent"]
    arguments += ["--guidance-scale", "2"] if command == "statistics" else ["seed-sd-4"]
    out = {"grid": "/proc/x.png", "statistics": "/proc/x.safetensors"}.get(command, "/proc/x")
    result = CliRunner().invoke(app, [command, *arguments, "-o", out])
    assert isinstance(result.exception, UserError)
    assert "nothing can be written in '/proc': No such file" in str(result.exception)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("stepsampler", ()),
        ("stepsearch", ()),
        *[("stepsampler", (name,)) for name in ("generate", "make", "batch")],
    ],
)
def test_help_loads_nothing_heavy(package, command):
    """So that it answers in a fraction of a second, of which imports take most."""
    code = (
        f"import sys; sys.argv = ['x', *{command!r}, '--help']\n"
        f"from {package}.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'optuna', 'mlflow', 'transformers', 'numpy', 'scipy',\n"
        "         'matplotlib', 'PIL', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, check=True, capture_output=True, text=True)
    assert int(result.stderr) < 700  # torch alone brings 1,500 more


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_presets_are_listed_with_model_steps_passes_and_source(run):
    lines = run("presets").output.splitlines()
    assert lines[0].split() == ["name", "model", "steps", "passes", "source"]
    assert len(lines) == len(names()) + 1 + 1  # what the marks mean
    assert next(x for x in lines if x.startswith("neuralsolver-sit-5 ")).split()[1] == "-"
    row = next(line.split() for line in lines if line.startswith("seed-unipc-xl-6 "))
    assert row[:4] == ["seed-unipc-xl-6", "sdxl", "7", "12"]  # one of seven steps is analytic
    assert "arXiv 2510.02390" in " ".join(row)
    assert run("presets", "USF").output.count("~") == 7 + 1
    lines = run("presets", "seed-sd-8").output.splitlines()
    assert lines[-2].startswith("seed-sd-8")
    assert lines[-1].startswith("passes: network calls an image; ~: the file cannot hold all")
    row = next(x for x in run("presets", "sdxl-lightning").output.splitlines() if "-4 " in x)
    assert row.split()[:5] == ["sdxl-lightning-4", "d", "sdxl", "4", "4"]
    with pytest.raises(UserError, match="no preset has 'zzz' in its name"):
        run("presets", "zzz")


def test_no_preset_has_the_name_of_a_command(run):
    listed = {command.name or command.callback.__name__ for command in app.registered_commands}
    for group in app.registered_groups:
        commands = group.typer_instance.registered_commands
        listed |= {command.name or command.callback.__name__ for command in commands}
    assert listed == {
        *("generate", "presets", "make", "show", "diff", "export", "import", "batch", "grid"),
        *("statistics", "convert-npnet"),
    }
    assert not listed & set(names())


def test_a_presets_name_stands_wherever_a_schedule_does(run):
    assert "8 steps, 16 passes per image" in run("show", "seed-sd-8").output
    arguments = ["--prompt", "a bag", "--seeds", "1", "-o", "out"]
    assert "1 image of 4 steps, 8 passes each" in run("seed-sd-4", *arguments).output


def test_make_writes_the_seeds_fifty_step_baseline(run):
    run("make", "linspace", "--steps", "50", "--guidance-scale", "7.5", "-o", "x.json")
    made = load("x.json")
    assert made == make_schedule("linspace", 50, SD, guidance_scale=7.5, model=MODELS["sd15"])
    assert [s.order for s in made.steps] == [1, *[2] * 48, 1]


def test_make_takes_solver_order_and_model(run):
    options = ["--solver", "unipc-bh2", "--order", "3", "--guidance-scale", "1", "--model", "sdxl"]
    output = run("make", "karras", "--steps", "5", *options, "-o", "x.json").output
    assert output == "x.json: 5 steps, 5 passes per image\n"
    made = load("x.json")
    assert (made.solver, made.model) == ("unipc-bh2", MODELS["sdxl"])
    assert [s.order for s in made.steps] == [1, 2, 3, 3, 1]
    run("make", "linspace", "--steps", "4", "--model", "flux", "-o", "f.json")
    flux = load("f.json")
    assert (flux.flow, flux.guidance, flux.passes) == (True, "distilled", 4)
    run("make", "linspace", "--steps", "4", "--model", "tiny", "-o", "t.json")
    assert load("t.json").model.family == "stable-diffusion"


def test_a_guidance_interval_is_open_below_and_closed_above(run):
    made = make_schedule("linspace", 10, SD)
    low, high = made.steps[7].sigma, made.steps[3].sigma
    interval = ["--guidance-interval", f"{low},{high}", "--guidance-scale", "5"]
    run("make", "linspace", "--steps", "10", *interval, "-o", "x.json")
    assert [s.guidance_scale for s in load("x.json").steps] == [1] * 3 + [5] * 4 + [1] * 3
    assert load("x.json").passes == 14


def test_make_guides_a_preset_otherwise(run):
    run("make", "seed-unipc-xl-6", "--guidance-scale", "3", "-o", "x.json")
    made, before = load("x.json"), preset("seed-unipc-xl-6").schedule
    assert [s.guidance_scale for s in made.steps] == [1.0] + [3.0] * 6  # the first is analytic
    assert made.sigmas == before.sigmas
    run("make", "seed-sd-8-golden", "--guidance-interval", "0.5,3", "-o", "y.json")
    assert {s.guidance_scale for s in load("y.json").steps} == {1.0, 7.5}
    assert load("y.json").golden_noise.guidance_scale == 7.5


def test_make_switches_free_u_on_and_off(run):
    run("make", "seed-xl-6", "--free-u", "off", "-o", "x.json")
    assert load("x.json") == replace(
        preset("seed-xl-6-plain").schedule, provenance=load("x.json").provenance
    )
    run("make", "seed-sd-7", "--free-u", "1.1,1.1,0.9,0.2", "--free-u-from", "4", "-o", "y.json")
    gains = [step.free_u for step in load("y.json").steps]
    assert gains == [None] * 4 + [FreeU(1.1, 1.1, 0.9, 0.2)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["linspace"], "--steps is missing"),
        (["line", "--steps", "3"], "grid must be one of linspace, trailing, .*, got 'line'"),
        (["linspace", "--steps", "3", "--solver", "rk4"], "--solver must be one of ddim, .*'rk4'"),
        (
            ["linspace", "--steps", "3", "--guidance-interval", "3"],
            "must be 2 numbers with commas between, got '3'",
        ),
        (["linspace", "--steps", "3", "--guidance-interval", "3,1"], "must rise, got '3,1'"),
        (["linspace", "--steps", "3", "--guidance-interval", "nan,1"], "must rise, got 'nan,1'"),
        (["linspace", "--steps", "3", "--guidance-scale", "-1"], "guidance_scale must be >= 0"),
        (["linspace", "--steps", "3", "--model", "absent"], "model 'absent': no such folder"),
        (["seed-sd-8", "--free-u", "on"], "--free-u must be 4 numbers with commas .*, got 'on'"),
        (["seed-sd-8", "--free-u", "1,1,1,-1"], "step 0: s2 of free_u must be > 0, got -1"),
        (["seed-sd-8", "--steps", "3"], "--steps is fixed by the preset seed-sd-8"),
        (["seed-sd-8", "--model", "sdxl"], "--model is fixed by the preset seed-sd-8"),
    ],
)
def test_make_refuses_by_name(run, arguments, message):
    with pytest.raises(UserError, match=message):
        run("make", *arguments, "-o", "x.json")


def test_show_prints_time_lambda_step_and_extras(run):
    lines = run("show", "seed-unipc-xl-6").output.splitlines()
    assert lines[0].endswith("for sdxl (epsilon), decodes alpha-x")
    row = lines[2].split()
    assert row[:8] == ["0", "999.00", "14.6146", "8.4150", "-2.682", "0.552", "off", "1"]
    assert "analytic 1, corrector, noise" in lines[2]
    assert "Free-U 1.2 1.2 0.9 0.2" in lines[-2]
    assert lines[-1].startswith("note: «high resolution» with an analytic first step")
    golden = run("show", "seed-sd-8-golden").output
    assert "golden noise by inversion at sigma 6.7121" in golden
    flow = run("show", "oss-flux-10").output.splitlines()
    assert flow[0].endswith("for flux (flow_prediction), distilled guidance")
    assert flow[2].split()[1] == "996.80"
    assert flow[-2].split()[4:6] == ["0.940", "inf"]  # onto sigma 0
    assert run("show", "ays-svd").output.splitlines()[2].split()[1] == "-"


@pytest.mark.parametrize("name", names())
def test_every_preset_can_be_shown(name):
    plan = preset(name).schedule
    lines = describe(plan).splitlines()
    told = [line for line in lines if line.startswith("guidance: ")]  # of some pipelines only
    assert len(lines) - len(told) == plan.num_steps + 3


def test_show_draws(run, tmp_path):
    run("show", "interval-sdxl", "--plot", "deep/x.png")
    assert Image.open(tmp_path / "deep" / "x.png").size[0] > 400
    run("show", "seed-unipc-xl-6", "--plot", "x.svg")
    assert (tmp_path / "x.svg").read_text().lstrip().startswith("<?xml")
    with pytest.raises(UserError, match=r"--plot must end with \.png, \.svg or \.pdf"):
        run("show", "seed-sd-8", "--plot", "x.doc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "x.svg"]


def test_diff_says_what_differs_and_exits_like_diff(run):
    run("make", "seed-sd-8", "-o", "same.json")
    same = run("diff", "seed-sd-8", "same.json")
    assert (same.exit_code, same.output) == (0, "")
    other = run("diff", "seed-unipc-sd-5", "seed-xl-6-golden")
    assert other.exit_code == 1
    assert "solver 'unipc-bh1' -> 'ddim'" in other.output
    assert "golden_noise None" not in run("diff", "seed-sd-5", "seed-sd-6").output
    assert "step 1: sigma 4.51436627408819 -> 4.518847005558466" in other.output
    assert "step 1: corrector True -> False" in other.output
    longer = run("diff", "seed-sd-6", "seed-sd-5").output.splitlines()
    assert longer[-1] == "step 5: only in the first"
    with pytest.raises(UserError, match="absent: no such file, and no preset 'absent'"):
        run("diff", "absent", "seed-sd-8")


def test_export_and_import_are_inverse(run):
    run("export", "seed-sd-8", "--to", "comfyui", "-o", "x.json")
    run("import", "x.json", "--from", "comfyui", "-o", "y.json")
    assert run("diff", "seed-sd-8", "y.json").exit_code == 0
    printed = run("export", "seed-sd-5", "--to", "sd.cpp").output
    assert printed.startswith("--sampling-method euler --steps 5 --sigmas 14.6146")


def test_export_lists_what_it_left_out_on_stderr(run):
    with pytest.raises(UserError, match="comfyui cannot hold Free-U per step"):
        run("export", "seed-xl-6", "--to", "comfyui")
    result = run("export", "seed-xl-6", "--to", "comfyui", "--lossy")
    assert result.stderr.startswith("stepsample: left out: Free-U per step\n")
    assert json.loads(result.stdout)["KSamplerSelect"] == {"sampler_name": "euler"}


def test_import_names_the_file_that_is_no_text(run, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xd8")
    with pytest.raises(UserError, match="x: neither a text in UTF-8 nor a PNG of ComfyUI"):
        run("import", "x", "--from", "comfyui", "-o", "y.json")


def test_make_takes_a_preset_whose_name_is_a_placement_too(tmp_path):
    run = lambda *words: CliRunner().invoke(app, list(words))  # noqa: E731
    run("make", "ays-sd15", "--guidance-scale", "3", "-o", str(tmp_path / "x.json"))
    assert load(tmp_path / "x.json").num_steps == 10
    run("make", "seed-original", "--steps", "8", "-o", str(tmp_path / "y.json"))
    assert {step.order for step in load(tmp_path / "y.json").steps} == {1}
