import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
import toy

from stepsampler.errors import UserError
from stepsampler.grids import GRIDS
from stepsampler.models import LatentModel
from stepsampler.noise import FlowSchedule, NoiseSchedule
from stepsampler.schedule import ModelSpec, Step
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.rivals import placement as rivals
from stepsearch.rivals.baselines import baselines, wanted
from stepsearch.rivals.dmn import dmn, error_bound
from stepsearch.rivals.gits import cheapest_path, gits
from stepsearch.rivals.hso import hso, midpoint_error
from stepsearch.rivals.ld3 import _Student, ld3
from stepsearch.rivals.oss import oss

SD = NoiseSchedule.scaled_linear()
# Timesteps that the authors' optimiser finds for Stable Diffusion's betas, 4 and 5 steps; and the
# sigmas of its 6 and 7, where the least bound is flat
PUBLISHED = {4: [999, 576.4, 313.3, 98.4, 0], 5: [999, 600.5, 375.2, 207.2, 78.7, 0]}
LONGER = {
    6: [14.6146, 2.8283, 1.2937, 0.8516, 0.5153, 0.2533, 0.0292],
    7: [14.6146, 3.9324, 1.8717, 1.5062, 0.8006, 0.4472, 0.2019, 0.0292],
}


@pytest.mark.parametrize("n", [4, 5])
def test_dmn_gives_the_list_of_the_authors_optimiser(n):
    timesteps = [SD.timestep(sigma) for sigma in dmn(n, SD)]
    assert timesteps == pytest.approx(PUBLISHED[n], abs=0.2)


@pytest.mark.parametrize("n", [6, 7])
def test_dmn_finds_a_bound_no_higher_than_the_authors(n):
    ours, theirs = (error_bound(-np.log(sigmas)) for sigmas in (dmn(n, SD), LONGER[n]))
    assert ours <= theirs * 1.0005


@pytest.mark.parametrize("n", range(1, 11))
def test_dmn_falls_from_the_first_sigma_to_the_last(n):
    sigmas = dmn(n, SD)
    assert len(sigmas) == n + 1
    assert (sigmas[0], sigmas[-1]) == (SD.sigma_max, SD.sigma_min)
    assert all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.2])
def test_the_cheapest_path_is_that_of_trying_all(coefficient):
    matrix = np.random.default_rng(0).exponential(size=(9, 9))
    matrix[np.tril_indices(9)] = np.inf

    def price(path):
        return sum(coefficient**k * matrix[a, b] for k, (a, b) in enumerate(pairwise(path)))

    for n in (1, 2, 4):
        every = [(0, *inner, 8) for inner in combinations(range(1, 8), n - 1)]
        assert tuple(cheapest_path(matrix, n, coefficient)) == min(every, key=price)


def mixture_denoiser(x, step):
    """E[x0 | x] of the points -1 and 1: trajectories that bend."""
    return torch.tanh(x / step.sigma**2)


def student_error(sigmas, noise):
    """Of Euler along `sigmas`, against many steps."""

    def run(levels):
        x = noise * levels[0]
        for a, b in pairwise(levels):
            x0 = mixture_denoiser(x, Step(a))
            x = x0 + b / a * (x - x0)
        return x

    fine = np.geomspace(sigmas[0], sigmas[-1], 2000).tolist()
    return (run(sigmas) - run(fine)).square().mean().item()


