"""Statistics from images: their latents, the folder, and the states with noise on them."""

import os

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from pipelines import FAMILIES, SIZE
from typer.testing import CliRunner

from stepsampler import UserError
from stepsampler.cli.app import app
from stepsampler.estimate import EVERY, Sums, _around, _statistics
from stepsampler.generate import generate
from stepsampler.grids import make_schedule
from stepsampler.models import from_pipeline, load
from stepsampler.noise import NoiseSchedule
from stepsampler.schedule import Schedule, Step
from stepsampler.statistics.file import ends_of
from stepsampler.support.images.folder import Pictures

SD = NoiseSchedule.scaled_linear()


def spread(vae):
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5])


@pytest.mark.parametrize("change", [lambda vae: None, spread])
def test_latents_are_those_of_the_stock_pipeline_of_images(change):
    pipe = FAMILIES["sdxl"]()
    change(pipe.vae)
    model = from_pipeline(pipe, SIZE)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    given = images.float() / 127.5 - 1
    stock = StableDiffusionXLImg2ImgPipeline(**pipe.components)
    options = {"add_noise": False, "dtype": torch.float32, "device": "cpu"}
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        wanted = stock.prepare_latents(given, None, 2, 1, generator=generator, **options)
    # the noise that diffusers draws for its sample of the VAE's distribution
    noise = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    found = model.latents_of(images.byte(), noise)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert found.std() > 0.01


def test_on_the_bundled_model_they_are_decoded_to_the_images():
    model = load("tiny")
    plan = make_schedule("linspace", 3, model.noise, guidance_scale=2.0)
    (batch,) = generate(model, plan, ["a coat", "a bag"], [0, 1])
    zero = torch.zeros(2, *model.shape)
    with torch.inference_mode():
        again = model.decode(model.latents_of(batch.images, zero))
    assert (again.float() - batch.images.float()).abs().mean() < 3
    assert batch.images.float().std() > 30


def test_a_vae_without_an_encoder_is_refused():
    model = from_pipeline(FAMILIES["stable-diffusion"](), SIZE)
    model.pipeline.vae.encoder = None
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"the VAE \(AutoencoderKL\) has no encoder"):
        model.latents_of(images, torch.zeros(1, *model.shape))


def test_the_statistics_are_those_of_a_known_distribution():
    """Of x0 = +-1, of which the means over noise are known by quadrature."""
    n, levels = 5_000, 121
    lambdas = np.linspace(*ends_of(SD), levels)
    sigmas = np.exp(-lambdas)
    plan = Schedule(tuple(Step(float(s), 1.0) for s in sigmas), 0.0, "exact")
    draws = torch.Generator().manual_seed(0)
    latents, noise, signs = (torch.randn(n, 1, 4, 4, generator=draws) for _ in range(3))
    sums = Sums.none(levels, (1, 4, 4))
    model = type("", (), {"spec": SD.spec("toy", "epsilon")})
    _around(
        sums,
        lambda y, step: torch.tanh(y / step.sigma**2),
        plan,
        latents.sign(),
        noise,
        signs.sign(),
    )
    sums.done = n
    made = _statistics(sums, lambdas, 1.0, model)
    l, s, b = (v.mean((1, 2, 3)) for v in (made.l, made.s, made.b))  # noqa: E741

    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    y = 1 + sigmas[:, None] * z  # by symmetry those of x0 = 1 do for all that is even
    d = np.tanh(y / sigmas[:, None] ** 2)
    kept = ((1 - d**2) / sigmas[:, None] ** 2 * weights).sum(1)
    knots = range(0, levels, EVERY)
    kept = np.interp(lambdas, lambdas[knots], kept[knots])
    slope = np.gradient(kept, lambdas)[:, None]
    ahead = (1 - d**2) * (2 * y + (d - y)) / sigmas[:, None] ** 2  # d' along y' = d - y
    f = kept[:, None] * y - d
    df = slope * y + kept[:, None] * (d - y) - ahead
    # below the prediction is steeper than the nudge for l, above f is near 0
    wide = (sigmas > 0.6) & (sigmas < 2)
    wanted = (f * df * weights).sum(1) / (f**2 * weights).sum(1)  # means of f and f' are 0
    assert l[wide] == pytest.approx(1 - kept[wide], abs=0.03)
    assert s[wide] == pytest.approx(wanted[wide], abs=0.08)
    assert np.ptp(wanted[wide]) > 0.5
    assert b[wide] == pytest.approx(0, abs=0.05)
    assert float(sums.errors[0] / sums.errors[1]) ** 0.5 < 0.05


def picture(path, width, height):
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    picture(place / "a.png", 32, 32)
    picture(place / "b.jpg", 48, 40)
    picture(place / "small.png", 40, 31)
    (place / "broken.png").write_bytes(b"no")
    os.mkfifo(place / "pipe.png")  # which would be waited for
    (place / "a.txt").write_text("a coat\n")
    (place / ".hidden.png").write_bytes(b"no")
    return place


def test_images_of_a_folder_have_the_size_and_the_text_beside_them(folder, capsys):
    found = Pictures.read(folder, 32, 10)
    assert [(p.path.name, p.text) for p in found.found] == [("a.png", "a coat"), ("b.jpg", "")]
    pixels = found.pixels(range(3), 32)
    assert pixels.shape == (3, 3, 32, 32)
    assert torch.equal(pixels[0], pixels[2])
    said = capsys.readouterr().err
    assert "3 files: broken.png (no image, begins with b'no'), pipe.png (no file), small.p" in said
    assert [p.path.name for p in Pictures.read(folder, 32, 1).found] == ["a.png"]
    with pytest.raises(UserError, match=r"no image that can be taken: a\.png \(32 x 32, smaller"):
        Pictures.read(folder, 512, 10)
    with pytest.raises(UserError, match="no folder of images"):
        Pictures.read(folder / "a.png", 32, 10)


def test_the_command_takes_a_folder_and_names_what_it_leaves_out(folder, tmp_path):
    out, size = tmp_path / "s.safetensors", ("--intervals", "4", "--samples", "3")
    given = ("statistics", "--guidance-scale", "2", *size, "--images", str(folder))
    result = CliRunner().invoke(app, [*given, "-o", str(out)])
    assert result.exit_code == 1
    assert "without a prompt: 1 of 2 images" in result.output
    assert "statistics of guidance scale 2 in 4 intervals" in result.output
    first = out.read_bytes()
    (folder / "small.png").unlink()
    (folder / "broken.png").unlink()
    (folder / "pipe.png").unlink()
    result = CliRunner().invoke(app, [*given, "--prompt", "a bag", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes() != first
