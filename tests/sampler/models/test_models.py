from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import stable_diffusion

from stepsampler import ModelSpec, Schedule, Step, UserError
from stepsampler.denoiser import GuidedDenoiser
from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import BUNDLED, from_pipeline, load, resolve
from stepsampler.noise import NoiseSchedule

SD = NoiseSchedule.scaled_linear()
PROMPTS = ["a photo of a sneaker", "a shirt", "bag"]


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_is_the_same_x0(prediction_type):
    """A network that knows x0 and noise must give x0 back whatever it predicts."""
    x0, noise = torch.randn(2, 3, 4, generator=torch.manual_seed(0), dtype=torch.float64)
    sigma = 1.7
    alpha = 1 / (1 + sigma**2) ** 0.5

    def network(x, timestep, states):
        assert timestep == pytest.approx(SD.timestep(sigma))
        torch.testing.assert_close(x, alpha * (x0 + sigma * noise))  # unit variance
        return {
            "epsilon": noise,
            "v_prediction": alpha * noise - alpha * sigma * x0,
            "sample": x0,
        }[prediction_type]

    denoise = GuidedDenoiser(network, SD, prediction_type, {}, None)
    torch.testing.assert_close(denoise(x0 + sigma * noise, Step(sigma)), x0)


def test_guidance_extrapolates_and_one_costs_one_pass():
    seen = []

    def network(x, timestep, states):
        seen.append(len(x))
        return states["a"][:, None].expand_as(x)

    cond, uncond = {"a": torch.full((2,), 3.0)}, {"a": torch.full((2,), 1.0)}
    denoise = GuidedDenoiser(network, SD, "sample", cond, uncond)
    x = torch.zeros(2, 5)
    assert denoise(x, Step(1.0)).unique().tolist() == [3.0]
    assert denoise(x, Step(1.0, 2.5)).unique().tolist() == [1.0 + 2.5 * 2.0]
    assert denoise(x, Step(1.0, 0.0)).unique().tolist() == [1.0]
    assert seen == [2, 4, 4]


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(UserError, match="prediction_type must be one of epsilon, .* got 'flow'"):
        GuidedDenoiser(lambda *_: None, SD, "flow", {}, None)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_our_images_are_those_of_the_stock_pipeline(prediction_type, guidance_scale):
    """With the stock scheduler's own grid, to one step of 8-bit pixels."""
    pipeline = stable_diffusion(prediction_type)
    n = 5
    pipeline.scheduler.set_timesteps(n)
    sigmas = [SD.sigma(int(t)) for t in pipeline.scheduler.timesteps]
    schedule = from_sigmas(sigmas, SD.sigma_min, [guidance_scale] * n, 1, "ddim")
    noise = seeded_noise([0, 1, 2], (4, 16, 16))
    first = pipeline.scheduler.alphas_cumprod[int(pipeline.scheduler.timesteps[0])]
    stock = pipeline(
        PROMPTS,
        latents=noise * (1 - first).sqrt(),
        num_inference_steps=n,
        guidance_scale=guidance_scale,
        output_type="pt",
    ).images
    model = from_pipeline(pipeline)
    (batch,) = generate(model, schedule, PROMPTS, [0, 1, 2])
    torch.testing.assert_close(batch.images.float(), (stock * 255).round(), atol=1.0, rtol=0)


def test_an_image_depends_on_its_seed_and_prompt_alone(tiny):
    schedule = make_schedule("power", 3, SD, guidance_scale=2.0)
    prompts, seeds = PROMPTS * 2, [5, 6, 7, 8, 9, 10]

    def run(order, batch_size):
        texts, numbers = [prompts[i] for i in order], [seeds[i] for i in order]
        batches = generate(tiny, schedule, texts, numbers, batch_size=batch_size)
        images = torch.cat([b.images for b in batches])
        return images[torch.tensor(order).argsort()]

    forward = run([0, 1, 2, 3, 4, 5], 3)
    assert torch.equal(forward, run([0, 1, 2, 3, 4, 5], 3))
    assert torch.equal(forward, run([0, 4, 2, 3, 1, 5], 3)), "other company changes nothing"
    # elsewhere in a batch, or in one of another size, kernels add up in another order
    assert (forward.int() - run([5, 4, 3, 2, 1, 0], 3).int()).abs().max() <= 1
    for size in (1, 2, 6):
        assert (forward.int() - run([0, 1, 2, 3, 4, 5], size).int()).abs().max() <= 1


