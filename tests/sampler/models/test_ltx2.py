"""What is peculiar to LTX-2: sound in the state, and guidance by more than w in its own call."""

import json

import pipelines
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES
from exporting import FLOW_TARGET
from families import (
    FRAMES,
    SEEDS,
    counted,
    our_images,
    short_schedule,
    stock_images,
    stock_schedule,
    take,
)
from pipelines import PROMPTS

from stepsampler import UserError
from stepsampler.cli.display import describe
from stepsampler.cli.stock import describe_run
from stepsampler.formats import export, reading
from stepsampler.generate import seeded_noise
from stepsampler.models import from_pipeline, open_model
from stepsampler.models.stock.run import run_stock
from stepsampler.noise import FlowSchedule
from stepsampler.presets import MODELS, preset
from stepsampler.support.options import ModelOptions
from stepsearch.compare.contenders import OnStock
from stepsearch.metrics.alignment import Prompt
from stepsearch.metrics.evaluator import model_digest

FLOW = "diffusers:FlowMatchEulerDiscreteScheduler"
SIZE = {"frames": FRAMES}


def by_itself(**options):
    return from_pipeline(pipelines.ltx2(**options), pipelines.SIZE, stock=True, **SIZE)


def test_the_state_is_pictures_and_then_sound_and_only_pictures_are_decoded():
    model = take("ltx2")
    pictures, sound = (8, 2, 8, 8), (2, 5, 2)  # 5 frames at 24 a second; 25 moments a second
    assert model.shape == (1024 + 20,)
    x = seeded_noise(SEEDS, model.shape)
    seen, heard = model._parted(x)
    assert (seen.shape[1:], heard.shape[1:]) == (pictures, sound)
    changed = torch.cat([x[:, :1024], x[:, 1024:] + 1], 1)
    assert model.decode(x).shape == (3, 5, 3, 32, 32)
    assert torch.equal(model.decode(changed), model.decode(x))


def test_pictures_depend_on_the_sound_that_is_sampled_along():
    model = take("ltx2")
    x = seeded_noise(SEEDS, model.shape)
    changed = torch.cat([x[:, :1024], x[:, 1024:] + 1], 1)
    made = [model.network(each, 600.0, model.encode(PROMPTS)) for each in (x, changed)]
    assert (made[0] - made[1])[:, :1024].abs().max() > 0.01


def test_a_call_of_the_stock_pipeline_starts_from_the_noise_of_the_seeds():
    model, called = take("ltx2"), []
    keys = ("hidden_states", "audio_hidden_states")
    model.net.register_forward_pre_hook(
        lambda _net, _args, named: called.append([named[key] for key in keys]), with_kwargs=True
    )
    contender = OnStock(model, "d", 2)
    list(contender.batches(range(5, 7), [Prompt(text) for text in PROMPTS[:2]], 2))
    seen, heard = model._parted(seeded_noise(range(5, 7), model.shape))
    seen, heard = seen.flatten(2).transpose(1, 2), heard.transpose(1, 2).flatten(2)
    torch.testing.assert_close(called[0], [torch.cat([seen] * 2), torch.cat([heard] * 2)])
    assert contender.passes == 8, "four a step, by its defaults"


def test_two_sizes_of_equally_many_numbers_are_told_apart():
    pipeline = pipelines.ltx2()
    models = [from_pipeline(pipeline, size, frames=5) for size in ("64x32", "32x64", "64x32")]
    assert len({model.shape for model in models}) == 1
    digests = [model_digest(model) for model in models]
    assert digests[0] == digests[2] != digests[1]
    pipeline.connectors.video_connector.learnable_registers.data += 1
    assert model_digest(models[0]) != digests[0]
    assert [(model.width, model.height) for model in models[:2]] == [(64, 32), (32, 64)]


def test_without_a_number_of_frames_they_are_those_of_the_stock_pipeline():
    assert from_pipeline(pipelines.ltx2(), 32).frames == 121
    with pytest.raises(UserError, match="1 more than a multiple of 4, got 6: the nearest are 5 an"):
        from_pipeline(pipelines.ltx2(), 32, frames=6)


