"""What is peculiar to HunyuanImage, CogView 4, AuraFlow, Hunyuan-DiT, Kolors and LTX."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pipelines
import pytest
import torch
from families import (
    SEEDS,
    our_images,
    prepare,
    short_schedule,
    stock_images,
    stock_schedule,
    take,
)
from pipelines import PROMPTS

from stepsampler import UserError
from stepsampler.cli.stock import describe_run
from stepsampler.generate import generate
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import from_pipeline
from stepsampler.models.stock import StockModel
from stepsampler.models.stock.run import run_stock

QUOTED = ['a sign with "sale"', "a shirt", "a bag that says ‘no’"]


def test_the_usual_guider_of_hunyuan_image_is_ours_in_its_first_six_steps():
    pipeline = prepare("hunyuan-image")
    model = take("hunyuan-image", pipeline)
    for n, guider, same in (
        (6, diffusers.AdaptiveProjectedMixGuidance(), True),
        (8, diffusers.AdaptiveProjectedMixGuidance(), False),
        (8, diffusers.ClassifierFreeGuidance(), True),
    ):
        pipeline.guider = guider
        theirs = stock_images("hunyuan-image", pipeline, n, 3.0)
        ours = our_images(model, stock_schedule(model, n, 3.0), PROMPTS).float()
        assert ((ours - theirs).abs().max() <= 1) == same, (n, guider)
    for n, projected in ((6, None), (8, 6)):
        pipeline.guider = diffusers.AdaptiveProjectedMixGuidance()
        run = run_stock(pipeline, n, size=32)
        assert (run.passes, run.scale, run.projected) == (2 * n, 3.5, projected)
        said = "from step 6 on the pipeline's guider projects a sum of all differences"
        assert (said in describe_run(run)) == (n == 8)


def test_what_a_prompt_has_in_quotes_is_read_by_the_second_encoder():
    pipeline = prepare("hunyuan-image")
    theirs = stock_images("hunyuan-image", pipeline, 2, 3.0, prompt=QUOTED)
    model = take("hunyuan-image", pipeline)
    schedule = stock_schedule(model, 2, 3.0)
    torch.testing.assert_close(our_images(model, schedule, QUOTED).float(), theirs, atol=1, rtol=0)
    bare = [text.replace('"', "") for text in QUOTED]
    assert (our_images(model, schedule, bare) - theirs)[0].abs().max() > 1
    assert not model.cuts(['a sign with "' + 54 * "x" + '"'])
    (sentence,) = model.cuts(['a sign with "' + 58 * "x" + '"'])
    assert "longer than the 64 tokens that BYT5 takes" in sentence


def test_hunyuan_image_tells_a_thousand_times_the_distilled_scale():
    model = take("hunyuan-image-distilled")
    told = []
    model.net.register_forward_pre_hook(
        lambda _net, _args, named: told.extend(named["guidance"].tolist()), with_kwargs=True
    )
    our_images(model, short_schedule(model, 2.5), PROMPTS)
    assert told == [2500.0] * 9


def test_a_network_that_is_told_where_a_step_ends_is_left_to_its_pipeline():
    model = from_pipeline(pipelines.hunyuan_image(True, use_meanflow=True), 32)
    assert isinstance(model, StockModel)
    assert model.spec == take("hunyuan-image-distilled").spec
    theirs, passes = model.call(model.options(PROMPTS, SEEDS, [""] * 3, 3, None))
    schedule = replace(
        from_sigmas(
            model.pipeline.scheduler.sigmas[:-1].tolist(), 0.0, [3.25] * 3, 1, "ddim", model.spec
        ),
        guidance="distilled",
    )
    ours = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(ours, (theirs * 255).round(), atol=1.0, rtol=0)
    assert passes == schedule.passes == 3


@pytest.mark.parametrize("size", [32, "32x48"])
def test_cogview_tells_the_times_from_which_the_levels_were_shifted(size):
    pipeline = pipelines.cogview4()
    model = from_pipeline(pipeline, size)
    told = []
    model.net.register_forward_pre_hook(
        lambda _net, _args, named: told.append(named["timestep"][0].item()), with_kwargs=True
    )
    height, width = model.height, model.width
    pipeline("a bag", num_inference_steps=4, guidance_scale=1.0, height=height, width=width)
    asked = told.copy()
    sigmas = pipeline.scheduler.sigmas[:-1].tolist()
    told.clear()
    plan = from_sigmas(sigmas, 0.0, [1.0] * 4, 1, "ddim", model.spec)
    list(generate(model, plan, ["a bag"], [0]))
    assert told == pytest.approx(asked, abs=1e-3)
    assert sigmas[1] != pytest.approx(asked[1] / 1000, abs=0.01), "it is shifted"
    assert "told other times than those of the sigmas" in describe_run(run_stock(pipeline, 4))


def test_texts_of_any_length_go_into_one_batch_of_cogview():
    """Without the padding of its pipeline, each at its own length."""
    model = take("cogview4")
    condition = model.encode(PROMPTS)
    assert sorted(set(condition["lengths"].tolist())) == [16, 32]
    x = torch.randn(3, *model.shape, generator=torch.manual_seed(0))
    together = model.network(x, 600.0, condition)
    for k, prompt in enumerate(PROMPTS):
        alone = model.network(x[k : k + 1], 600.0, model.encode([prompt]))
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "unit"), [("hunyuan-image", 1000.0), ("aura-flow", 1.0), ("ltx", 1000.0)]
)
def test_the_sigmas_of_a_schedule_are_not_shifted_again(name, unit):
    model, told = take(name), []
    assert model.noise.shift > 1
    model.net.register_forward_pre_hook(
        lambda _net, _args, named: told.append(named["timestep"][0].item()), with_kwargs=True
    )
    our_images(model, short_schedule(model), PROMPTS)
    assert told == pytest.approx([unit * sigma for sigma in (1.0, 0.6, 0.2)])


def test_aura_flow_has_places_for_so_many_patches():
    with pytest.raises(UserError, match="at most 96 pixels a side, got 100x32"):
        take("aura-flow", size="100x32")
    model = take("aura-flow", size="96x8")
    assert our_images(model, short_schedule(model), PROMPTS).shape == (3, 3, 8, 96)


def test_the_shift_of_ltx_depends_on_the_number_of_frames():
    pipeline, made = pipelines.ltx(), []
    for frames in (5, 17):
        model = from_pipeline(pipeline, "64x32", frames=frames)
        assert model.shape == (8, (frames - 1) // 4 + 1, 8, 16)
        options = {"num_frames": frames, "width": 64, "height": 32, "guidance_scale": 1.0}
        pipeline("a bag", num_inference_steps=3, **options, output_type="latent")
        made.append(make_schedule("linspace", 3, model.noise, model=model.spec).sigmas)
        assert made[-1] == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)
    assert made[0][1] < made[1][1] - 1e-4
    with pytest.raises(UserError, match="1 more than a multiple of 4, got 6: the nearest are 5 an"):
        from_pipeline(pipeline, 32, frames=6)


def test_a_vae_of_ltx_that_is_told_a_time_is_told_that_of_the_stock_pipeline():
    pipeline = prepare("ltx")
    config = dict(pipeline.vae.config) | {"timestep_conditioning": True}
    torch.manual_seed(0)
    pipeline.vae = type(pipeline.vae).from_config(config).eval()
    theirs = stock_images("ltx", pipeline, 2, 3.0)
    model = take("ltx", pipeline)
    ours = our_images(model, stock_schedule(model, 2, 3.0), PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)


def test_a_scale_is_the_guiders_where_a_call_takes_none():
    from stepsearch.compare.contenders import OnStock

    model = take("hunyuan-image")
    prompts = [SimpleNamespace(text=text) for text in PROMPTS]
    made = {}
    for w in (3.0, 1.0):
        contender = OnStock(model, "d", 2, guidance_scale=w)
        (made[w],) = contender.batches(SEEDS, prompts, len(SEEDS))
        assert contender.passes == (2 if w == 1 else 4)
    for w, images in made.items():
        ours = our_images(model, stock_schedule(model, 2, w), PROMPTS)
        torch.testing.assert_close(images.float(), ours.float(), atol=1.0, rtol=0)
    with pytest.raises(UserError, match="a call of a HunyuanImagePipeline takes no guidance_scale"):
        OnStock(take("hunyuan-image-distilled"), "d", 2, guidance_scale=3.0)