def test_churn_draws_from_a_generator_of_each_image(tiny):
    plain = make_schedule("power", 3, SD)
    steps = [replace(s, churn=0.6 * (i > 0)) for i, s in enumerate(plain.steps)]
    churned = replace(plain, steps=tuple(steps))

    def run(schedule, size):
        batches = generate(tiny, schedule, PROMPTS, [5, 6, 7], batch_size=size)
        return torch.cat([b.images for b in batches])

    assert torch.equal(run(churned, 3), run(churned, 3))
    assert (run(churned, 3).int() - run(churned, 1).int()).abs().max() <= 1
    assert not torch.equal(run(churned, 3), run(plain, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_latents_agree_across_batch_sizes(dtype):
    """To 1e-5, but in float32 of the largest latent: its sums change with batch and threads."""
    from stepsampler.sample import sample

    schedule = make_schedule("power", 3, SD, guidance_scale=2.0)
    model = from_pipeline(load("tiny").pipeline.to(dtype))

    def denoiser(start, stop):
        count = stop - start
        states = model.encode(PROMPTS[start:stop])
        return model.denoiser(states, model.encode([""] * count, True))

    noise = seeded_noise([0, 1, 2], model.shape).to(dtype)
    with torch.inference_mode():
        whole = sample(denoiser(0, 3), noise, schedule)
        single = [sample(denoiser(i, i + 1), noise[[i]], schedule) for i in range(3)]
    difference = (torch.cat(single) - whole).abs().max()
    assert difference <= (1e-5 if dtype == torch.float64 else 1e-5 * whole.abs().max())


def test_the_noise_of_a_seed_never_changes():
    assert seeded_noise([3], (2,))[0].tolist() == pytest.approx([0.803276, 0.174833], abs=1e-5)


def test_a_schedule_for_another_model_is_refused_in_one_sentence(tiny):
    step = (Step(1.0),)
    v_model = ModelSpec("stable-diffusion", "v_prediction", tiny.spec.noise)
    with pytest.raises(UserError, match="made for prediction type 'v_prediction', but the model"):
        tiny.check(Schedule(step, 0.0, "ddim", v_model))
    other = NoiseSchedule.scaled_linear(0.0001, 0.02).spec("stable-diffusion", "epsilon")
    with pytest.raises(UserError, match="made for a noise schedule with sigmas 0.01, .* but the"):
        tiny.check(Schedule(step, 0.0, "ddim", other))
    with pytest.raises(UserError, match=r"step 0: sigma 20 is above the model's highest, 14\.61"):
        tiny.check(Schedule((Step(20.0),), 0.0, "ddim"))
    tiny.check(Schedule(step, 0.0, "ddim", tiny.spec))


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder; give a diffusers folder, a hub id"):
        load("./absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        load(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="device 'cuda:7' cannot be used"):
        load("tiny", device="cuda:7")
    with pytest.raises(UserError, match="size must be a multiple of 2 pixels, got 31"):
        load("tiny", size=31)


def test_memory_of_a_cpu_that_does_not_suffice_is_one_sentence(tiny, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(tiny, "decode", full)
    with pytest.raises(UserError, match="a batch of 1 does not fit into the memory of cpu"):
        list(generate(tiny, make_schedule("power", 2, SD), ["a bag"], [0]))


def test_images_that_are_not_finite_are_refused_and_not_black(tiny):
    overflows = Schedule((Step(14.0, 1e38), Step(1.0)))
    with pytest.raises(UserError, match="the latents are not finite: the schedule overflows"):
        list(generate(tiny, overflows, ["a bag"], [0]))


def test_unequal_lists_are_refused(tiny):
    schedule = make_schedule("power", 3, SD)
    with pytest.raises(UserError, match="equally many, got 2, 2 and 1"):
        list(generate(tiny, schedule, PROMPTS[:2], [0]))


def test_bundled_folders_need_none_of_our_code():
    import subprocess
    import sys

    code = f"""
import sys, torch
from diffusers import StableDiffusionPipeline
for folder in {[resolve(name) for name in BUNDLED]!r}:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    image = pipe("a photo of a bag", num_inference_steps=2, guidance_scale=2.0).images[0]
    assert image.size == (32, 32)
assert not any(name.startswith(("stepsampler", "stepsearch")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_small_and_holds_safetensors_alone(name):
    files = [p for p in Path(resolve(name)).rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".md", ".safetensors", ".txt"}
    assert sum(p.stat().st_size for p in files) <= 10e6
