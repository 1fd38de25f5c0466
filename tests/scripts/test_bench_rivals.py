"""The further rivals of the benchmark of gains: what they choose is what they say they choose."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stepsampler.generate import generate, seeded_noise
from stepsampler.grids import from_sigmas, make_schedule
from stepsampler.models import load
from stepsampler.models.pixels import to_pixels
from stepsampler.noise import timesteps_to_sigmas
from stepsampler.sample import sample
from stepsampler.schedule import Schedule
from stepsearch.metrics.alignment import load_prompts
from stepsearch.metrics.features import Judge
from stepsearch.rivals.placement import Counting

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))


@pytest.fixture(scope="module")
def model():
    return load("tiny")


PROMPTS = load_prompts("fashion-mnist")


def images_of(model, schedule: Schedule, seeds: range) -> torch.Tensor:
    texts = [PROMPTS[k % len(PROMPTS)].text for k in range(len(seeds))]
    return torch.cat([batch.images for batch in generate(model, schedule, texts, seeds)])


def test_reuse_has_the_least_cost_of_all_choices_and_is_ddim_at_the_levels_called(model):
    from peers.further.trajectories import Trajectories, reuse_costs, reusing

    generator = torch.Generator().manual_seed(3)
    levels = np.linspace(model.noise.last, 0, 8)
    sigmas = timesteps_to_sigmas(model.noise, levels)
    states = torch.randn(8, 2, 4, 5, 5, generator=generator)
    taught = Trajectories(levels, sigmas, states, torch.randn(7, 2, 4, 5, 5, generator=generator))

    def cost(path: tuple[int, ...]) -> float:
        """As it is said: how far each landing is from the teacher, at unit variance."""
        total = 0.0
        for i, j in pairwise(path):
            landed = states[i] + (sigmas[j] - sigmas[i]) * taught.directions[i]
            gap = (landed - states[j]) / (1 + sigmas[j] ** 2) ** 0.5
            total += float(np.mean([float(one.square().mean()) ** 0.5 for one in gap]))
        return total

    best = min(((0, *inner, 7) for inner in combinations(range(1, 7), 2)), key=cost)
    plan = reusing(3, taught, model)
    assert tuple(i for i, step in enumerate(plan.steps) if step.calls) == best[:-1]
    assert plan.passes == 2 * 3
    costs = reuse_costs(taught)
    assert sum(costs[i, j] for i, j in pairwise(best)) == pytest.approx(cost(best), rel=1e-5)
    called = [sigmas[i] for i in best[:-1]]
    coarse = from_sigmas(called, sigmas[-1], [2.0] * 3, 1, "ddim", model.spec)
    noise = torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64)

    def denoise(x, step):
        return torch.tanh(x / (1 + step.sigma)) * step.guidance_scale

    expected = sample(denoise, noise, coarse)
    assert torch.allclose(sample(denoise, noise, plan), expected, atol=1e-6)


def test_a_helix_turns_evenly_along_its_length():
    from peers.further.trajectories import rotations

    # At uneven times: curvature a / (a^2 + b^2), torsion b / (a^2 + b^2), in any rotated axes.
    a, b, length = 2.0, 0.5, np.linspace(0, 3, 400) ** 1.3
    t = length / np.hypot(a, b)
    helix = np.stack([a * np.cos(t), a * np.sin(t), b * t], 1)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))
    rate = rotations((helix @ turned.T)[:, None])
    expected = np.gradient(length) / np.hypot(a, b)
    assert np.allclose(rate[5:-5], expected[5:-5], rtol=0.01)


def test_the_best_of_two_is_the_image_of_which_the_judge_is_surer(model):
    from peers.further.contenders import DRAWS, BestOf

    plan = make_schedule("kl-optimal", 2, model.noise, guidance_scale=1.0, model=model.spec)
    seeds, judge = range(40, 52), Judge()
    contender = BestOf("best", plan, model, "digest")
    prompts = [PROMPTS[k % len(PROMPTS)] for k in range(len(seeds))]
    (kept,) = contender.batches(seeds, prompts, 12)
    other = range(seeds.start + DRAWS, seeds.stop + DRAWS)
    drawn = torch.stack([images_of(model, plan, part) for part in (seeds, other)])
    labels = torch.tensor([prompt.label for prompt in prompts])
    each = [judge.live(images).softmax(1)[torch.arange(12), labels] for images in drawn]
    places = torch.stack(each).argmax(0)
    assert set(places.tolist()) == {0, 1}, "or nothing was chosen"
    assert torch.equal(kept, drawn[places, torch.arange(12)])
    assert contender.passes == 2 * plan.passes


def test_what_is_judged_is_named_by_the_steps_that_are_guided(model):
    """Of none, "the first 0 guided" told nobody that they are unguided."""
    from peers.further.rivals import Rivals

    asked = []

    def best(plans, make):
        asked.append(plans)
        return {name: float(place) for place, name in enumerate(plans)}

    bench = SimpleNamespace(model=model, best=best)
    args = SimpleNamespace(gains=[1.0, 1.04], selection=(8, 12), dtype="float32", compile=False)
    entry = Rivals(bench, args, 4, []).judged("judged")
    assert entry.name == "judged (kl-optimal, 4 unguided steps, gain 1)"
    assert [name for name in asked[0] if name.startswith("kl-optimal")] == [
        "kl-optimal, 4 unguided steps",
        "kl-optimal, 3 steps, the first 1 guided",
        "kl-optimal, 2 steps, all guided",
    ]
    guided = [[s.guidance_scale != 1 for s in plan.steps] for plan in asked[0].values()]
    assert guided[:3] == [[False] * 4, [True, False, False], [True, True]]


def test_the_cache_computes_less_where_it_is_on_and_leaves_no_trace(model, monkeypatch):
    from peers.further import contenders

    plan = make_schedule("kl-optimal", 4, model.noise, guidance_scale=2.0, model=model.spec)
    plain = images_of(model, plan, range(3))
    prompts = list(PROMPTS[:3])

    def seen() -> tuple[torch.Tensor, float]:
        contender = contenders.Seen("seen", plan, model, "digest")
        return torch.cat(list(contender.batches(range(3), prompts, 2))), contender.passes

    images, passes = seen()
    whole, first, cached, after = contenders.shares(model.nets[0], 4)
    assert whole == first == after == 1
    assert 0.15 < cached < 0.3, "the outer blocks alone"
    assert passes == pytest.approx(2 * (3 + cached))
    assert not torch.equal(images, plain)
    assert (images.float() - plain.float()).abs().mean() < 12, "of 255: like it"
    assert torch.equal(images_of(model, plan, range(3)), plain), "the hooks are gone"
    monkeypatch.setattr(contenders, "WARM", 4)  # never on
    contenders.shares.cache_clear()
    images, passes = seen()
    contenders.shares.cache_clear()
    assert (images.int() - plain.int()).abs().max() <= 1, "batches of other sizes round otherwise"
    assert passes == plan.passes


def test_learned_schedules_come_nearer_to_what_they_learn_from_on_images_they_did_not_see(model):
    from peers.further.learning import learn, parts_of, plain, regression

    start = make_schedule("karras", 2, model.noise, guidance_scale=2.0, model=model.spec)
    other = make_schedule("karras", 2, model.noise, guidance_scale=6.0, model=model.spec)
    starts = [replace(plan, solver="unipc-bh2") for plan in (other, start)]
    teacher = make_schedule("kl-optimal", 8, model.noise, guidance_scale=2.0, model=model.spec)

    def ends(schedule: Schedule, seeds: range) -> torch.Tensor:
        texts = [PROMPTS[seed % len(PROMPTS)].text for seed in seeds]
        ask = Counting(model, texts, "", seeded_noise(seeds, model.shape))
        with torch.no_grad():
            return sample(ask, ask.latents, schedule)

    train, held_out = range(6), range(6, 12)
    parts = [parts_of(model, PROMPTS, seeds, ends(teacher, seeds)) for seeds in (train, held_out)]
    found = learn(starts, *parts, regression, 4)

    def loss(schedule: Schedule) -> float:
        return float((ends(schedule, held_out) - ends(teacher, held_out)).square().mean())

    assert found.before == pytest.approx(min(loss(plain(plan)) for plan in starts), rel=1e-4)
    assert found.after == pytest.approx(loss(found.schedule), rel=1e-4)
    assert found.after < 0.97 * found.before
    assert any(step.weights for step in found.schedule.steps)
    assert found.schedule.passes == start.passes


def test_the_classifier_s_loss_is_that_of_the_images_and_falls(model):
    from peers.further.learning import Classified, learn, parts_of

    start = make_schedule("karras", 2, model.noise, guidance_scale=1.2, model=model.spec)
    seeds, judge = range(6), Judge()
    both = [parts_of(model, PROMPTS, seeds) for _ in range(2)]
    found = learn([start], *both, Classified(model, judge), 4)

    def loss(schedule: Schedule) -> float:
        sure = judge.live(images_of(model, schedule, seeds)).log_softmax(1)
        return -float(sure[torch.arange(6), [PROMPTS[seed].label for seed in seeds]].mean())

    assert found.before == pytest.approx(loss(start), rel=1e-2)
    assert found.after == pytest.approx(loss(found.schedule), rel=1e-2)
    assert found.after < 0.97 * found.before


@pytest.mark.parametrize("channels", [1, 3])
def test_live_pixels_are_the_whole_numbers_that_are_saved(channels):
    from peers.further.learning import live_pixels

    images = 2.4 * torch.rand(2, channels, 8, 8, generator=torch.manual_seed(0)) - 1.2
    images.requires_grad_()
    live = live_pixels(images)
    assert torch.equal(live, to_pixels(images.detach()).float())
    live.sum().backward()
    inside = (images.detach().abs() < 1).float()
    torch.testing.assert_close(images.grad, 127.5 * inside * (3 if channels == 1 else 1))
