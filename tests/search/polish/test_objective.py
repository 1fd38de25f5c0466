from dataclasses import replace
from types import SimpleNamespace

import accelerate
import numpy as np
import pipelines
import pytest
import torch
from polishing import PLAIN, SIGMAS, ToyEvaluator, directly

from stepsampler import UserError
from stepsampler.grids import from_sigmas
from stepsampler.schedule import Schedule, Step
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.config.space import SpaceConfig
from stepsearch.metrics.distance import Moments, frechet_distance
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.polish import objective as polished
from stepsearch.polish.knobs import Knobs
from stepsearch.polish.objective import Objective, log_frechet


@pytest.mark.parametrize("n", [4, 9, 60])  # fewer and more than there are dimensions
def test_the_gradient_of_log_fd_is_that_of_autograd(n):
    """The trace of the root as the sum of singular values, which torch differentiates itself."""
    rng = np.random.default_rng(n)
    reference = Moments.of(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)))
    features = torch.from_numpy(rng.normal(size=(n, 6)) * 1.7 + 0.3).requires_grad_()
    y = (features - features.mean(0)) / (n - 1) ** 0.5
    shift = features.mean(0) - torch.from_numpy(reference.mean)
    roots = torch.linalg.svdvals(y @ torch.from_numpy(reference.factor))
    distance = shift @ shift + (y * y).sum() + np.trace(reference.cov) - 2 * roots[: n - 1].sum()
    distance.log().backward()
    value, gradient = log_frechet(features.detach().numpy(), reference)
    assert np.exp(value) == pytest.approx(frechet_distance(features.detach().numpy(), reference))
    np.testing.assert_allclose(gradient, features.grad.numpy(), rtol=1e-6, atol=1e-9)


def test_the_gradient_of_log_fd_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    reference, features = Moments.of(rng.normal(size=(40, 5))), rng.normal(size=(12, 5)) * 2
    _, gradient = log_frechet(features, reference)
    for i, j in ((0, 0), (3, 4), (11, 2)):
        ends = []
        for sign in (1, -1):
            moved = features.copy()
            moved[i, j] += sign * 1e-5
            ends.append(np.log(frechet_distance(moved, reference)))
        assert gradient[i, j] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


