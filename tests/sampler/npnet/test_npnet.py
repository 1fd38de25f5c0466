"""Learned golden noise: the authors' forward pass, their checkpoints, and what is refused."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import npnet
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stepsampler import GoldenNoise, LearnedNoise, ModelSpec, Schedule, ScheduleError, Step
from stepsampler.cli.app import app
from stepsampler.cli.options import check_used
from stepsampler.errors import UserError
from stepsampler.generate import generate, seeded_noise
from stepsampler.models import load
from stepsampler.npnet.conversion import convert
from stepsampler.npnet.files import (
    BUNDLED,
    as_published,
    digest_of,
    find_npnet,
    read_npnet,
    write_npnet,
)
from stepsampler.npnet.network import Layout, NPNet, Swin
from stepsampler.support.options import ModelOptions

# Inputs of `npnet.inputs` and weights of `npnet.checkpoint` in the authors' own classes
# (xie-lab-ml/Golden-Noise-for-Diffusion-Models at aa7103e, timm 1.0.31), every so manieth number
AUTHORS = json.loads((Path(__file__).parent / "authors.json").read_text())
TINY = BUNDLED / "tiny.safetensors"
SMALL = Layout(16, 16, 96, 4, Swin(32, 2, 4, 16, (1, 1), (2, 2)))
PLAN = Schedule((Step(14.0, 2.0), Step(3.0, 2.0)), 0.5, "ddim")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The authors' two layouts as files of ours; the third part under both of its names."""
    folder, found = tmp_path_factory.mktemp("npnets"), {}
    for third, (name, sizes) in zip(("embedding", "embeeding"), npnet.WIDTHS.items(), strict=True):
        torch.save(npnet.checkpoint(*sizes, third), folder / f"{name}.pth")
        found[name] = folder / f"{name}.safetensors"
        convert(folder / f"{name}.pth", found[name])
    return found


@pytest.fixture
def small(tmp_path):
    torch.manual_seed(0)
    write_npnet(tmp_path / "small.safetensors", NPNet(SMALL))
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize("name", npnet.WIDTHS)
def test_a_converted_checkpoint_makes_the_noise_of_the_authors(name, converted, monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", npnet.signed_svd)
    network, recorded = read_npnet(converted[name]), AUTHORS[name]
    noise, states = npnet.inputs(*npnet.WIDTHS[name])
    with torch.inference_mode():
        text = network.embedding(noise, states.flatten(1))
        parts = {
            "golden": network(noise, states),
            "svd": network.unet_svd(noise),
            "branch": network.unet_embedding(noise + text),
        }
    for part, made in parts.items():
        expected = torch.tensor(recorded[part])
        torch.testing.assert_close(made.flatten()[:: recorded["step"]], expected, atol=1e-3, rtol=0)
    assert parts["golden"].std() > 1


def test_each_noise_is_that_of_its_own_prompt_in_any_batch():
    network = read_npnet(TINY)
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    states = torch.randn(3, 16, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = network(noise, states)
        for k in range(3):
            alone = network(noise[k : k + 1], states[k : k + 1])
            torch.testing.assert_close(alone[0], together[k], atol=1e-5, rtol=0)


def test_a_file_comes_back_as_it_was(small):
    network = read_npnet(small)
    write_npnet(small.with_name("again.safetensors"), network)
    again = read_npnet(small.with_name("again.safetensors"))
    assert again.layout == SMALL
    for (name, a), b in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_rows_of_the_features_are_the_channels_of_the_last_convolution():
    """A port with the features' channels first would have 768 of them."""
    shape = as_published(NPNet(Layout(64, 77, 768)))["unet_embedding.upconv.weight"].shape
    assert shape == (4, 7, 1, 1)


def test_learned_noise_begins_the_trajectory_with_the_positive_prompt():
    model = load("tiny")
    plan = replace(PLAN, golden_noise=LearnedNoise(digest_of(TINY)))
    model.check(plan)
    noise = seeded_noise([5], model.shape)
    cond = model.encode(["a photo of a bag"])
    started = model.first_noise(noise, cond, plan)
    with torch.inference_mode():
        expected = read_npnet(TINY)(noise, cond["encoder_hidden_states"])
    assert torch.equal(started, expected)
    assert 0.8 < started.std() < 1.2  # fed at unit variance, and so it stays
    assert torch.equal(model.first_noise(noise, cond, PLAN), noise)

    def images(plan, **options):
        (batch,) = generate(model, plan, ["a photo of a bag"], [5], **options)
        return batch.images.float()

    golden = images(plan)
    assert not torch.equal(golden, images(PLAN))
    # guidance off: then the negative prompt has no part in anything, golden noise included
    unguided = replace(plan, steps=tuple(replace(s, guidance_scale=1.0) for s in plan.steps))
    assert torch.equal(images(unguided), images(unguided, negative_prompts="a photo of a shoe"))


def test_it_costs_no_passes_and_keeps_through_the_file():
    plan = replace(PLAN, golden_noise=LearnedNoise("0123456789abcdef"))
    assert plan.passes == PLAN.passes
    assert replace(PLAN, golden_noise=GoldenNoise(3.0, 2.0)).passes == PLAN.passes + 4
    assert Schedule.from_json(plan.to_json()) == plan
    assert '"npnet": "0123456789abcdef"' in plan.to_json()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ABC", "npnet must be the first 16 characters of a file's SHA-256, got 'ABC'"),
        (3, "npnet must be a string, got 3"),
    ],
)
def test_a_digest_is_a_digest(said, reason):
    data = json.loads(PLAN.to_json()) | {"golden_noise": {"npnet": said}}
    with pytest.raises(ScheduleError, match=reason):
        Schedule.from_json(json.dumps(data))
    data["golden_noise"] = {"npnet": "0" * 16, "sigma": 1}
    with pytest.raises(ScheduleError, match="sigma"):
        Schedule.from_json(json.dumps(data))