# What the authors' code chooses of `noise_of(64)`, of 61 polynomial levels, for the mixture above:
# `get_dp_list` of github.com/zju-pi/diff-sampler at 68d5ce4, iPNDM teacher, metric "dev".
GITS = {
    (3, 1.0): [0, 36, 42, 60],
    (3, 1.15): [0, 37, 42, 60],
    (5, 1.0): [0, 32, 36, 39, 43, 60],
    (5, 1.15): [0, 33, 37, 40, 43, 60],
    (8, 1.15): [0, 31, 34, 36, 38, 40, 42, 44, 60],
    (10, 1.0): [0, 24, 28, 31, 33, 35, 37, 39, 41, 44, 60],
}
# The same of each image of `noise_of(4)`, 20 teacher steps of a flow with shift 3 towards 99 or
# 101: `search_OSS` of github.com/bebebe666/OptimalSteps at ee35043. Nearer to zero it begins below
# the top, with noise that belongs there; with fewer steps its choices are ties within rounding.
OSS = {
    4: [[20, 4, 2, 1, 0], [20, 5, 2, 1, 0], [20, 4, 2, 1, 0], [20, 4, 2, 1, 0]],
    5: [[20, 6, 3, 2, 1, 0], [20, 8, 4, 2, 1, 0], [20, 6, 3, 2, 1, 0], [20, 7, 4, 2, 1, 0]],
    8: [[20, 11, 7, 5, 4, 3, 2, 1, 0]] * 4,
}


def noise_of(n):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 2, 2, 2)))


@pytest.mark.parametrize(("n", "coefficient"), GITS)
def test_gits_chooses_what_the_authors_code_does(n, coefficient):
    ends = SD.sigma_max ** (1 / 7), SD.sigma_min ** (1 / 7)
    levels = np.linspace(*ends, 61) ** 7
    found = gits(n, SD, mixture_denoiser, noise_of(64), coefficient=coefficient)
    assert found == pytest.approx(levels[GITS[n, coefficient]])


@pytest.mark.parametrize("n", OSS)
def test_oss_chooses_what_the_authors_code_does(n):
    flow, levels = FlowSchedule(3.0), np.linspace(0, 1, 21)
    levels = 3 * levels / (1 + 2 * levels)

    def denoise(x, step):
        t = step.sigma
        return 100 + torch.tanh((1 - t) * (x - (1 - t) * 100) / t**2)

    for image, chosen in zip(noise_of(4), OSS[n], strict=True):
        found = oss(n, flow, denoise, image[None], teacher_steps=20, model=flow.spec("flow"))
        assert found == pytest.approx(levels[chosen])


@pytest.mark.parametrize("method", [gits, oss])
def test_a_placement_for_the_model_beats_even_timesteps(method):
    noise = torch.randn(64, 8, generator=torch.manual_seed(0), dtype=torch.float64)
    sigmas = method(5, SD, mixture_denoiser, noise)
    assert len(sigmas) == 6
    assert all(a > b for a, b in pairwise(sigmas))
    even = [SD.sigma(t) for t in np.linspace(999, 0, 6)]
    assert student_error(sigmas, noise) < 0.7 * student_error(even, noise)


def test_oss_with_as_many_steps_as_the_teacher_is_the_teacher():
    noise = torch.randn(4, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    sigmas = oss(6, SD, toy.gaussian_denoiser, noise, teacher_steps=6)
    assert sigmas == pytest.approx([SD.sigma(t) for t in np.linspace(999, 0, 7)])


def test_hso_gives_nearly_the_published_timesteps():
    """Of four points, three intervals: 959, 716, 370, 30 in the paper's table of robustness."""
    timesteps = [SD.timestep(sigma) for sigma in hso(3, SD)]
    assert timesteps == pytest.approx([959, 716, 370, 30], abs=10)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_hso_keeps_the_papers_bounds_and_spacing(n):
    sigmas = hso(n, SD)
    timesteps = [SD.timestep(sigma) for sigma in sigmas]
    assert len(sigmas) == n + 1
    assert 958 <= timesteps[0] <= 999
    assert 8.9 <= timesteps[-1] <= 29.1
    if n >= 4:
        assert -np.diff(timesteps).max() >= 1000 * np.interp(n, [4, 20], [0.15, 0.01]) - 1


def test_hso_has_a_proxy_no_higher_than_neighbouring_placements():
    lambdas = -np.log(hso(4, SD))
    least = midpoint_error(lambdas)
    for i in (1, 2, 3):
        for shift in (-0.05, 0.05):
            moved = lambdas.copy()
            moved[i] += shift
            assert midpoint_error(moved) > least


def normal(count, seed=0):
    return torch.randn(count, 8, generator=torch.manual_seed(seed), dtype=torch.float64)


def test_the_gradient_of_ld3_is_that_of_finite_differences():
    student = _Student(4, SD, 1.0, None)
    part = (toy.gaussian_denoiser, normal(4))
    goal = student.teacher(part)
    gaps = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.15], dtype=torch.float64)).requires_grad_()
    (student.live(gaps, part) - goal).square().mean().backward()
    expected = []
    for i in range(4):
        ends = []
        for shift in (1e-4, -1e-4):
            moved = gaps.detach().clone()
            moved[i] += shift
            ends.append(student.distance(moved, part, goal))
        expected.append((ends[0] - ends[1]) / 2e-4)
    assert gaps.grad.tolist() == pytest.approx(expected, rel=0.06, abs=1e-5)


