"""The second model: exact, and its benchmark on a handful of images."""

import json
from math import prod
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))


@pytest.mark.parametrize(("time", "label"), [(300.5, 3), (700.0, 10)])
def test_the_posterior_mean_is_that_of_tweedies_formula(time, label):
    """x + sigma^2 times the gradient of the log density of the mixture, by torch's own classes."""
    from second.model import Posterior
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    net = Posterior(30)
    sigma = net.noise.sigma(time)
    own = net.centres if label == 10 else net.centres[label::10]
    random = torch.Generator().manual_seed(0)
    place = own[1] + sigma * torch.randn(own.shape[1], generator=random)
    place.requires_grad_()
    spread = (net.variance + sigma**2).sqrt().expand(len(own), -1)
    density = MixtureSameFamily(
        Categorical(torch.ones(len(own))), Independent(Normal(own, spread), 1)
    )
    (slope,) = torch.autograd.grad(density.log_prob(place), place)
    image = net.mean + place.detach() @ net.axes
    given = (image / (1 + sigma**2) ** 0.5).view(1, 3, 32, 32)
    (found,) = net(given, torch.tensor([time]), torch.tensor([label]))
    expected = net.mean + (place + sigma**2 * slope).detach() @ net.axes
    assert found.flatten().numpy() == pytest.approx(expected.numpy(), abs=1e-3)


def test_its_prompts_are_letters_and_no_prompt_is_all_of_them():
    from second.model import pipeline

    from stepsampler.models import from_pipeline

    model = from_pipeline(pipeline())
    assert model.encode(["C", ""])["class_labels"].tolist() == [2, 10]
    assert model.size == 32


def test_known_ones_are_tested_with_a_gain_and_ours_is_found_by_a_study(tmp_path):
    import bench_second

    few = ["--steps", "2", "--gains", "1", "1.05", "--scales", "1", "2", "--long", "4"]
    few += ["--known", "1", "--selection", "16", "24", "--images", "40", "--search-seeds", "1"]
    few += ["--trials", "2", "--trial-images", "32", "--real", "60", "--batch", "20"]
    few += ["--run", str(tmp_path / "run"), "--docs", str(tmp_path)]
    bench_second.main(few)
    (column,) = json.loads((tmp_path / "second-model.json").read_text())
    rows = {row["name"]: row for row in column["contenders"]}
    known = [
        name for name, row in rows.items() if row["kind"] == "placement" and "gain" not in name
    ]
    assert [name.split(", ")[1] for name in known] == ["DPM++(2M)", "UniPC"]
    assert all(row["passes"] == 4 for row in rows.values() if row["kind"] == "placement")
    for name, curve in column["curves"].items():
        best = min(curve, key=curve.__getitem__)
        assert (f"{name}, gain 1.05" in rows) == (float(best) != 1)
    for row in rows.values():
        values = [s["value"] for name, s in row["scores"].items() if name != "alignment"]
        assert row["mean"][0] == pytest.approx(prod(values) ** (1 / 3))
        assert 0 <= row["scores"]["alignment"]["value"] <= 1
    (ours,) = (row for row in rows.values() if row["kind"] == "now")
    assert ours["passes"] <= 4
    assert ours["search_passes"] > 0
    page = (tmp_path / "second-model.md").read_text()
    assert all(f"| {name} |" in page for name in column["curves"])