def test_no_flow_model_has_it():
    flow = ModelSpec("flux", "flow_prediction", (0.1, 0.3, 0.5, 0.7, 1.0))
    with pytest.raises(ScheduleError, match="golden_noise is for variance-preserving models"):
        Schedule((Step(1.0),), 0.0, "ddim", flow, golden_noise=LearnedNoise("0" * 16))


def test_a_network_that_is_nowhere_is_named(small):
    model, digest = load("tiny"), "0" * 16
    with pytest.raises(UserError, match=rf"of the NPNet {digest}: give its file \(--npnet\)"):
        model.check(replace(PLAN, golden_noise=LearnedNoise(digest)))
    with pytest.raises(UserError, match=f"of the NPNet {digest}: .*is {digest_of(small)}"):
        find_npnet(digest, str(small))
    assert find_npnet(digest_of(TINY)) == TINY


def test_a_network_for_other_latents_texts_or_models_is_refused(converted, small, tmp_path):
    model = load("tiny")
    with pytest.raises(UserError, match="latents of 4 x 64 x 64, and the model has 4 x 16 x 16"):
        model.take_npnet(str(converted["sd"]))
    write_npnet(tmp_path / "text.safetensors", NPNet(replace(SMALL, tokens=77)))
    with pytest.raises(UserError, match="77 tokens of 96 numbers, and the model has 16 x 96"):
        model.take_npnet(str(tmp_path / "text.safetensors"))
    said = {"model": json.dumps(vars(replace(model.spec, family="sdxl")))}
    write_npnet(tmp_path / "other.safetensors", NPNet(SMALL), said)
    with pytest.raises(UserError, match="made for family 'sdxl', but the model has"):
        model.take_npnet(str(tmp_path / "other.safetensors"))
    model.take_npnet(str(small))


