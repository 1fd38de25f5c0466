"""Pipelines that sample themselves: their images under a schedule are those under their own."""

import ast
import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import models_page
import pipelines
import pytest
import torch
from diffusers.modular_pipelines.wan import encoders as wan_encoders
from families import our_images, prepare, stock_schedule, take
from pipelines import PROMPTS

from stepsampler import UserError
from stepsampler.generate import generate
from stepsampler.grids import from_sigmas
from stepsampler.models import families, from_pipeline
from stepsampler.models.stock.known import why_not
from stepsampler.noise import is_flow
from stepsampler.scheduler import StepScheduler
from stepsearch.rehearsal.dryrun import as_modular
from stepsearch.rehearsal.miniatures import EVERY, STOCK, VIDEOS
from stepsearch.rehearsal.miniatures.later import hunyuan_image
from stepsearch.rehearsal.miniatures.stock import lumina

SEEDS = (0, 1, 2)
NEGATIVE = ["a bad one"] * 3
FRAMES = {"latte": 2, "ltx": 9, "mochi": 7}
W = 6.0
# Families of our own loop that are left to their pipelines here
LEFT = ("ltx", "aura-flow", "cogview4", "hunyuan-dit", "hunyuan-image")
ITSELF = (*STOCK, *VIDEOS, *LEFT)
LESS = {"kandinsky3": 1.0}  # so much less than our w its own scale is, above 1


def model_of(name, **options):
    pipeline = EVERY[name](**options)
    size = 64 if name == "kandinsky3" else 32  # its latents are of 64 pixels
    frames = {"frames": FRAMES[name]} if name in FRAMES else {}
    if not is_flow(pipeline.scheduler.config):
        options = {"timestep_spacing": "trailing", "clip_sample": False}
        config = pipeline.scheduler.config
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(config, **options)
    return from_pipeline(pipeline, size, stock=name in LEFT, **frames)


def own_images(model, n, w):
    """The pipeline's under its own scheduler and guidance, 0 to 255; and its passes."""
    pipeline, scheduler = model.pipeline, model.pipeline.scheduler
    if "guider" in pipeline.components:
        pipeline.guider = diffusers.ClassifierFreeGuidance(w)
    if not is_flow(scheduler.config):  # at its last timestep there is still some signal
        scheduler.set_timesteps(n)
        left = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
        scheduler.init_noise_sigma = float((1 - left).sqrt())
    with torch.no_grad():
        images, passes = model.call(model.options(PROMPTS, SEEDS, NEGATIVE, n, w))
    return (images * 255).round(), passes


def its_schedule(model, *scales):
    if not model.pipeline.scheduler.config.get("invert_sigmas"):
        return stock_schedule(model, len(scales), *scales)
    *sigmas, last = [1 - s for s in model.pipeline.scheduler.sigmas.tolist()]
    return from_sigmas(sigmas, last, scales, 1, "ddim", model.spec)


@pytest.mark.parametrize("name", ITSELF)
def test_the_images_are_those_of_the_pipeline_with_its_own_scheduler(name):
    model = model_of(name)
    made = {}
    for w in (W, 1.0):
        theirs, passes = own_images(model, 4, w - LESS.get(name, 0.0))
        schedule = its_schedule(model, *[w] * 4)
        made[w] = our_images(model, schedule, PROMPTS, negative_prompts=NEGATIVE).float()
        torch.testing.assert_close(made[w], theirs, atol=1.0, rtol=0)
        assert model.passes(schedule) == passes == schedule.passes == (8 if w == W else 4)
    assert (made[W] - made[1.0]).abs().max() > 2


@pytest.mark.parametrize("name", [name for name in ITSELF if name != "lumina"])
def test_an_unguided_step_costs_one_pass_and_is_unguided(name):
    model = model_of(name)
    own_images(model, 4, W)
    mixed = its_schedule(model, W, 1.0, 1.0, 1.0)
    first = our_images(model, mixed, PROMPTS, negative_prompts=NEGATIVE).float()
    assert model.passes(mixed) == mixed.passes == 5
    if name == "latte":  # which reads the two texts in different ways
        return
    # with both halves the same text, guidance is none
    other = our_images(model, mixed, PROMPTS, negative_prompts=PROMPTS).float()
    plain = our_images(model, its_schedule(model, *[1.0] * 4), PROMPTS).float()
    torch.testing.assert_close(other, plain, atol=1.0, rtol=0)
    assert (first - plain).abs().max() >= 1