def test_sound_without_moments_is_refused():
    """Of a config that is damaged; it had been a division by zero, or a state without sound."""
    for key in ("sample_rate", "mel_hop_length"):
        pipeline = pipelines.ltx2()
        pipeline.audio_vae.register_to_config(**{key: 0})
        with pytest.raises(UserError, match=f"audio_vae: {key} must be above 0, got 0"):
            from_pipeline(pipeline, 32, frames=5)


def test_the_distilled_preset_makes_the_images_of_the_vendors_call():
    pipeline = pipelines.ltx2()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()  # as the distilled model has: no shift
    theirs = stock_images("ltx2", pipeline, 8, 1.0, sigmas=DISTILLED_SIGMA_VALUES)
    model = take("ltx2", pipeline)
    with counted(model.net) as rows:
        ours = our_images(model, preset("ltx2-distilled-8").schedule, PROMPTS).float()
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)
    assert sum(rows) == 8 * len(SEEDS)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_it_samples_itself_under_a_schedule_too_and_guides_by_all_of_its_terms(newer, w):
    model = by_itself(newer=newer)
    images, passes = model.call(model.options(PROMPTS, SEEDS, [""] * 3, 3, w))
    schedule = stock_schedule(model, 3, w)
    found = our_images(model, schedule, PROMPTS).float()
    torch.testing.assert_close(found, (images * 255).round(), atol=1.0, rtol=0)
    assert model.passes(schedule) == passes == (12 if w > 1 else 3)
    own = our_images(take("ltx2", model.pipeline), schedule, PROMPTS).float()
    assert ((own - found).abs().max() > 3) == (w > 1)


def test_what_its_own_call_does_beside_w_is_said():
    text = describe_run(run_stock(pipelines.ltx2(), 2, size=32))
    assert "2 steps, 8 passes per image, guidance_scale 3 by default (w = 3)" in text
    assert "note: by default it guides by more than w: stg_scale 1, modality_scale 3, g" in text
    shown = describe(preset("ltx2-distilled-8").schedule)
    assert "guides by more than w, unless it is called with stg_scale=0, modality_scale=1," in shown
    assert "more than w" not in describe(preset("ltx-distilled-8").schedule)


def test_an_export_for_a_stock_scheduler_takes_it_out_of_the_call():
    schedule = short_schedule(take("ltx2"), 3.0)
    text = export(schedule, FLOW).text
    data = json.loads(text)
    assert data["call"]["stg_scale"] == 0
    assert data["call"]["audio_guidance_scale"] is None
    target = FLOW_TARGET._replace(model=MODELS["ltx2"], noise=FlowSchedule())
    assert reading(text, "diffusers", target).lost == ()
    for key, value in (("stg_scale", 1.0), ("audio_modality_scale", 3.0)):
        other = json.dumps({**data, "call": {**data["call"], key: value}})
        with pytest.raises(UserError, match=f"not hold guidance beside w, by {key} of the call or"):
            reading(other, "diffusers", target)
    del data["call"]["guidance_rescale"]
    with pytest.raises(UserError, match="beside w, by guidance_rescale of the call or by default"):
        reading(json.dumps(data), "diffusers", target)


def test_a_folder_is_read_without_what_writes_prompts_anew(tmp_path, capsys):
    pipelines.ltx2().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    said = json.loads(index.read_text())
    said |= {"prompt_enhancer": ["transformers", "Gemma3ForConditionalGeneration"]}
    said |= {"processor": ["transformers", "Gemma3Processor"]}
    index.write_text(json.dumps(said))  # of neither there is a file
    model = open_model(ModelOptions(str(tmp_path), size=32, frames=5))
    assert "makes sound beside pictures, and it is not kept" in capsys.readouterr().err
    expected = our_images(take("ltx2"), short_schedule(model, 2.0), PROMPTS)
    assert torch.equal(our_images(model, short_schedule(model, 2.0), PROMPTS), expected)


@pytest.mark.parametrize("part", ["connectors", "audio_vae"])
def test_a_part_that_the_network_cannot_do_without_is_named(part):
    pipeline = pipelines.ltx2()
    setattr(pipeline, part, None)
    with pytest.raises(UserError, match=f"the LTX2Pipeline has no {part}"):
        take("ltx2", pipeline)