def test_a_file_that_is_no_npnet_is_refused(small, tmp_path):
    torch.save({}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        read_npnet(tmp_path / "x.pth")
    (tmp_path / "x.pth").rename(tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match="a pickle of PyTorch"):
        read_npnet(tmp_path / "renamed.safetensors")
    save_file({"a.b": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is no NPNet"):
        read_npnet(tmp_path / "a.safetensors")
    tensors = load_file(small)
    said = {"format": "stepsample.npnet/1", "layout": SMALL.to_json()}
    for change, reason in (
        ({"beta": torch.zeros(2)}, r"beta must be of shape \(1,\), got \(2,\)"),
        ({"beta": torch.tensor([torch.nan])}, "beta is not finite"),
        ({"unet_svd.mlp9.0.weight": torch.zeros(1)}, "which no NPNet of this layout has"),
    ):
        save_file(tensors | change, tmp_path / "b.safetensors", said)
        with pytest.raises(UserError, match=reason):
            read_npnet(tmp_path / "b.safetensors")
    del tensors["alpha"]
    save_file(tensors, tmp_path / "b.safetensors", said)
    with pytest.raises(UserError, match="has no alpha"):
        read_npnet(tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", said | {"layout": '{"side": -1}'})
    with pytest.raises(UserError, match="does not say what it is made for"):
        read_npnet(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 3},
        {"side": 17},
        {"side": 2048},
        {"swin": {"embed_dim": 51}},
        {"swin": {"depths": []}},
        {"swin": {"depths": [2, 2, 2]}},
        {"swin": {"depths": [99_999, 2]}},
        {"swin": {"depths": [1] * 40, "num_heads": [1] * 40}},
        {"swin": {"num_heads": [5, 7]}},
        {"swin": {"image_size": 33}},
        {"swin": {"patch_size": 64}},
    ],
    ids=str,
)
def test_sizes_that_no_network_has_are_refused(small, tmp_path, change):
    layout = json.loads(SMALL.to_json())
    swin = layout["swin"] | change.get("swin", {})
    said = {"layout": json.dumps(layout | change | {"swin": swin}), "format": "stepsample.npnet/1"}
    save_file(load_file(small), tmp_path / "b.safetensors", said)
    with pytest.raises(UserError, match="does not say what it is made for"):
        read_npnet(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 99_999}, r"embedding.linear.weight must be of shape \(8, 1599984\), got"),
        (
            {"swin": {"embed_dim": 9600}},
            r"patch_embed.proj.weight must be of shape \(9600, 3, 2, 2",
        ),
    ],
)
def test_a_network_far_larger_than_its_file_is_not_made(small, tmp_path, change, reason):
    layout = json.loads(SMALL.to_json())
    swin = layout["swin"] | change.get("swin", {})
    said = {"layout": json.dumps(layout | change | {"swin": swin}), "format": "stepsample.npnet/1"}
    save_file(load_file(small), tmp_path / "b.safetensors", said)
    with pytest.raises(UserError, match=reason):
        read_npnet(tmp_path / "b.safetensors")