@pytest.mark.parametrize(
    "name",
    [
        "stable-diffusion",
        "sdxl",
        "z-image",
        "qwen-image",
        "flux-dev",
        "wan",
        "hunyuan-image",
        "kolors",
    ],
)
def test_a_family_of_our_own_loop_may_be_left_to_its_pipeline(name):
    own = take(name)
    stock = from_pipeline(prepare(name), pipelines.SIZE, stock=True, frames=own.frames)
    assert stock.spec == own.spec  # a schedule is for both
    first = own.noise.sigma_max
    sigmas, scales = [first, 0.6 * first, 0.2 * first], [4.0, 3.0, 1.0]
    schedule = from_sigmas(sigmas, 0.0, scales, 2, "unipc-bh2", own.spec)
    schedule = replace(schedule, guidance=own.guidance)
    ours = our_images(own, schedule, PROMPTS).float()
    theirs = our_images(stock, schedule, PROMPTS).float()
    torch.testing.assert_close(theirs, ours, atol=1.0, rtol=0)
    assert stock.passes(schedule) == schedule.passes


@pytest.mark.parametrize("name", models_page.MODULAR)
def test_a_modular_pipeline_makes_the_images_of_our_own_loop(name, monkeypatch):
    # which diffusers calls without asking whether it is there
    ftfy = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(wan_encoders, "ftfy", ftfy, raising=False)
    own = take(models_page.MODULAR[name])
    pipeline = getattr(diffusers, name)()
    wanted = pipeline.component_names
    parts = {k: part for k, part in own.pipeline.components.items() if k in wanted and part}
    pipeline.update_components(**parts)
    model = from_pipeline(pipeline, pipelines.SIZE, frames=own.frames)
    assert model.spec == own.spec
    first = own.noise.sigma_max
    sigmas = [first, 0.6 * first, 0.2 * first]
    schedule = from_sigmas(sigmas, 0.0, [1.0, 4.0, 1.0], 2, "unipc-bh2", own.spec)
    schedule = replace(schedule, guidance=own.guidance)
    if own.experts.two:
        schedule = replace(schedule, boundary=0.5 * first)
    ours = our_images(own, schedule, PROMPTS).float()
    theirs = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(theirs, ours, atol=1.0, rtol=0)
    assert model.passes(schedule) == schedule.passes


def test_a_package_that_a_pipeline_lacks_is_named(monkeypatch):
    monkeypatch.delattr(wan_encoders, "ftfy", raising=False)
    monkeypatch.setattr("stepsampler.models.stock.find_spec", lambda name: None)
    model = from_pipeline(as_modular(EVERY["wan"](), diffusers.WanModularPipeline), 32, frames=5)
    schedule = from_sigmas([1.0], 0.0, [1.0], 1, "ddim", model.spec)
    with pytest.raises(UserError, match="call: it needs the package ftfy, which is not installed"):
        list(generate(model, schedule, ["a fox"], [0]))


