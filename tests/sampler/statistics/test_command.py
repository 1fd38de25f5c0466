from pathlib import Path

import numpy as np
import pytest
from pipelines import FAMILIES, SIZE
from typer.testing import CliRunner

from stepsampler import UserError, load, models
from stepsampler.cli.app import app
from stepsampler.models import load as load_model
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import SD_NOISE, open_schedule
from stepsampler.statistics.file import Statistics, ends_of

SD = NoiseSchedule.scaled_linear()


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Statistics of the bundled model from three trajectories, and a schedule that names them."""
    folder = tmp_path_factory.mktemp("statistics")
    file, plan = folder / "s.safetensors", folder / "v3.json"
    said = run(
        *("statistics", "--guidance-scale", 2, "--prompt", "a coat", "--intervals", 8),
        *("--samples", 3, "--batch-size", 2, "-o", file),
    )
    assert "statistics of guidance scale 2 in 8 intervals" in said
    assert "of the derivatives" in said
    run("make", "linspace", "--steps", 2, "--solver", "dpm-v3", "--statistics", file, "-o", plan)
    return file, plan


def test_statistics_that_no_schedule_goes_by_are_refused(made, tmp_path):
    """They would not be used: tiny has its own beside it, and other schedules take none."""
    other, own = tmp_path / "w3.safetensors", tmp_path / "own.json"
    Statistics(*np.zeros((3, 9, 4, 16, 16)), ends_of(SD), 3.0, 2, "new", SD_NOISE).save(other, {})
    bundled = Path(models.__file__).parents[1] / "bundled" / "tiny" / "statistics.safetensors"
    run(
        *("make", "linspace", "--steps", 2, "--solver", "dpm-v3"),
        "--statistics",
        bundled,
        "-o",
        own,
    )
    run(own, "--prompt", "a coat", "-o", tmp_path / "images")
    given = ("--statistics", other, "--prompt", "a coat", "-o", tmp_path)
    for schedule, by in ((own, "of guidance scale 2 in 120 intervals"), ("seed-sd-8", "none")):
        with pytest.raises(UserError, match=f"w3.* is of .* scale 3 in 8 .* here go by {by}"):
            run(schedule, *given)
    file, plan = made
    with pytest.raises(UserError, match="w3.* is of .* go by of guidance scale 2 in 8 intervals"):
        run(plan, "--statistics", file, *given)


def test_a_schedule_runs_with_the_statistics_that_it_names(made, tmp_path):
    file, plan = made
    assert {step.guidance_scale for step in load(plan).steps} == {2.0}
    run(plan, "--statistics", file, "--prompt", "a coat", "-o", tmp_path)
    assert (tmp_path / "p0000-s00000.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"needs statistics of guidance scale 2 in 8 intervals \(\w+\): give --statistics"),
        (("--guidance-scale", 3), "its statistics are of guidance scale 2, got 3"),
        (("--statistics", "FILE", "--size", 64), "latents of shape 4 x 16 x 16, but the model's"),
    ],
)
def test_without_them_or_for_something_else_it_is_refused(made, tmp_path, options, message):
    file, plan = made
    options = [file if option == "FILE" else option for option in options]
    with pytest.raises(UserError, match=message):
        run(plan, "--prompt", "a coat", "-o", tmp_path, *options)


def test_they_are_of_one_solver(made, tmp_path):
    file, _ = made
    linspace = ("make", "linspace", "--steps", 2, "-o", tmp_path / "x.json")
    with pytest.raises(UserError, match="--statistics is of dpm-v3, the solver is exact"):
        run(*linspace, "--solver", "exact", "--statistics", file)
    with pytest.raises(UserError, match="--statistics is missing: which does dpm-v3 go by"):
        run(*linspace, "--solver", "dpm-v3")


def test_make_writes_a_published_schedule_with_its_statistics(made, tmp_path):
    file, out = tmp_path / "s.safetensors", tmp_path / "v3.json"
    known = Statistics(*np.zeros((3, 251, 4, 2, 2)), ends_of(SD), 7.5, 2, "new", SD_NOISE)
    known.save(file, {})
    run("make", "seed-v3-sd-6-coco", "--statistics", file, "-o", out)
    assert load(out) == open_schedule("seed-v3-sd-6-coco", [known.spec])
    assert load(out).statistics == known.spec
    assert "lacks statistics" in run("make", "seed-v3-sd-6-coco", "-o", out)
    lack = r"in 8 intervals .*, but seed-v3-sd-6-coco lacks statistics of guidance scale 7\.5"
    for name, given, more, message in (
        ("seed-v3-sd-6-coco", made[0], (), lack),
        ("seed-v3-sd-6-coco", file, ("--guidance-scale", 5), r"are of guidance scale 7\.5, got 5"),
        ("seed-sd-6", file, (), "has no effect on seed-sd-6"),
        (out, file, (), r"--statistics is fixed by .*v3\.json"),
    ):
        with pytest.raises(UserError, match=message):
            run("make", name, "--statistics", given, *more, "-o", tmp_path / "x.json")


def test_a_published_schedule_runs_by_them_or_says_that_it_lacks_them(tmp_path):
    """On a tiny random pipeline of the class, with made-up statistics of the published grid."""
    place, file = str(tmp_path / "sd"), tmp_path / "s.safetensors"
    FAMILIES["stable-diffusion"]().save_pretrained(place)
    model = load_model(place, size=SIZE)
    numbers = np.random.default_rng(0).normal(0, 0.05, (3, 251, *model.shape))
    noise = model.spec.noise
    Statistics(*numbers, ends_of(model.noise), 7.5, 2, "new", noise).save(file, {})
    images = {}
    for kind, options in (("with", ["--statistics", file]), ("without", [])):
        made = ("--prompt", "a castle", "--size", SIZE, "-o", tmp_path / kind)
        said = run("seed-v3-sd-6-coco", "--model", place, *made, *options)
        lack = "seed-v3-sd-6-coco lacks statistics of guidance scale 7.5 in 250 intervals: exact"
        assert (lack in said) == (kind == "without")
        images[kind] = (tmp_path / kind / "p0000-s00000.png").read_bytes()
    assert images["with"] != images["without"]
