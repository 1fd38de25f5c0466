"""Pairs of noise against their closed form, and a training that is killed and goes on."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from stepsampler import Schedule, Step
from stepsampler.errors import UserError
from stepsampler.generate import seeded_noise
from stepsampler.models import load
from stepsampler.npnet.files import read_npnet
from stepsampler.npnet.network import Layout, NPNet, Swin
from stepsampler.support.options import ModelOptions
from stepsearch.metrics.alignment import load_alignment, load_prompts
from stepsearch.npnet.command import Asked, train
from stepsearch.npnet.pairs import Collector, better_noise
from stepsearch.npnet.training import Epoch, Settings, Trainer

SMALL = Layout(8, 4, 6, 4, Swin(16, 2, 4, 8, (1, 1), (2, 2)))
PLAN = Schedule((Step(14.0, 3.0), Step(2.0, 1.0)), 0.5, "ddim")


def test_what_the_guidance_adds_to_a_prediction_comes_back_in_the_noise():
    """Of a denoiser with x0 = m + w g: x comes back with (first - second) / second (w - w') g."""
    g = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))

    def denoise(x, step):
        return (1 + step.guidance_scale * g).expand_as(x)

    first = Step(10.0, 5.0)
    made = better_noise(denoise, noise, first, 4.0, 1.0)
    expected = noise + (10.0 / 4.0 - 1) * (5.0 - 1.0) * g / 10.0
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(better_noise(denoise, noise, first, 4.0, 5.0), noise)


def trainer(epochs):
    """Better noise is 0.8 of the noise: what singular values alone can say."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, *SMALL.latent, generator=generator)
    torch.manual_seed(0)
    at = torch.zeros(40, dtype=torch.int64)
    settings = Settings(epochs, 3e-3, 16)
    return Trainer(NPNet(SMALL), (noise, 0.8 * noise), torch.ones(1, 4, 6), at, settings)


def test_it_learns_and_a_killed_one_ends_the_same(tmp_path):
    told: list[Epoch] = []
    whole = trainer(6)
    error = whole.run(tmp_path / "whole.safetensors", told.append)
    assert [epoch.done for epoch in told] == [1, 2, 3, 4, 5, 6]
    assert error == min(epoch.held_out for epoch in told) < 0.5 * told[0].still

    class KilledError(Exception):
        pass

    def kill(epoch):
        if epoch.done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        trainer(6).run(tmp_path / "cut.safetensors", kill)
    again, rest = trainer(6), list[Epoch]()
    assert again.run(tmp_path / "cut.safetensors", rest.append) == error
    assert [epoch.done for epoch in rest] == [4, 5, 6]
    state = whole.network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.network.state_dict().items())


@pytest.fixture(scope="module")
def collector():
    prompts = load_prompts("fashion-mnist")
    return Collector(
        load("tiny"), PLAN, prompts, load_alignment("classes", prompts), 1.0, batch_size=8
    )


def test_pairs_follow_from_their_seeds_and_are_recalled(collector, tmp_path, monkeypatch):
    monkeypatch.setattr("stepsearch.npnet.pairs.CHUNK", 8)
    told: list[int] = []
    pairs = collector.collect(range(16), tmp_path, told.append)
    assert told == [8, 16]
    assert pairs.better.shape == (16, 4, 16, 16)
    assert 0 < (pairs.better - seeded_noise(range(16), (4, 16, 16))).square().mean() < 0.5
    assert pairs.kept == [k for k in range(16) if pairs.scores[k, 1] > pairs.scores[k, 0]]
    assert (pairs.scores <= 0).all()  # logarithms

    def no_call(*_):
        raise AssertionError("called")

    monkeypatch.setattr(type(collector.model), "denoiser", no_call)
    again = collector.collect(range(16), tmp_path, told.append)
    assert torch.equal(again.better, pairs.better)


def asked(folder, **options):
    schedule = folder / "plan.json"
    if not schedule.exists():
        PLAN.save(schedule)
    values = {
        "schedule": schedule,
        "out": folder / "made.safetensors",
        "pairs": 24,
        "inversion_scale": 1.0,
        "score": "classes",
        "prompts": "fashion-mnist",
        "negative_prompt": "",
        "start": None,
        "batch_size": 24,
        "cache": folder / "cache",
        "device": "cpu",
    }
    return Asked(**values | options)


def test_the_command_writes_a_network_that_the_model_takes(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepsearch.npnet.command.FEWEST", 1)
        train(asked(tmp_path), ModelOptions(), Settings(1, 1e-3))
        out = tmp_path / "[red]more.safetensors"  # no markup
        start = tmp_path / "made.safetensors"
        train(asked(tmp_path, start=start, out=out), ModelOptions(), Settings(1, 1e-3))
    assert f"{out}: " in capsys.readouterr().out
    for file in (start, out):
        load("tiny", npnet=str(file))
        assert read_npnet(file).layout.latent == (4, 16, 16)
    with safe_open(out, "pt") as file:
        said = json.loads(file.metadata()["training"])
    assert (said["pairs"], said["inversion_scale"], said["epochs"]) == (24, 1.0, 1)
    assert 0 < said["kept"] <= 24


@pytest.mark.parametrize(
    ("options", "plan", "reason"),
    [
        ({"out": Path("x.pth")}, PLAN, "--out must name a .safetensors file"),
        ({"inversion_scale": 3.0}, PLAN, "--inversion-scale must differ"),
        ({"inversion_scale": nan}, PLAN, "--inversion-scale must be finite, got nan"),
        ({}, replace(PLAN, steps=PLAN.steps[:1], final_sigma=0.0), "has no second level"),
        (
            {},
            replace(PLAN, steps=(replace(PLAN.steps[0], analytic=1.0), PLAN.steps[1])),
            "the first step must call the network",
        ),
        ({"score": "classes", "prompts": "p.txt"}, PLAN, "have no classes that a judge could find"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path, monkeypatch, options, plan, reason):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a photo of a bag\n")
    plan.save(tmp_path / "plan.json")
    with pytest.raises(UserError, match=reason):
        train(asked(tmp_path, **options), ModelOptions(), Settings(1))


@pytest.mark.parametrize(
    ("rate", "reason"), [(inf, "--rate must be finite"), (1e30, "no epoch ended with finite")]
)
def test_a_rate_that_trains_nothing_is_refused(tmp_path, monkeypatch, rate, reason):
    """It wrote the network as it was before, with an error of infinity."""
    monkeypatch.setattr("stepsearch.npnet.command.FEWEST", 1)
    with pytest.raises(UserError, match=reason):
        train(asked(tmp_path), ModelOptions(), Settings(1, rate=rate))
    assert not (tmp_path / "made.safetensors").exists()
