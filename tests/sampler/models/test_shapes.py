"""Images that are not square: every family against its stock pipeline; sizes that are refused."""

import pipelines
import pytest
import torch
from families import (
    STOCK,
    UNCONDITIONAL,
    our_images,
    prepare,
    prompts_of,
    stock_images,
    stock_schedule,
    take,
)

from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.models import ModelOptions, from_pipeline, outline
from stepsampler.support.sizes import sides, size_of

WIDTH, HEIGHT = 32, 48
SIZE = f"{WIDTH}x{HEIGHT}"


@pytest.mark.parametrize("name", [name for name in STOCK if name != "dit"])
def test_images_that_are_not_square_are_those_of_the_stock_pipeline(name):
    """The shift of its sigmas, its conditions and its places are of the real shape too."""
    n, pipeline = 3, prepare(name)
    width, height, size = WIDTH, HEIGHT, SIZE
    if name in ("sana", "ltx", "ltx2", "ltx2.3"):  # pixels of which both sides are multiples: 32
        width, height, size = 64, 96, "64x96"
    if name in UNCONDITIONAL:  # the stock pipelines take it from there alone
        pipeline.unet.register_to_config(sample_size=[HEIGHT // 2, WIDTH // 2])
        width, height, size = WIDTH // 2, HEIGHT // 2, None
    scale = 1.0 if name in UNCONDITIONAL else 3.0
    theirs = stock_images(name, pipeline, n, scale, height=height, width=width)
    model = take(name, pipeline, size)
    assert (model.width, model.height, model.size) == (width, height, f"{width}x{height}")
    ours = our_images(model, stock_schedule(model, n, scale), prompts_of(name))
    assert ours.shape[-2:] == (height, width)
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)
    if model.prediction_type == "flow_prediction" and STOCK[name].even:
        made = make_schedule("linspace", n, model.noise, model=model.spec).sigmas
        assert made == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_a_u_net_takes_latents_of_odd_sides_as_its_stock_pipeline_does(name):
    pipeline = prepare(name)
    pipeline.check_inputs = lambda *_, **__: None  # of 8 pixels an entry, here there are 2
    theirs = stock_images(name, pipeline, 2, 3.0, height=34, width=30)
    model = take(name, pipeline, "30x34")
    ours = our_images(model, stock_schedule(model, 2, 3.0), prompts_of(name))
    torch.testing.assert_close(ours.float(), theirs, atol=1.0, rtol=0)


def test_pixart_is_told_resolution_and_aspect_where_it_asks():
    """As the alpha model of 1024 pixels; its miniature does not ask."""
    pipeline = prepare("pixart-alpha")
    pipeline.transformer.use_additional_conditions = True
    condition = take("pixart-alpha", pipeline, SIZE).encode(["a"])
    assert condition["resolution"].tolist() == [[HEIGHT, WIDTH]]
    assert condition["aspect_ratio"].tolist() == [[HEIGHT / WIDTH]]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd3", 33, "size must be a multiple of 4 pixels, got 33: the nearest are 32 and 36"),
        ("sd3", "32x33", "multiple of 4 pixels, got 32x33: the nearest are 32 and 32x36"),
        ("sd3", "2x32", "multiple of 4 pixels, got 2x32: the nearest is 4x32"),
        ("sd3", "32x9999", "and at most [0-9,]+ pixels a side, got 32x9999: the nearest is 32x"),
        ("lumina2", 99968, "size must be at most [0-9,]+ pixels a side, got 99968: the nearest is"),
        ("z-image", 99968, "size must be at most [0-9,]+ pixels a side, got 99968: the nearest is"),
        ("dit", SIZE, "that of a square, .*, got 32x48: the nearest are 32 and 48"),
        ("ddpm", "17x16", "a multiple of 2 pixels, got 17x16: the nearest are 16 and 18x16"),
        ("sd3", "32 by 32", "size must be pixels, .* 768x1024 .width x height., got '32 by 32'"),
        ("sd3", "0x32", "at least 1, such as"),
    ],
)
def test_a_size_that_a_model_cannot_make_is_refused_with_the_nearest(name, size, message):
    with pytest.raises(UserError, match=message):
        from_pipeline(pipelines.FAMILIES[name](), size)


@pytest.mark.parametrize("name", ["sd3", "lumina2", "z-image"])
def test_the_largest_size_is_one_that_the_network_takes(name):
    model = take(name)
    most = model._most * model._factor
    large = take(name, model.pipeline, f"{most}x{model._multiple}")
    ours = our_images(large, make_schedule("linspace", 1, large.noise, model=large.spec), ["a"] * 3)
    assert ours.shape[-2:] == (model._multiple, most)
    with pytest.raises(UserError, match=f"the nearest is {most}x{model._multiple}"):
        take(name, model.pipeline, f"{most + model._multiple}x{model._multiple}")


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_an_outline_without_weights_has_the_shape_of_the_model(name, tmp_path):
    """What `stepsearch check` asks, of any family, before the weights are loaded."""
    pipeline = pipelines.FAMILIES[name]()
    pipeline.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.write_bytes(b"")
    found = outline(ModelOptions(str(tmp_path)), tmp_path)
    assert found.shape == from_pipeline(pipeline).shape
    assert found.spec == from_pipeline(pipeline).spec
    assert all(value.is_meta for value in found.net.parameters())
    with pytest.raises(UserError, match="size must be a multiple of"):
        outline(ModelOptions(str(tmp_path), size=31), tmp_path)


def test_a_size_is_read_and_written_one_way():
    for text in ("768x1024", "768X1024", " 768 × 1024 ", "0768x1024"):
        assert sides(text) == (768, 1024)
    assert sides("512") == sides(512) == sides("512x512") == (512, 512)
    assert (size_of(768, 1024), size_of(512, 512)) == ("768x1024", 512)
    for wrong in ("", "x", "512x", "-512", "512x512x3", "1.5x2", True, "0"):
        with pytest.raises(UserError, match="--size must be pixels"):
            sides(wrong, "--size")
