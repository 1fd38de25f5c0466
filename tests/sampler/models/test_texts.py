"""How prompts are read: what is cut is said, chunks are ComfyUI's, clip skip is diffusers'."""

from types import SimpleNamespace

import numpy as np
import pipelines
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel

from stepsampler import Schedule, Step, UserError
from stepsampler.denoiser import stack
from stepsampler.generate import generate, seeded_noise
from stepsampler.models import from_pipeline, load
from stepsampler.models.additions import add_textual_inversion
from stepsampler.models.texts import check_vocabularies, clip_chunks

SIZE = pipelines.SIZE
SHORT, LONG = "a fox", "a red fox jumps over a lazy dog, "  # a chunk has 14 tokens; this has 2
LONGER = LONG * 3
CLIPS = ("stable-diffusion", "sdxl")
OTHERS = ("pixart-alpha", "pixart-sigma", "sana", "flux-dev", "flux-schnell", "dit", "ddpm")


@pytest.fixture(autouse=True)
def old_transformers(monkeypatch):
    """What the stock pipeline looks for under `clip_skip`, and transformers 5 no longer has."""
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)


def images(model, prompts, negative="", scales=(3.0, 1.0, 2.0), seeds=None, batch_size=16):
    steps = tuple(
        Step(8.0 * part, scale) for part, scale in zip((1.0, 0.5, 0.2), scales, strict=True)
    )
    schedule = Schedule(steps, 0.0, "ddim", model.spec)
    seeds = list(range(len(prompts))) if seeds is None else seeds
    made = generate(
        model, schedule, prompts, seeds, negative_prompts=negative, batch_size=batch_size
    )
    return torch.cat([batch.images for batch in made])


