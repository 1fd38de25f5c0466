"""One number sets the strength of a schedule's guidance and keeps its shape."""

from dataclasses import replace

import pytest
from PIL import Image, ImageChops
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.cli.app import app
from stepsampler.grids import from_sigmas, make_schedule, scale_guidance
from stepsampler.noise import NoiseSchedule
from stepsampler.presets import preset

SD = NoiseSchedule.scaled_linear()
SIGMAS = [14.0, 5.0, 2.0, 0.8, 0.3]


def shaped(*scales):
    return from_sigmas(SIGMAS[: len(scales)], 0.1, scales, 2)


def scales_of(schedule):
    return [step.guidance_scale for step in schedule.steps]


def test_the_mean_of_the_guided_steps_becomes_the_scale_and_the_shape_stays():
    plan = shaped(2.0, 4.0, 1.0, 3.0, 0.9)
    made = scale_guidance(plan, 7.5)
    before, after = scales_of(plan), scales_of(made)
    guided = [w for w in after if w != 1]
    assert sum(guided) / len(guided) == pytest.approx(7.5)
    assert after[2] == 1
    ratios = [(b - 1) / (a - 1) for a, b in zip(before, after, strict=True) if a != 1]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert made.passes == plan.passes == 9


def test_a_constant_guidance_becomes_the_scale_itself():
    plan = make_schedule("karras", 4, SD, guidance_scale=3.0)
    wanted = make_schedule("karras", 4, SD, guidance_scale=7.5)
    assert scales_of(scale_guidance(plan, 7.5)) == pytest.approx(scales_of(wanted))


def test_a_mean_of_its_own_changes_nothing_and_there_and_back_is_nothing_too():
    plan = shaped(2.0, 4.0, 1.0)
    assert scales_of(scale_guidance(plan, 3.0)) == scales_of(plan)
    there = scale_guidance(plan, 9.0)
    assert scales_of(scale_guidance(there, 3.0)) == pytest.approx(scales_of(plan))


def test_golden_noise_is_scaled_and_an_analytic_step_is_not():
    golden = scale_guidance(preset("seed-sd-8-golden").schedule, 3.0)
    assert golden.golden_noise.guidance_scale == pytest.approx(3.0)
    plan = preset("seed-unipc-xl-6").schedule
    assert plan.steps[0].analytic is not None
    made = scale_guidance(plan, 3.0)
    assert made.steps[0] == plan.steps[0]
    assert scales_of(made)[1:] == pytest.approx([3.0] * 6)
    assert made.passes == plan.passes


@pytest.mark.parametrize(
    ("scales", "scale", "message"),
    [
        ((1.0, 1.0), 3.0, "the schedule has no guided step whose guidance could be scaled"),
        ((2.0, 1.0), 1.0, "the guidance scale must be above 1, which is none, got 1"),
        ((2.0, 1.0), float("nan"), "the guidance scale must be above 1, which is none, got nan"),
        ((0.5, 1.0), 3.0, "the guidance to scale must be above 1 on average, got 0.5"),
        ((4.0, 0.5), 9.0, "step 1: guidance_scale must be >= 0, got -2.2"),
    ],
)
def test_what_cannot_be_scaled_is_refused(scales, scale, message):
    with pytest.raises(UserError, match=message):
        scale_guidance(shaped(*scales), scale)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "s.json"
    shaped(2.0, 4.0, 1.0).save(path)
    return path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def same(one, other):
    images = [Image.open(path).convert("RGB") for path in (one, other)]
    return ImageChops.difference(*images).getbbox() is None


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("generate", "s.json", "--prompt", "a bag"), "p0000-s00000.png"),
        (("batch", "s.json", "--prompts", "p.txt"), "000000.png"),
        (("grid", "s.json", "--prompt", "a bag"), None),
    ],
)
def test_every_command_that_makes_images_takes_a_scale(plan, tmp_path, monkeypatch, command, file):
    """The images are those of the schedule that was scaled before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a bag\n")
    word, name, *rest = command
    outs = []
    for i, scaled in enumerate((False, True, False)):
        outs.append(tmp_path / (f"{i}.png" if file is None else str(i)))
        options = ["--guidance-scale", 7.5] if scaled else []
        result = run(word, name, *rest, *options, "-o", outs[-1])
        assert result.exit_code == 0, result.output
        if scaled:
            scale_guidance(shaped(2.0, 4.0, 1.0), 7.5).save(plan)
    as_it_is, scaled, before = [out / file if file else out for out in outs]
    assert same(scaled, before)
    assert not same(as_it_is, scaled)


def test_a_schedule_without_guidance_is_refused_by_name(plan):
    shaped(1.0, 1.0).save(plan)
    result = run("generate", plan, "--prompt", "a bag", "--guidance-scale", 3)
    message = f"--guidance-scale: {plan}: the schedule has no guided step whose guidance could be"
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_batch_goes_on_only_with_the_same_scale(plan, tmp_path):
    (tmp_path / "p.txt").write_text("a bag\n")
    common = ["batch", plan, "--prompts", tmp_path / "p.txt", "-o", tmp_path / "out"]
    assert run(*common, "--guidance-scale", 3.5).exit_code == 0
    assert run(*common, "--guidance-scale", 3.5).exit_code == 0
    result = run(*common, "--guidance-scale", 4)
    assert "begun with another schedule" in str(result.exception)


def test_distilled_guidance_is_scaled_by_the_same_rule():
    plan = replace(shaped(2.0, 4.0), guidance="distilled")
    made = scale_guidance(plan, 6.0)
    assert scales_of(made) == pytest.approx([3.5, 8.5])
    assert made.passes == plan.passes == 2