@pytest.mark.parametrize(
    ("noise", "model"), [(SD, None), (FlowSchedule(3.0), FlowSchedule().spec("flow"))]
)
def test_ld3_comes_nearer_to_the_teacher_on_noise_it_has_not_seen(noise, model):
    def denoise(x, step):  # two points; of a flow too
        alpha = 1 - step.sigma if model else 1.0
        return torch.tanh(alpha * x / max(step.sigma, 1e-3) ** 2)

    sigmas = ld3(4, noise, [(denoise, normal(32))], [(denoise, normal(32, 1))], model=model)
    assert all(a > b for a, b in pairwise(sigmas))
    assert (sigmas[0], sigmas[-1]) == (noise.sigma_max, noise.sigma(0))
    student, unseen = _Student(4, noise, 1.0, model), (denoise, normal(64, 2))
    goal = student.teacher(unseen)
    gaps = torch.log(-torch.tensor(np.diff([noise.timestep(sigma) for sigma in sigmas])))
    start = min(student.distance(start, unseen, goal) for start in student.starts())
    assert student.distance(gaps, unseen, goal) < 0.8 * start


def test_ld3_never_ends_worse_than_it_starts_on_the_held_out_part():
    """The part it learns from misleads: there the prediction is something else altogether."""
    wrong = (lambda x, step: torch.sin(3 * x), normal(16))
    right = (mixture_denoiser, normal(16, 1))
    student = _Student(3, SD, 1.0, None)
    goal = student.teacher(right)
    sigmas = ld3(3, SD, [wrong], [right], iterations=20)
    gaps = torch.log(-torch.tensor(np.diff([SD.timestep(sigma) for sigma in sigmas])))
    start = min(student.distance(start, right, goal) for start in student.starts())
    assert student.distance(gaps, right, goal) <= start * (1 + 1e-9)


class TinyModel(LatentModel):
    """What a placement needs of a model, around a denoiser without a network."""

    _encode = _call = None
    shape, device, guidance = (8,), "cpu", "classifier-free"
    nets = ()
    spec, dtype = ModelSpec("toy", "epsilon", (1.0,)), torch.float32

    def __init__(self, noise=SD):
        self.noise = noise

    def encode(self, texts, negative=False):
        return {"text": torch.zeros(len(texts), 1)}

    def denoiser(self, cond, uncond, boundary=None):
        def denoise(x, step):
            assert len(x) == len(cond["text"])  # a call is one part, whole
            return mixture_denoiser(x, step)

        return denoise


def test_placements_count_passes_and_make_no_call_above_the_batch_size():
    found = {
        name: rivals.place(TinyModel(), ["a"], name, 3, 2.0, 5)
        for name in rivals.RIVALS
        if name != "amed"
    }
    for placement in found.values():
        assert len(placement.sigmas) == 4
        assert all(a > b for a, b in pairwise(placement.sigmas))
    assert found["dmn"].passes == found["hso"].passes == 0
    assert found["gits"].passes == 2 * 32 * 60  # both sides of guidance, images, teacher's steps
    # Parts of 5 images, of which 15 are learned from: three starts, then four iterates and the
    # start are checked on 17. An iteration: of the first step, whose x is given, the prediction;
    # of the other two also that at the nudged sigma, the recomputation, and backwards.
    assert found["ld3"].passes == 2 * (32 * 50 + 8 * 17 * 3 + 40 * 5 * (1 + 2 * 5))
    for name, placement in found.items():
        most = 2 * rivals.most_passes(name, 3, 5)
        assert placement.passes <= most <= 1.4 * placement.passes  # OSS is bounded loosely