def by_hand(pipeline, prompt, layer=None):
    """Each 14 tokens between begin and end through every encoder of transformers alone."""
    columns, pooled = [], None
    for number in ("", "_2") if hasattr(pipeline, "text_encoder_2") else ("",):
        tokenizer = getattr(pipeline, f"tokenizer{number}")
        encoder = getattr(pipeline, f"text_encoder{number}")
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        rows = []
        for start in range(0, len(ids), 14):
            part = ids[start : start + 14]
            row = [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
            row += [tokenizer.pad_token_id] * (16 - len(row))
            with torch.no_grad():
                output = encoder(torch.tensor([row]), output_hidden_states=True)
            rows.append(output.hidden_states[layer] if layer else output[0])
            if start == 0:
                pooled = output[0]
        columns.append(torch.cat(rows, 1))
    return torch.cat(columns, -1), pooled


def test_chunks_of_stable_diffusion_are_concatenated():
    pipeline = pipelines.stable_diffusion()
    model = from_pipeline(pipeline, long_prompts="chunk")
    states, _ = by_hand(pipeline, LONGER)
    assert states.shape[1] > 2 * 16
    torch.testing.assert_close(model.encode([LONGER])["encoder_hidden_states"], states)


def test_chunks_of_sdxl_are_concatenated_and_the_first_is_pooled():
    pipeline = pipelines.sdxl()
    model = from_pipeline(pipeline, SIZE, long_prompts="chunk")
    states, pooled = by_hand(pipeline, LONGER, layer=-2)
    condition = model.encode([LONGER])
    torch.testing.assert_close(condition["encoder_hidden_states"], states)
    torch.testing.assert_close(condition["text_embeds"], pooled)


@pytest.mark.parametrize("name", CLIPS)
def test_the_stock_pipeline_makes_the_same_image_of_the_same_embeddings(name):
    """Both sides are padded to equal length by what changes no attention: their own words again."""
    pipeline = pipelines.FAMILIES[name]()
    model = from_pipeline(pipeline, SIZE, long_prompts="chunk")
    negative = LONG * 2
    given = {"prompt": LONGER, "negative_prompt": negative}
    embeddings = {}
    for key, text in given.items():
        states, pooled = by_hand(pipeline, text, layer=-2 if name == "sdxl" else None)
        embeddings[f"{key}_embeds"] = states
        if name == "sdxl":
            head = "negative_" if key.startswith("negative") else ""
            embeddings[f"{head}pooled_prompt_embeds"] = pooled
    a, b = (embeddings[f"{key}_embeds"].shape[1] for key in given)
    assert a != b
    length = int(np.lcm(a, b))
    for key, own in (("prompt_embeds", a), ("negative_prompt_embeds", b)):
        embeddings[key] = embeddings[key].repeat(1, length // own, 1)
    stock = pipeline(
        **embeddings,
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=seeded_noise([5], model.shape),
        output_type="np",
    ).images[0]
    times = pipeline.scheduler.timesteps.tolist()
    steps = tuple(Step(float(model.noise.sigma(t)), 3.0) for t in times)
    schedule = Schedule(steps, float(model.noise.sigma(0)), "ddim", model.spec)
    (batch,) = generate(model, schedule, [LONGER], [5], negative_prompts=negative)
    ours = batch.images[0].permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - np.round(stock * 255)).max() <= 1


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("negative", ["", "blurry"])
def test_a_short_prompt_gives_the_same_bits_with_both_settings(name, negative):
    chunked = from_pipeline(pipelines.FAMILIES[name](), SIZE, long_prompts="chunk")
    plain = from_pipeline(pipelines.FAMILIES[name](), SIZE)
    for prompt in (SHORT, "", "   ", "x" * 14):
        assert torch.equal(images(chunked, [prompt], negative), images(plain, [prompt], negative))


@pytest.mark.parametrize("name", CLIPS)
def test_an_image_does_not_depend_on_longer_prompts_beside_it(name):
    model = from_pipeline(pipelines.FAMILIES[name](), SIZE, long_prompts="chunk")
    prompts = [SHORT, LONGER, LONG * 2, SHORT]
    together = images(model, prompts, LONG * 2).int()
    for k, prompt in enumerate(prompts):
        alone = images(model, [prompt], LONG * 2, seeds=[k]).int()
        assert (together[k] - alone[0]).abs().max() <= 1


def test_the_end_of_a_long_prompt_is_seen_in_chunks_only():
    a, b = LONGER + "a red bag", LONGER + "a blue cat"
    for how, same in (("cut", True), ("chunk", False)):
        model = from_pipeline(pipelines.stable_diffusion(), long_prompts=how)
        made = images(model, [a, b], seeds=[1, 1])
        assert torch.equal(made[0], made[1]) == same


def test_texts_that_are_repeated_are_attended_to_alike():
    generator = torch.manual_seed(0)
    query, text = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 6, 8)
    longer = stack([text, torch.randn(2, 9, 8)])[:2]
    assert longer.shape == (2, 18, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, longer, longer), attend(query, text, text))


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("skip", [None, 1])
def test_clip_skip_is_that_of_the_stock_pipeline(name, skip):
    """Negative prompts included, which it reads at the layer that is taken without."""
    pipeline = pipelines.FAMILIES[name]()
    model = from_pipeline(pipeline, SIZE, clip_skip=skip)
    options = {"do_classifier_free_guidance": True, "clip_skip": skip, "device": "cpu"}
    given = [SHORT, "cpu", 1, True, "blurry"] if name != "sdxl" else [SHORT]
    if name == "sdxl":
        cond, uncond, *_ = pipeline.encode_prompt(SHORT, negative_prompt="blurry", **options)
    else:
        cond, uncond = pipeline.encode_prompt(*given, clip_skip=skip)
    assert torch.equal(model.encode([SHORT])["encoder_hidden_states"], cond)
    assert torch.equal(model.encode(["blurry"], True)["encoder_hidden_states"], uncond)
    if skip:
        plain = from_pipeline(pipeline, SIZE).encode([SHORT])["encoder_hidden_states"]
        assert not torch.equal(plain, cond)


def test_clip_skip_of_sd3_is_that_of_the_stock_pipeline():
    pipeline = pipelines.sd3()
    model = from_pipeline(pipeline, SIZE, clip_skip=1)
    cond, uncond, *_ = pipeline.encode_prompt(
        SHORT, None, None, negative_prompt="blurry", clip_skip=1
    )
    assert torch.equal(model.encode([SHORT])["encoder_hidden_states"], cond)
    assert torch.equal(model.encode(["blurry"], True)["encoder_hidden_states"], uncond)


def test_clip_skip_holds_in_every_chunk():
    pipeline = pipelines.sdxl()
    model = from_pipeline(pipeline, SIZE, clip_skip=1, long_prompts="chunk")
    states, _ = by_hand(pipeline, LONGER, layer=-3)
    torch.testing.assert_close(model.encode([LONGER])["encoder_hidden_states"], states)


@pytest.mark.parametrize("name", OTHERS)
def test_families_without_layers_of_clip_refuse_both_by_name(name):
    pipeline = pipelines.FAMILIES[name]()
    size = None if name == "ddpm" else SIZE
    cls = type(pipeline).__name__
    with pytest.raises(UserError, match=rf"--clip-skip is not for a {cls}, which takes no hidden"):
        from_pipeline(pipeline, size, clip_skip=1)
    with pytest.raises(UserError, match=rf"--long-prompts chunk is not for a {cls}"):
        from_pipeline(pipeline, size, long_prompts="chunk")


