"""Two networks that share a trajectory: in our own loop, under `guided`, and in a file."""

import diffusers
import pytest
import torch
from families import FRAMES, SIZES, counted, networks, our_images, prepare, stock_images, take
from pipelines import PROMPTS, wan

from stepsampler import ModelSpec, Schedule, ScheduleError, Step, UserError
from stepsampler.cli.display import describe, differences
from stepsampler.experts import Experts
from stepsampler.formats import export
from stepsampler.generate import generate
from stepsampler.grids import from_sigmas
from stepsampler.guided import guided
from stepsampler.models import from_pipeline
from stepsampler.rows import outside
from stepsampler.scheduler import StepScheduler

SIGMAS = (1.0, 0.9, 0.6, 0.3)
WAN = ModelSpec("wan", "flow_prediction", (0.0, 0.25, 0.5, 0.75, 1.0))


def schedule_of(*scales, boundary=None, **options):
    steps = [Step(s, w, **options) for s, w in zip(SIGMAS, scales or [1.0] * 4, strict=True)]
    return Schedule(tuple(steps), 0.0, "ddim", WAN, boundary=boundary)


def callers(pipeline, run):
    """Which network each step calls, 1 or 2; that of each call."""
    order = []
    nets = networks(pipeline)
    handles = [
        net.register_forward_hook(lambda *_, k=k: order.append(k + 1)) for k, net in enumerate(nets)
    ]
    run()
    for handle in handles:
        handle.remove()
    return order


def under(pipeline, schedule, scale=6.0):
    """The videos of the stock pipeline inside `guided`, 0 to 255."""
    with guided(pipeline, schedule):
        return stock_images("wan-2.2", pipeline, schedule.num_steps, scale)


@pytest.mark.parametrize(
    ("boundary", "expected"),
    [(None, [1, 1, 2, 2]), (0.6, [1, 1, 1, 2]), (0.95, [1, 2, 2, 2]), (0.0, [1] * 4), (2, [2] * 4)],
)
def test_steps_at_the_boundary_or_above_are_the_first_networks(boundary, expected):
    """The model's own boundary is 0.875."""
    pipeline = prepare("wan-2.2")
    model = take("wan-2.2", pipeline)
    schedule = schedule_of(boundary=boundary)
    made = {}
    assert callers(pipeline, lambda: made.update(own=our_images(model, schedule, PROMPTS))) == (
        expected
    )
    assert callers(pipeline, lambda: made.update(stock=under(pipeline, schedule))) == expected
    torch.testing.assert_close(made["stock"], made["own"].float(), atol=1.0, rtol=0)
    assert pipeline.config.boundary_ratio == 0.875, "as it was before"


def test_guidance_on_each_side_is_that_of_guidance_scale_2():
    pipeline = prepare("wan-2.2")
    pipeline.scheduler.set_timesteps(4)
    high = sum(pipeline.scheduler.timesteps >= 875)
    theirs = stock_images("wan-2.2", pipeline, 4, 4.0, guidance_scale_2=2.0)
    model = take("wan-2.2", pipeline)
    scales = [4.0] * high + [2.0] * (4 - high)
    schedule = from_sigmas(pipeline.scheduler.sigmas[:-1].tolist(), 0.0, scales, 1, "ddim", WAN)
    with counted(*networks(pipeline)) as rows:
        ours = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert sum(rows) == 3 * schedule.passes
    assert 0 < high < 4
    other = stock_images("wan-2.2", pipeline, 4, 4.0)
    assert (other - theirs).abs().max() > 3


def test_guided_and_our_own_loop_agree_on_guidance_in_some_steps_and_a_boundary():
    pipeline = prepare("wan-2.2")
    schedule = schedule_of(4.0, 1.0, 3.0, 1.0, boundary=0.95)
    ours = our_images(take("wan-2.2", pipeline), schedule, PROMPTS).float()
    torch.testing.assert_close(under(pipeline, schedule), ours, atol=1.0, rtol=0)
    stock = from_pipeline(pipeline, 32, stock=True, frames=FRAMES)
    again = our_images(stock, schedule, PROMPTS).float()
    torch.testing.assert_close(again, ours, atol=1.0, rtol=0)
    assert stock.passes(schedule) == schedule.passes == 6
    own = our_images(stock, schedule_of(4.0, 1.0, 3.0, 1.0), PROMPTS).float()
    assert (own - ours).abs().max() > 3, "the boundary matters"


def test_reused_guidance_crosses_the_boundary():
    pipeline = prepare("wan-2.2")
    steps = [
        Step(s, 4.0, guidance_reuse=reuse) for s, reuse in zip(SIGMAS, [0, 1, 1, 0], strict=True)
    ]
    schedule = Schedule(tuple(steps), 0.0, "ddim", WAN, boundary=0.7)
    ours = our_images(take("wan-2.2", pipeline), schedule, PROMPTS).float()
    torch.testing.assert_close(under(pipeline, schedule), ours, atol=1.0, rtol=0)


def test_it_goes_by_sigma_and_not_by_the_time_that_is_told():
    pipeline = prepare("wan-2.2")
    schedule = schedule_of(boundary=0.6, time_scale=0.9)
    ours = our_images(take("wan-2.2", pipeline), schedule, PROMPTS).float()
    order = callers(pipeline, lambda: under(pipeline, schedule))
    assert order == [1, 1, 1, 2]
    torch.testing.assert_close(under(pipeline, schedule), ours, atol=1.0, rtol=0)
    steps = (Step(1.0, time_scale=0.5), Step(0.8))
    turned = Schedule(steps, 0.0, "ddim", WAN, boundary=0.9)
    with pytest.raises(UserError, match="time_scale has turned their order: 500 for the first net"):
        under(pipeline, turned)