@pytest.mark.parametrize("name", ["dmn", "gits", "hso"])
def test_placements_for_other_models_are_refused(name):
    with pytest.raises(UserError, match=f"^{name} is for variance-preserving models only"):
        rivals.place(TinyModel(FlowSchedule()), ["a"], name, 3, 2.0, 5)


@pytest.mark.parametrize(("name", "most"), [("gits", 60), ("oss", 50)])
def test_placements_of_more_steps_than_the_teacher_has_are_refused(name, most):
    with pytest.raises(UserError, match=f"^{name} takes {most} of its teacher's steps at most"):
        rivals.place(TinyModel(), ["a"], name, most + 1, 1.0, 32)


@pytest.mark.parametrize("scales", [[], [2.0, 3.0]])
@pytest.mark.parametrize(
    ("guidance", "steps"), [("classifier-free", {4: 3.5, 8: 1.0}), ("distilled", {8: 3.5})]
)
def test_every_placement_of_the_baselines_is_wanted_and_no_other(guidance, steps, scales):
    """Guidance that costs nothing has all the passes for its steps, and its scale."""
    config = StudyConfig.model_validate(
        {
            "name": "t",
            "space": {"num_steps": 4, "passes": 8},
            "evaluation": {"guidance_scales": scales},
            "baselines": {"rivals": ["oss"]},
            "teacher": {"guidance_scale": 3.5},
        }
    )
    if scales:
        steps = {n: w for n, w in steps.items() if w != 1}
    asked = wanted(config, guidance)
    assert asked == {("oss", n): w for n, w in steps.items()}
    placements = {key: GRIDS["linspace"](key[1], SD) for key in asked}
    spec = SD.spec("stable-diffusion", "epsilon")
    assert baselines(config, SD, spec, placements, guidance)


def test_ld3_learns_from_the_float32_network_whatever_the_study_computes_in(tmp_path, monkeypatch):
    """Sixteen bits round what it takes differences of: that gradient is mostly noise."""
    monkeypatch.setitem(rivals.IMAGES, "ld3", 4)
    monkeypatch.setattr(sys.modules["stepsearch.rivals.ld3"], "TEACHER_STEPS", 4)
    models, found = {}, {}
    for dtype in ("float32", "bfloat16"):
        data = {"name": "a", "space": {"num_steps": 2, "passes": 4}, "model": {"dtype": dtype}}
        data["evaluation"] = {"batch_size": 2}
        evaluator = Evaluator(StudyConfig.model_validate(data), tmp_path)
        found[dtype] = rivals.recall_or_place(evaluator, "ld3", 2, 1.0).sigmas
        models[dtype] = evaluator.model
    assert found["bfloat16"] == found["float32"]
    with pytest.raises(UserError, match="dtype must be float32, got bfloat16"):
        rivals.place(models["bfloat16"], ["a"], "ld3", 2, 1.0, 8)


@pytest.mark.parametrize("name", ["ld3", "amed"])
def test_what_learns_by_gradients_refuses_a_quantised_network(name):
    """The layers of some give a wrong gradient without a word."""
    model = TinyModel()
    model.pipeline = object()
    model.nets = (torch.nn.Linear(2, 2).to(torch.float8_e4m3fn),)
    with pytest.raises(
        UserError, match=f"^{name} learns by gradients: the network of the object is quantised"
    ):
        rivals.place(model, ["a"], name, 3, 2.0, 5)


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="must be one of dmn, gits, oss, hso, ld3, amed, got 'x'"):
        rivals.place(TinyModel(), ["a"], "x", 3, 2.0, 5)


def test_oss_places_steps_of_a_flow():
    flow = FlowSchedule(3.0)

    def denoise(x, step):
        return torch.tanh((1 - step.sigma) * x / step.sigma**2)

    sigmas = oss(4, flow, denoise, normal(8), model=flow.spec("flow"))
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in pairwise(sigmas))
