"""The vendors' presets against the schedulers and pipelines that run them."""

from math import exp, log

import numpy as np
import pipelines
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.pipelines.ltx2 import utils as ltx2
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from families import our_images, stock_images, take
from PIL import Image
from pipelines import PROMPTS
from typer.testing import CliRunner

from stepsampler.cli.app import app
from stepsampler.presets import names, preset
from stepsampler.scheduler import StepScheduler

# name -> shift, and the w of every step
STATIC = {
    "z-image-turbo-8": (3.0, 1.0),
    "z-image-8": (6.0, 5.0),
    "z-image-28": (6.0, 5.0),
    "z-image-50": (6.0, 5.0),
    "chroma-8": (3.0, 3.0),
    "chroma-40": (3.0, 3.0),
    "flux-schnell-4": (1.0, 1.0),
    "wan22-lightning-4": (5.0, 1.0),
}
QWEN = {
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
}
LIGHTNING = {"base_shift": log(3), "max_shift": log(3), "max_image_seq_len": 8192}
TURBO = [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]  # TURBO_SIGMAS of fal's card
LTX = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219]  # allowed_inference_steps
SD = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
# model of a preset -> the miniature of its kind
MINIATURES = {
    "z-image": "z-image",
    "qwen-image": "qwen-image",
    "chroma": "chroma",
    "flux2": "flux2-klein",
    "flux": "flux-schnell",
    "sdxl": "sdxl",
    "sd15": "stable-diffusion",
}
FILES = ("z-image-", "qwen-image-", "chroma-", "flux2-", "flux-schnell-", "sdxl-lightning-")
OURS = [name for name in names() if name.startswith((*FILES, "sdxl-turbo-", "sd-turbo-"))]