def test_sana_sprint_is_a_flow_whose_steps_begin_with_fresh_noise():
    """The words of its pipeline for what the network gets and gives, under its own scheduler."""
    y, output = torch.randn(2, 1, 4, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    scheduler = diffusers.SCMScheduler()
    data = scheduler.config.sigma_data
    drawn = []
    for seed in (0, 1):
        scheduler.set_timesteps(2)
        for time in scheduler.timesteps[:-1]:
            sigma = float(time.sin() / (time.cos() + time.sin()))
            length = (sigma**2 + (1 - sigma) ** 2) ** 0.5
            told = (1 - 2 * sigma) * y + (1 - 2 * sigma + 2 * sigma**2) * output
            noise = {"generator": torch.manual_seed(seed)}
            sample = data * y / length  # which the pipeline multiplies by `length` for the network
            after, x0 = scheduler.step(
                data * told / length, time, sample, **noise, return_dict=False
            )
            torch.testing.assert_close(x0 / data, y - sigma * output, rtol=1e-6, atol=1e-6)
            drawn.append(after)
    assert not torch.allclose(drawn[0], drawn[2])  # of two seeds, after the first step
    torch.testing.assert_close(drawn[1], drawn[3])  # the last step ends at x0


def test_a_modular_pipeline_that_edits_is_refused_by_name():
    for name in ("QwenImageEditModularPipeline", "MiniMaxMusic3ModularPipeline"):
        with pytest.raises(UserError, match=f"a {name} cannot run a schedule: it"):
            from_pipeline(getattr(diffusers, name)(), 32)


def test_an_image_depends_on_its_seed_and_not_on_the_batch():
    model = model_of("hunyuan-dit")
    own_images(model, 3, W)
    schedule = its_schedule(model, W, W, 1.0)
    together = our_images(model, schedule, PROMPTS).float()
    alone = our_images(model, schedule, PROMPTS, batch_size=1).float()
    torch.testing.assert_close(alone, together, atol=1.0, rtol=0)
    (others,) = generate(model, schedule, PROMPTS, [9, 1, 8])
    torch.testing.assert_close(others.images[1].float(), together[1], atol=1.0, rtol=0)
    assert (others.images[0].float() - together[0]).abs().max() > 3


def test_images_are_as_wide_and_high_as_asked():
    model = from_pipeline(EVERY["aura-flow"](), "32x16", stock=True)
    schedule = from_sigmas([1.0, 0.5], 0.0, [4.0, 1.0], 1, "ddim", model.spec)
    assert our_images(model, schedule, PROMPTS).shape == (3, 3, 16, 32)
    assert from_pipeline(STOCK["lumina"]()).size == 32  # of its sample_size


def test_a_distilled_scale_is_told_as_the_network_wants_it():
    """HunyuanImage tells a thousand times the scale."""
    model = from_pipeline(hunyuan_image(guidance_embeds=True), 32, stock=True)
    told = []
    model.net.register_forward_pre_hook(
        lambda _net, _args, named: told.extend(named["guidance"].tolist()), with_kwargs=True
    )
    schedule = from_sigmas([1.0, 0.5], 0.0, [4.0, 2.5], 1, "ddim", model.spec)
    schedule = replace(schedule, guidance="distilled")
    our_images(model, schedule, PROMPTS)
    assert told == [4000.0] * 3 + [2500.0] * 3
    assert model.passes(schedule) == schedule.passes == 2


def test_of_a_video_an_image_is_the_middle_frame():
    model = model_of("ltx")
    own_images(model, 2, W)
    schedule = its_schedule(model, W, W)
    (made,) = generate(model, schedule, PROMPTS, SEEDS, negative_prompts=NEGATIVE)
    assert (model.frames, made.videos.shape) == (9, (3, 9, 3, 32, 32))
    assert torch.equal(made.images, made.videos[:, 4])
    video = model.pipeline(**model.options(PROMPTS, SEEDS, NEGATIVE, 2, W)).frames
    theirs = torch.from_numpy(video).movedim(-1, 2) * 255
    torch.testing.assert_close(made.videos.float(), theirs.round(), atol=1.0, rtol=0)
    assert from_pipeline(EVERY["ltx"](), 32, stock=True).frames == 161, "the pipeline's own default"


def test_where_guidance_is_the_pipelines_own_its_scale_is_one_for_all_steps():
    model = from_pipeline(lumina(), 32)
    varied = from_sigmas([1.0, 0.5], 0.0, [4.0, 1.0], 1, "ddim", model.spec)
    with pytest.raises(
        UserError, match="guides three of its channels: its scale is one for all st"
    ):
        our_images(model, varied, PROMPTS)


def test_what_a_pipeline_refuses_is_one_sentence():
    model = from_pipeline(EVERY["aura-flow"](), 34, stock=True)
    schedule = from_sigmas([1.0, 0.5], 0.0, [4.0, 1.0], 1, "ddim", model.spec)
    with pytest.raises(
        UserError, match="a AuraFlowPipeline refuses the call: `height` and `width`"
    ):
        our_images(model, schedule, PROMPTS)
    for broken, message in (
        ({"solver": "heun"}, "heun calls the network twice a step"),
        ({"model": replace(model.spec, family="wan")}, "made for family 'wan', but the model has"),
    ):
        with pytest.raises(UserError, match=message):
            our_images(model, replace(schedule, **broken), PROMPTS)
    with pytest.raises(UserError, match="AuraFlowPipeline reads prompts by itself: clip_skip"):
        from_pipeline(EVERY["aura-flow"](), 32, stock=True, clip_skip=1)
    with pytest.raises(UserError, match="AuraFlowPipeline makes pictures, which have no frames, g"):
        from_pipeline(EVERY["aura-flow"](), 32, stock=True, frames=3)


def test_a_pipeline_that_takes_other_steps_is_refused():
    model = from_pipeline(EVERY["aura-flow"](), 32, stock=True)
    schedule = from_sigmas([1.0, 0.5], 0.0, [1.0, 1.0], 1, "ddim", model.spec)

    class Stubborn(type(model.pipeline)):
        def __call__(self, **options):
            self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            return super().__call__(**options)

    model.pipeline.__class__ = Stubborn
    with pytest.raises(UserError, match="has put a FlowMatchEulerDiscreteScheduler in place of th"):
        our_images(model, schedule, PROMPTS)


def test_pipelines_of_other_kinds_are_refused_by_name():
    every = {
        name: cls
        for name in dir(diffusers)
        if name.endswith("Pipeline")
        and inspect.isclass(cls := getattr(diffusers, name))
        and issubclass(cls, diffusers.DiffusionPipeline)
        and cls is not diffusers.DiffusionPipeline
    }
    known = dict(models_page.classes())
    assert len(every) > 150
    for name, cls in every.items():
        if name not in known and "deprecated" not in cls.__module__:
            assert why_not(cls), name
    for name, said in (
        ("StableDiffusionImg2ImgPipeline", "no pipeline from texts to pictures or videos"),
        ("StableDiffusionXLInpaintPipeline", "no pipeline from texts to pictures or videos"),
        ("StableCascadeCombinedPipeline", "no pipeline from texts"),
        ("KandinskyPipeline", "its network is told an image embedding, which another diffusion"),
        ("SanaSprintPipeline", "each of its steps begins with fresh noise, which a schedule of"),
    ):
        assert said in why_not(every[name])

    class PosedPipeline:
        def __init__(self, scheduler): ...

        def __call__(self, prompt, pose, generator=None, num_inference_steps=1): ...

    assert why_not(PosedPipeline) == "it needs pose beside a prompt"


def takes(name, cls):
    return models_page.row(name, cls)[0].startswith("itself")


@pytest.mark.parametrize("name", [n for n, c in models_page.classes() if takes(n, c)])
def test_what_a_pipeline_asks_of_its_scheduler_is_there(name):
    """By the sources: also of those of which no tiny one is run."""
    cls = getattr(diffusers, name)
    asked = {"set_timesteps": StepScheduler.set_timesteps, "step": StepScheduler.step}
    known = {key: {*inspect.signature(call).parameters} for key, call in asked.items()}
    known["retrieve_timesteps"] = known["set_timesteps"] | {"scheduler"}
    known["step"] |= {"eta"}  # of DDIM, where its signature has it
    scheduler = StepScheduler()
    calls = 0
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__]))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.scheduler":
            assert hasattr(scheduler, node.attr) or node.attr == "sigmas", node.attr
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")
            if called[-1] in known and (called[-1] != "step" or "scheduler" in called):
                calls += 1
                assert {k.arg for k in node.keywords if k.arg} <= known[called[-1]], called
    assert calls


def test_every_pipeline_is_taken_by_one_way_or_refused_with_a_reason():
    rows = {name: models_page.row(name, cls) for name, cls in models_page.classes()}
    assert {name for name, (way, _) in rows.items() if way == "our own loop"} == set(families())
    assert all(reason for way, reason in rows.values() if way == "not possible")