def test_a_boundary_of_a_model_with_one_network_is_refused():
    sentence = r"changes the network at sigma 0.875 \(boundary\), but the model has one network"
    schedule = schedule_of(boundary=0.875)
    for options in ({}, {"stock": True}):
        model = from_pipeline(wan(), 32, frames=FRAMES, **options)
        with pytest.raises(UserError, match=sentence):
            next(generate(model, schedule, ["a fox"], [0]))
    with pytest.raises(UserError, match=sentence), guided(wan(), schedule):
        pass


@pytest.mark.parametrize(
    ("missing", "fine", "message"),
    [
        ("transformer_2", (1.0, 0.9), "step 1: sigma 0.5 is for the transformer_2, which the pipe"),
        (
            "transformer",
            (0.6, 0.5),
            "step 0: sigma 1 is for the transformer, which the pipeline la",
        ),
    ],
)
def test_a_pipeline_with_one_of_two_networks_takes_the_steps_of_that_one(missing, fine, message):
    """As it comes where both do not fit into memory: each on a part of the trajectory."""
    pipeline = wan(0.875)
    pipeline.register_modules(**{missing: None})
    model = from_pipeline(pipeline, 32, frames=FRAMES)
    steps = from_sigmas(fine, 0.4, [2.0, 1.0], 1, "ddim", WAN)
    assert our_images(model, steps, PROMPTS).shape == (3, FRAMES, 3, 32, 32)
    with pytest.raises(UserError, match=message):
        our_images(model, from_sigmas((1.0, 0.5), 0.0, [1.0] * 2, 1, "ddim", WAN), PROMPTS)
    pipeline.register_modules(transformer=None, transformer_2=None)
    with pytest.raises(UserError, match="the WanPipeline has no transformer"):
        from_pipeline(pipeline, 32)


def test_without_a_boundary_of_its_own_the_first_network_takes_all():
    pipeline = wan(0.875)
    pipeline.register_to_config(boundary_ratio=None)
    model = from_pipeline(pipeline, 32, frames=FRAMES)
    run = {b: schedule_of(boundary=b) for b in (None, 0.5)}
    assert callers(pipeline, lambda: our_images(model, run[None], PROMPTS)) == [1] * 4
    assert callers(pipeline, lambda: our_images(model, run[0.5], PROMPTS)) == [1, 1, 1, 2]
    assert callers(pipeline, lambda: under(pipeline, run[0.5])) == [1, 1, 1, 2]
    assert pipeline.config.boundary_ratio is None


def test_a_number_of_frames_that_latents_do_not_have_is_refused():
    message = "frames must be 1 more than a multiple of 4, got 6: the nearest are 5 and 9"
    with pytest.raises(UserError, match=message):
        from_pipeline(wan(), 32, frames=6)
    model = from_pipeline(wan())
    assert (model.frames, model.size, model.shape) == (81, "832x480", (16, 21, 60, 104))
    assert from_pipeline(wan(), 32, frames=1).shape == (16, 1, 4, 4)
    with pytest.raises(UserError, match="size must be a multiple of 16 pixels, got 40"):
        from_pipeline(wan(), 40)


def test_an_image_of_a_video_is_its_middle_frame():
    model = take("wan")
    (made,) = generate(model, schedule_of(), PROMPTS, range(3))
    assert made.videos.shape == (3, FRAMES, 3, SIZES["height"], SIZES["width"])
    assert torch.equal(made.images, made.videos[:, FRAMES // 2])
    (single,) = generate(take("wan", size="32x16"), schedule_of(), PROMPTS, range(3))
    assert single.images.shape == (3, 3, 16, 32)


def test_a_file_holds_it_and_show_and_diff_say_it():
    schedule = schedule_of(boundary=0.7)
    assert '"boundary": 0.7' in schedule.to_json()
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert "boundary" not in schedule_of().to_json()
    lines = describe(schedule).splitlines()
    assert "second network below sigma 0.7" in lines[0]
    assert [line.endswith("second network") for line in lines[2:6]] == [False, False, True, True]
    assert differences(schedule, schedule_of()) == ["boundary 0.7 -> None"]
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ScheduleError, match="boundary must be finite and >= 0, got"):
            schedule_of(boundary=wrong)
    with pytest.raises(ScheduleError, match="boundary must be a number, got 'x'"):
        Schedule.from_json(schedule.to_json().replace("0.7,", '"x",'))


@pytest.mark.parametrize(
    "to",
    [
        "comfyui",
        "sd.cpp",
        "diffusers:FlowMatchEulerDiscreteScheduler",
        "diffusers:StepScheduler",
    ],
)
def test_an_export_loses_it_by_name(to):
    schedule = schedule_of(boundary=0.7)
    with pytest.raises(UserError, match=f"{to} cannot hold boundary "):
        export(schedule, to)
    assert "boundary" in export(schedule, to, lossy=True).lost


def test_a_scheduler_alone_says_that_it_leaves_it_to_the_pipeline(monkeypatch):
    said = []
    monkeypatch.setattr("stepsampler.scheduler.logger.warning", said.append)
    config = diffusers.FlowMatchEulerDiscreteScheduler().config
    StepScheduler.from_config(config, schedule=schedule_of(boundary=0.7))
    assert "changes the network at a sigma of its own (boundary)" in said[0]
    assert outside(schedule_of()) is None


def test_other_pipelines_have_no_experts():
    parts = Experts.of(prepare("sd3"))
    assert (parts.two, parts.second, parts.boundary) == (False, None, None)