def levels(n, mu=None, sigmas=None, **config):
    """What FlowMatchEuler makes of the even levels that every one of these pipelines hands it."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=mu is not None, **config)
    even = np.linspace(1.0, 1 / n, n) if sigmas is None else sigmas
    scheduler.set_timesteps(sigmas=even, mu=mu)
    return scheduler.sigmas.tolist()


def has(name, sigmas, w=1.0, guidance="classifier-free"):
    found = preset(name).schedule
    assert found.sigmas == pytest.approx(sigmas, rel=1e-6, abs=0)
    assert {step.guidance_scale for step in found.steps} == {w}
    assert (found.solver, found.guidance) == ("ddim", guidance)
    return True


@pytest.mark.parametrize("name", STATIC)
def test_a_table_of_a_fixed_shift_is_what_the_scheduler_runs(name):
    shift, w = STATIC[name]
    assert has(name, levels(preset(name).schedule.num_steps, shift=shift), w)


@pytest.mark.parametrize("n", [8, 50])
def test_the_tables_of_qwen_image_are_those_of_its_own_size(n):
    mu = calculate_shift((1328 // 16) ** 2, 256, 8192, 0.5, 0.9)
    assert has(f"qwen-image-{n}", levels(n, mu, shift_terminal=0.02, **QWEN), 4.0)
    assert preset(f"qwen-image-{n}").schedule.sigmas[-2] == pytest.approx(0.02, rel=1e-5)


@pytest.mark.parametrize("n", [4, 8])
def test_qwen_image_lightning_has_one_shift_at_every_size(n):
    for tokens in (256, 6889):
        mu = calculate_shift(tokens, 256, 8192, log(3), log(3))
        assert has(f"qwen-image-lightning-{n}", levels(n, mu, **LIGHTNING))


def test_the_shift_of_flux2_depends_on_the_number_of_steps():
    tokens = (1024 // 16) ** 2
    for name, n, w, guidance in (
        ("flux2-klein-4", 4, 1.0, "classifier-free"),
        ("flux2-dev-8", 8, 4.0, "distilled"),
        ("flux2-dev-50", 50, 4.0, "distilled"),
    ):
        assert has(name, levels(n, compute_empirical_mu(tokens, n), shift=3.0), w, guidance)
    turbo = levels(8, compute_empirical_mu(tokens, 8), TURBO, shift=3.0)
    assert turbo != pytest.approx([*TURBO, 0.0], abs=0.3)  # shifted once more than it seems
    assert has("flux2-dev-turbo-8", turbo, 2.5, "distilled")


def test_ltx_tables_are_the_published_lists():
    assert has("ltx-distilled-8", [*LTX, 0.0])
    assert has("ltx-distilled-7", [*LTX[:7], 0.0])
    assert has("ltx-distilled-upscale-3", [*LTX[5:], 0.0])
    assert has("ltx2-distilled-8", [*ltx2.DISTILLED_SIGMA_VALUES, 0.0])
    assert has("ltx2-distilled-upscale-3", [*ltx2.STAGE_2_DISTILLED_SIGMA_VALUES, 0.0])


@pytest.mark.parametrize("name", ["ltx-distilled-8", "ltx2-distilled-8", "wan22-lightning-4"])
def test_a_stock_video_pipeline_runs_them_without_a_further_shift(name):
    config = {"use_dynamic_shifting": True, "shift_terminal": 0.1, "base_shift": 0.95}
    stock = FlowMatchEulerDiscreteScheduler(**config)
    found = preset(name).schedule
    scheduler = StepScheduler.from_config(stock.config, schedule=found)
    even = np.linspace(1.0, 1 / found.num_steps, found.num_steps)
    scheduler.set_timesteps(sigmas=even, mu=2.05)
    wanted = [1000 * sigma for sigma in found.sigmas[:-1]]
    assert scheduler.timesteps.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["sdxl-lightning-2", "sdxl-lightning-4", "sdxl-lightning-8",
                                  "sd-turbo-1", "sd-turbo-4"])  # fmt: skip
def test_distilled_diffusion_runs_at_whole_trailing_timesteps(name):
    scheduler = EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(preset(name).schedule.num_steps)
    assert scheduler.timesteps.tolist() == [int(t) for t in scheduler.timesteps]
    assert has(name, scheduler.sigmas.tolist())


@pytest.mark.parametrize("n", [1, 4])
def test_the_fresh_noise_of_sdxl_turbo_is_the_ancestral_rules(n):
    scheduler = EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(n)
    assert has(f"sdxl-turbo-{n}", scheduler.sigmas.tolist())
    steps = preset(f"sdxl-turbo-{n}").schedule.steps
    assert steps[0].churn == 0
    x, flat = torch.ones(1), torch.zeros(1)  # an x0 of x: what a step adds is fresh noise alone
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        after = scheduler.step(flat, t, x, generator=torch.manual_seed(i)).prev_sample - x
        drawn = after / torch.randn(1, generator=torch.manual_seed(i))
        share = steps[i + 1].churn * steps[i + 1].sigma if i + 1 < n else 0.0
        assert drawn.item() == pytest.approx(share, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "name",
    ["z-image-turbo-8", "z-image-8", "chroma-8", "flux-schnell-4", "qwen-image-lightning-4",
     "flux2-klein-4"],
)  # fmt: skip
def test_our_loop_makes_the_images_of_the_vendors_call(name):
    """Of a tiny pipeline with the model's own shift; klein's is that of 1024 pixels and 4 steps."""
    found = preset(name).schedule
    kind, n, w = MINIATURES[preset(name).model], found.num_steps, found.steps[0].guidance_scale
    shifts = {"qwen-image-lightning-4": 3.0, "flux2-klein-4": exp(compute_empirical_mu(4096, 4))}
    pipeline = pipelines.FAMILIES[kind]()
    shift = shifts[name] if name in shifts else STATIC[name][0]
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = stock_images(kind, pipeline, n, w)
    ours = our_images(take(kind), found, PROMPTS).float()
    assert theirs.std() > 10
    torch.testing.assert_close(ours, theirs, atol=1.0, rtol=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = place / kind
            pipelines.FAMILIES[kind]().save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.mark.parametrize("name", [n for n in OURS if preset(n).schedule.num_steps <= 8])
def test_a_vendors_preset_runs_by_its_name(name, folders, tmp_path):
    found = preset(name)
    distilled = found.schedule.guidance == "distilled"
    folder = folders("flux2-dev" if distilled else MINIATURES[found.model])
    result = CliRunner().invoke(
        app,
        [name, "--model", str(folder), "--size", "32", "--prompt", "a bag", "--seeds", "0-1",
         "-o", str(tmp_path / "out")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{found.schedule.passes} pass" in result.output
    assert Image.open(tmp_path / "out" / "p0000-s00001.png").size == (32, 32)
    assert set(MINIATURES) == {preset(n).model for n in OURS}