@pytest.mark.parametrize("skip", [0, -1, 2])
def test_layers_that_there_are_not_are_refused(skip):
    with pytest.raises(UserError, match=rf"--clip-skip must be 1 to 1, got {skip}: CLIP has 1 "):
        from_pipeline(pipelines.stable_diffusion(), clip_skip=skip)
    with pytest.raises(UserError, match="must be one of cut, chunk, got 'no'"):
        from_pipeline(pipelines.stable_diffusion(), long_prompts="no")


def test_prompts_that_are_cut_are_counted_and_named_once(capsys):
    def notes(*given):
        images(*given)
        return capsys.readouterr().err.splitlines()

    model = from_pipeline(pipelines.stable_diffusion())
    prompts = [SHORT, LONGER, *(f"{LONGER}{k}" for k in range(4)), "x" * 14]
    (said,) = notes(model, prompts)
    assert said.startswith("note: 5 of 7 prompts are longer than the 16 tokens that CLIP takes")
    assert "number 1 (" in said
    assert "and 2 more" in said or ", 2 more" in said
    assert "--long-prompts chunk" in said
    assert notes(model, prompts) == []
    (said,) = notes(model, [SHORT], LONGER)
    assert said.startswith("note: 1 of 1 negative prompts are longer")
    chunked = from_pipeline(pipelines.stable_diffusion(), long_prompts="chunk")
    assert notes(chunked, prompts, LONGER) == []


@pytest.mark.parametrize(
    ("name", "most", "encoder"),
    [
        ("pixart-alpha", 120, "T5"),
        ("pixart-sigma", 300, "T5"),
        ("sana", 300, "GEMMA2"),
        ("sd3", 256, "T5"),
        ("flux-dev", 512, "T5"),
    ],
)
def test_the_limit_is_that_at_which_the_stock_pipeline_cuts(name, most, encoder):
    """The longest prompt that fits differs from one of a letter less; the next longer does not."""
    model = from_pipeline(pipelines.FAMILIES[name](), SIZE)
    room = next(
        n for n in range(most, 0, -1) if f"{most} tokens that {encoder}" not in said(model, "y" * n)
    )
    assert most - 4 < room <= most
    states = [
        model.encode(["y" * n + "z" * 3])["encoder_hidden_states"] for n in (room - 3, room - 1)
    ]
    cut = model.encode(["y" * (room - 1) + "zxx"])["encoder_hidden_states"]
    assert torch.equal(states[1], cut)  # what is beyond the limit is not seen …
    whole = model.encode(["y" * (room - 3) + "zzx"])["encoder_hidden_states"]
    assert not torch.equal(states[0], whole)  # … and what is within is


def said(model, prompt):
    return " ".join(model.cuts([prompt]))


def test_words_of_several_vectors_count_and_stay_in_one_chunk(tmp_path):
    pipeline = pipelines.stable_diffusion()
    save_file({"<toy>": torch.randn(4, 32)}, tmp_path / "toy.safetensors")
    add_textual_inversion(pipeline, str(tmp_path / "toy.safetensors"))
    model = from_pipeline(pipeline)
    assert said(model, "x" * 10 + " <toy>") == ""
    assert "1 of 1 prompts" in said(model, "x" * 11 + " <toy>")
    tokenizer = pipeline.tokenizer
    text = pipeline.maybe_convert_prompt("x" * 11 + " <toy> y", tokenizer)
    first, second = clip_chunks(tokenizer, text)
    word = tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1", "<toy>_2", "<toy>_3"])
    assert second[1:5] == word
    assert not set(word) & set(first)
    assert len(first) == len(second) == 16


def test_prompts_of_a_long_set_are_counted_a_few_at_a_time(monkeypatch):
    model = load("tiny")
    tokenizer, sizes = model.pipeline.tokenizer, []
    call = type(tokenizer).__call__

    def spy(self, text, **options):
        sizes.append(len(text))
        return call(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", spy)
    texts = [f"a photo of a bag, a shirt, a coat and boot number {k}, in grey" for k in range(1000)]
    (sentence,) = model.cuts(["a bag", *texts])
    assert sentence.startswith("1000 of 1001 prompts are longer")
    assert max(sizes) <= 256


class TwoWords:
    def __len__(self):
        return 2

    def __call__(self, text):
        return text


def test_the_words_of_a_processor_are_those_of_its_tokenizer():
    """FLUX.2 dev has a processor of images and texts in its tokenizer's place, without a length."""
    pipeline = pipelines.stable_diffusion()
    check_vocabularies(pipeline)
    parts = dict(pipeline.components)
    parts["tokenizer"] = SimpleNamespace(tokenizer=parts["tokenizer"])
    check_vocabularies(SimpleNamespace(components=parts, **parts))
    parts["tokenizer"].tokenizer = TwoWords()
    with pytest.raises(UserError, match="knows 2 words and its encoder 267"):
        check_vocabularies(SimpleNamespace(components=parts, **parts))