CASES = {
    "weights": (PLAIN, "weights"),
    "gains": (PLAIN, "gain"),
    "onto sigma 0": (from_sigmas(SIGMAS, 0.0, [2.0, 2.0, 1.0, 1.0], 2), "weights"),
    "fresh noise": (
        replace(
            PLAIN, steps=(*PLAIN.steps[:2], replace(PLAIN.steps[2], churn=0.3), PLAIN.steps[3])
        ),
        "weights",
    ),
    "UniPC": (from_sigmas(SIGMAS, 0.1, [2.0, 1.5, 1.0, 1.0], 2, "unipc-bh2"), "weights"),
    "Heun": (from_sigmas(SIGMAS, 0.1, [2.0, 1.5, 1.0, 1.0], 2, "heun"), "gain"),
    "at unit variance": (replace(PLAIN, decode="alpha-x"), "gain"),
    "an analytic step": (Schedule((Step(9.0, analytic=1.0), *PLAIN.steps[1:]), 0.1), "weights"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_central_differences_in_every_parameter(name, monkeypatch):
    monkeypatch.setattr(polished, "NUDGE", 1e-4)  # the toy is smooth, and in double precision
    start, freedom = CASES[name]
    knobs, evaluator, seeds = Knobs(start, freedom), ToyEvaluator(), range(11)  # batches 4, 4, 3
    here = knobs.zero() + 0.03 * torch.randn(len(knobs.names), generator=torch.manual_seed(0))
    look = Objective(evaluator)(knobs, here, seeds)
    assert look.value == pytest.approx(directly(evaluator, knobs.schedule(here), seeds), abs=1e-6)
    expected = []
    for step in 1e-3 * torch.eye(len(here), dtype=torch.float64):
        ends = [directly(evaluator, knobs.schedule(p), seeds) for p in (here + step, here - step)]
        expected.append((ends[0] - ends[1]) / 2e-3)
    assert look.gradient.tolist() == pytest.approx(expected, rel=0.01, abs=5e-4)
    assert max(map(abs, expected)) > 0.05


def test_passes_are_one_forward_and_three_with_a_gradient_and_one_for_a_level():
    evaluator, knobs = ToyEvaluator(), Knobs(PLAIN, "gain")
    look = Objective(evaluator)(knobs, knobs.zero(), range(10))
    assert PLAIN.passes == 6
    assert look.passes == 10 * (6 + 3 * 6 + 4)  # the first step's level stays
    fixed = Knobs(PLAIN, "gain", levels=False)
    assert Objective(evaluator)(fixed, fixed.zero(), range(10)).passes == 10 * (6 + 3 * 6)
    assert max(evaluator.model.calls) == 4  # never more than a batch


def test_a_gradient_by_some_of_the_images_is_one_of_the_value_of_all():
    """The parts, each taken in its turn, have the gradient of all as their mean."""
    evaluator, knobs, seeds = ToyEvaluator(), Knobs(PLAIN, "gain"), [*range(12)]
    whole = Objective(evaluator)(knobs, knobs.zero(), seeds)
    parts = [Objective(evaluator)(knobs, knobs.zero(), seeds[k:] + seeds[:k], 4) for k in (0, 4, 8)]
    for part in parts:
        assert part.value == pytest.approx(whole.value)
        assert part.passes == 12 * 6 + 4 * (3 * 6 + 4)
    mean = torch.stack([part.gradient for part in parts]).mean(0)
    torch.testing.assert_close(mean, whole.gradient)
    assert not torch.allclose(parts[0].gradient, whole.gradient, rtol=0.05)


class _Alive:
    """Bytes that autograd keeps, now and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        return _Kept(self, tensor)


class _Kept:
    def __init__(self, alive, tensor):
        self.alive, self.tensor = alive, tensor
        alive.now += tensor.nbytes
        alive.most = max(alive.most, alive.now)

    def __del__(self):
        self.alive.now -= self.tensor.nbytes


def test_what_gradients_keep_does_not_grow_with_the_number_of_images():
    most = []
    for n in (4, 40):
        alive, knobs = _Alive(), Knobs(PLAIN, "weights")
        with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
            Objective(ToyEvaluator())(knobs, knobs.zero(), range(n))
        most.append(alive.most)
    assert most[0] == most[1] > 0


def tiny(tmp_path, extractor="texture", **options):
    evaluation = EvaluationConfig(extractor=extractor, batch_size=6, **options)
    space = SpaceConfig(num_steps=2, passes=4)
    return Evaluator(StudyConfig(name="x", space=space, evaluation=evaluation), tmp_path)


def test_on_the_bundled_model_it_is_what_the_search_measures_and_its_gradient(
    tmp_path, monkeypatch
):
    """The network answers roughly to its time, and pixels are whole: so smooth parameters only."""
    evaluator = tiny(tmp_path, "texture+lite0")
    model, seeds = evaluator.model, range(12)
    start = from_sigmas([model.noise.sigma_max, 1.5], 0.1, [2.0, 1.0], 2, model=model.spec)
    knobs = Knobs(start, "weights", levels=False)
    objective = Objective(evaluator)
    look = objective(knobs, knobs.zero(), seeds)
    measured = evaluator.measure(start, seeds)
    distance = frechet_distance(measured.features, evaluator.reference.search)
    assert look.distance == pytest.approx(distance, rel=2e-4)
    labels = torch.tensor([evaluator.prompt(seed).label for seed in seeds])
    shown = evaluator.judge.judge.live(evaluator.images(start, seeds)).softmax(1)
    assert look.aligned == pytest.approx(shown[range(12), labels].mean().item(), rel=1e-3)
    assert look.value == pytest.approx(np.log(look.distance) + (1 - look.aligned))

    whole = "stepsampler.models.base.live_pixels"
    monkeypatch.setattr(whole, lambda images: (images.float() / 2 + 0.5).clamp(0, 1) * 255)
    look = objective(knobs, knobs.zero(), seeds)
    expected = []
    for step in 0.01 * torch.eye(len(knobs.names), dtype=torch.float64):
        ends = [objective(knobs, p, seeds).value for p in (step, -step)]
        expected.append((ends[0] - ends[1]) / 0.02)
    assert look.gradient.tolist() == pytest.approx(expected, rel=0.05, abs=0.01)


def test_a_large_network_keeps_less_for_a_gradient_and_finds_the_same(tmp_path, monkeypatch):
    evaluator = tiny(tmp_path)
    start = from_sigmas([evaluator.model.noise.sigma_max, 1.5], 0.1, [2.0, 1.0], 2)
    objective, knobs, looks, most = Objective(evaluator), Knobs(start, "gain"), [], []
    for large in (polished.LARGE, 0):
        monkeypatch.setattr(polished, "LARGE", large)
        alive = _Alive()
        with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda kept: kept.tensor):
            looks.append(objective(knobs, knobs.zero(), range(6)))
        most.append(alive.most)
    torch.testing.assert_close(looks[1].gradient, looks[0].gradient, rtol=1e-4, atol=1e-6)
    assert most[1] < most[0] / 3
    assert not objective.model.nets[0].is_gradient_checkpointing


def test_where_memory_runs_out_fewer_images_are_taken_at_a_time(monkeypatch, capsys):
    """Of a gradient alone: the images themselves fit."""
    evaluator, knobs = ToyEvaluator(batch_size=16), Knobs(PLAIN, "gain")
    expected = Objective(evaluator)(knobs, knobs.zero(), range(16))
    live = evaluator.model.live_images

    def short(latents):
        if latents.requires_grad and len(latents) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return live(latents)

    monkeypatch.setattr(evaluator.model, "live_images", short)
    objective = Objective(evaluator)
    look = objective(knobs, knobs.zero(), range(16))
    torch.testing.assert_close(look.gradient, expected.gradient)
    assert (look.passes, objective.pieces.size) == (expected.passes, 1)
    assert "a batch of 4 does not fit" in capsys.readouterr().err


def test_an_extractor_without_gradients_is_refused():
    evaluator = ToyEvaluator()
    evaluator.extractor = SimpleNamespace(name="clip")
    with pytest.raises(
        UserError, match="lite0, texture, squeezenet, untrained have gradients, clip has none here"
    ):
        Objective(evaluator)


def test_networks_that_are_offloaded_in_groups_are_refused():
    net = pipelines.stable_diffusion().unet
    evaluator = ToyEvaluator()
    evaluator.model.nets = [net]
    Objective(evaluator)
    cpu = torch.device("cpu")
    net.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(UserError, match="is offloaded in groups, and no gradient flows through it"):
        Objective(evaluator)


def test_gradients_flow_through_what_accelerate_offloads():
    """Its hooks leave the weights of a call in reach of the gradient, so that is not refused."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (plain,) = torch.autograd.grad(net(x).sum(), x)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    assert {weights.device.type for weights in net.parameters()} == {"meta"}
    (offloaded,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(offloaded, plain)
    evaluator = ToyEvaluator()
    evaluator.model.nets = [net]
    Objective(evaluator)