class Harmful:
    """What a pickle can do: call anything as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_conversion_runs_no_code(tmp_path):
    for name, save in (("new", torch.save), ("old", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        save({"unet_svd": Harmful(tmp_path / "ran")}, tmp_path / f"{name}.pth")
        result = CliRunner().invoke(
            app,
            ["convert-npnet", str(tmp_path / f"{name}.pth"), "-o", str(tmp_path / "x.safetensors")],
        )
        assert isinstance(result.exception, UserError)
        assert "holds other things than weights" in str(result.exception)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x.safetensors").exists()


def test_conversion_says_what_does_not_fit(tmp_path):
    out, source = tmp_path / "x.safetensors", tmp_path / "x.pth"

    def refused(data, reason):
        if data is not None:
            torch.save(data, source)
        with pytest.raises(UserError, match=reason):
            convert(source, out)

    refused(None, "no such file")
    source.write_bytes(b"not a checkpoint")
    refused(None, "is no checkpoint of torch|holds other things")
    refused({"state_dict": {}}, "has 'state_dict', which no NPNet has")
    refused({"alpha": torch.zeros(1)}, "it has no beta, embedding, unet_embedding, unet_svd")
    whole = npnet.checkpoint(64, 768)
    part = {k: v for k, v in whole["unet_svd"].items() if k != "mlp3.0.bias"}
    refused(whole | {"unet_svd": part}, "has no unet_svd.mlp3.0.bias")
    rectangular = whole["unet_svd"] | {
        "ffn.0.weight": torch.zeros(384, 256)
    }  # a fork of the seed's
    refused(whole | {"unet_svd": rectangular}, "has unet_svd.ffn.0.weight, which no NPNet")
    old = {
        k.replace("layers.1.down", "layers.0.down"): v for k, v in whole["unet_embedding"].items()
    }
    refused(whole | {"unet_embedding": old}, "layers.0.downsample")
    for alpha in ("x", None, [1, 2], torch.ones(3)):
        refused(whole | {"alpha": alpha}, "alpha must be one number")
    for odd in (
        torch.ones(64).to_sparse(),
        torch.ones(64, dtype=torch.complex64),
        torch.ones(64, device="meta"),
    ):
        part = whole["unet_svd"] | {"mlp2.0.bias": odd}
        refused(whole | {"unet_svd": part}, "unet_svd.mlp2.0.bias is no tensor of plain numbers")
    empty = whole["embedding"] | {"linear.weight": torch.ones(8, 0)}
    refused(whole | {"embedding": empty}, "none is for latents of side 64 and texts of width 0")
    with pytest.raises(UserError, match="--out must name a .safetensors file"):
        convert(source, tmp_path / "x.pth")
    assert not out.exists()


def test_the_commands_know_it(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(app, list(arguments))
        if isinstance(result.exception, UserError):
            raise result.exception
        assert not result.exception, result.output
        return result.output

    run("make", "seed-sd-8", "--guidance-scale", "2", "-o", "off.json")
    assert "16 passes" in run("make", "off.json", "--golden-noise", str(small), "-o", "on.json")
    assert f"golden noise by NPNet {digest_of(small)}" in run("show", "on.json")
    assert "golden noise" not in run("make", "on.json", "--golden-noise", "off", "-o", "y.json")
    apart = CliRunner().invoke(app, ["diff", "off.json", "on.json"])
    assert (apart.exit_code, "LearnedNoise" in apart.output) == (1, True)
    for target in ("comfyui", "sd.cpp", "diffusers:EulerDiscreteScheduler"):
        with pytest.raises(UserError, match="golden"):
            run("export", "on.json", "--to", target)
    prompt = ["--prompt", "a photo of a bag", "--seeds", "0-1"]
    with pytest.raises(UserError, match=r"of the NPNet \w{16}: give its file"):
        run("on.json", *prompt)
    run("on.json", *prompt, "--npnet", str(small), "-o", "a")
    assert len(list(Path("a").glob("p*.png"))) == 2
    with pytest.raises(UserError, match="no schedule here takes its golden noise"):
        run("off.json", *prompt, "--npnet", str(small))
    run("grid", "off.json", "on.json", *prompt, "--npnet", str(small), "-o", "g.png")
    Path("prompts.txt").write_text("a photo of a bag\n")
    run("batch", "on.json", "--prompts", "prompts.txt", "-o", "b", "--npnet", str(small))
    with pytest.raises(UserError, match="begun with another schedule"):
        run("batch", "off.json", "--prompts", "prompts.txt", "-o", "b")


def test_a_pipeline_that_samples_itself_takes_none(small):
    with pytest.raises(UserError, match="draws its first noise itself"):
        load("tiny", stock=True, npnet=str(small))
    with pytest.raises(UserError, match="learned golden noise"):
        load("tiny", stock=True).check(replace(PLAN, golden_noise=LearnedNoise(digest_of(TINY))))


def test_check_used_takes_one_schedule_of_many_that_names_it():
    learned = replace(PLAN, golden_noise=LearnedNoise("0" * 16))
    check_used(ModelOptions(npnet="x.safetensors"), [PLAN, learned])
    check_used(ModelOptions(), [PLAN])


def test_a_network_that_is_written_again_has_the_same_digest(tmp_path):
    """Schedules name it by that; the library writes other bytes each time."""
    network, told = NPNet(SMALL), {"source": "x.pth", "trained": "here", "made": "by us"}
    paths = [tmp_path / f"{k}.safetensors" for k in range(12)]
    for path in paths:
        write_npnet(path, network, told)
    assert len({digest_of(path) for path in paths}) == 1
    again = read_npnet(paths[0])
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
