import threading
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import DEVIATION, MEAN, gaussian_denoiser

from stepsampler import Schedule, Step, UserError
from stepsampler.estimate import _slopes, done_of, estimate, passes
from stepsampler.models import load
from stepsampler.noise import NoiseSchedule
from stepsampler.sample import sample
from stepsampler.statistics.file import ends_of, read_statistics

SD = NoiseSchedule.scaled_linear()
SHAPE = (1, 2, 2)


class Counted:
    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, step):
        self.calls += len(x)
        return self.denoise(x, step)


def model_of(denoise):
    """What `estimate` needs of a model, around a denoiser in closed form."""
    counted = Counted(denoise)
    torch.manual_seed(0)
    return SimpleNamespace(
        dtype=torch.float32,
        device=torch.device("cpu"),
        conditional=False,
        guidance="classifier-free",
        family="toy",
        noise=SD,
        shape=SHAPE,
        spec=SD.spec("toy", "epsilon"),
        check=lambda schedule: None,
        encode=lambda texts, negative=False: {},
        denoiser=lambda cond, uncond: counted,
        counted=counted,
        way="",
        pipeline=SimpleNamespace(components={"unet": torch.nn.Linear(1, 1).requires_grad_(False)}),
        reading=SimpleNamespace(chosen={}),
    )


def two_modes(x, step):
    """E[x0 | x] of x0 = +-1, each entry alone, broadened so that it is smooth to the end."""
    return torch.tanh(x / (step.sigma**2 + 0.25))


def made(model, out, intervals=120, samples=256, batch_size=64):
    list(estimate(model, [""], 1.0, intervals, samples, out, batch_size=batch_size))
    return read_statistics(str(out), SD, SHAPE)


def test_those_of_a_normal_target_are_known_in_closed_form(tmp_path):
    found = made(model_of(gaussian_denoiser), tmp_path / "a.safetensors", samples=16)
    sigma2 = np.exp(-2 * found.lambdas)[:, None, None, None]
    kept = DEVIATION**2 / (DEVIATION**2 + sigma2)  # dx0 / dx
    assert found.l == pytest.approx(1 - kept + 0 * found.l, abs=3e-3)
    # f = (1 - l) y - x0 = -MEAN (1 - kept) is the same for all samples: nothing for s to explain
    slope = -MEAN * 2 * kept * (1 - kept) * -1
    whole = found.b + found.s * (-MEAN * (1 - kept))
    assert whole[2:-2] == pytest.approx(slope[2:-2] + 0 * found.b[2:-2], abs=0.05)
    assert "errors" in found.errors


def one_step(known, denoise, start, sigma, end, solver):
    spec = known.spec if solver == "dpm-v3" else None
    schedule = Schedule((Step(sigma),), end, solver, statistics=spec)
    given = {"statistics": known} if spec else {}
    return sample(denoise, start / sigma, schedule, **given)


def truth(denoise, start, sigma, end, n=400):
    sigmas = np.geomspace(sigma, end, n + 1)
    steps = tuple(Step(s, 1.0, min(2, i + 1)) for i, s in enumerate(sigmas[:-1]))
    return sample(denoise, start / sigma, Schedule(steps, float(sigmas[-1]), "exact"))


def test_they_lower_the_local_error(tmp_path):
    """On states of the model's own that they were not made from, at all levels together."""
    known = made(model_of(two_modes), tmp_path / "a.safetensors")
    noise = torch.randn(512, *SHAPE, generator=torch.Generator().manual_seed(10**6))
    squares = {"dpm-v3": 0.0, "ddim": 0.0, "noise": 0.0}
    levels = np.geomspace(8.0, 0.1, 9)
    for sigma, end in pairwise(levels):
        start = truth(two_modes, 14.6 * noise, 14.6, sigma)
        right = truth(two_modes, start, sigma, end)
        for solver in ("dpm-v3", "ddim"):
            wrong = one_step(known, two_modes, start, sigma, end, solver)
            squares[solver] += float((wrong - right).square().mean())
        plan = Schedule((Step(sigma, prediction="noise"),), end, "exact")
        wrong = sample(two_modes, start / sigma, plan)
        squares["noise"] += float((wrong - right).square().mean())
    assert squares["dpm-v3"] < 0.8 * min(squares["ddim"], squares["noise"])


def test_a_killed_call_goes_on(tmp_path):
    whole = made(model_of(two_modes), tmp_path / "whole.safetensors", 12, 20, 8)
    model, out = model_of(two_modes), tmp_path / "cut.safetensors"
    progress = estimate(model, [""], 1.0, 12, 20, out, batch_size=8)
    assert (next(progress), done_of(out)) == (0, 0)
    assert (next(progress), done_of(out)) == (8, 8)
    progress.close()
    first = model.counted.calls
    again = model_of(two_modes)
    assert list(estimate(again, [""], 1.0, 12, 20, out, batch_size=8)) == [8, 16, 20]
    assert first
    assert again.counted.calls == 12 * (13 + 4)
    assert first + again.counted.calls == passes(1.0, 12, 20, 8)
    assert done_of(out) == 0
    assert read_statistics(str(out), SD, SHAPE).digest == whole.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_thread_has_a_part_of_the_batch(tmp_path, two_threads):
    calls = []

    def noting(x, step):
        calls.append((threading.get_ident(), len(x), torch.get_num_threads()))
        return two_modes(x, step)

    found = made(model_of(noting), tmp_path / "a.safetensors", 12, 10, 5)
    assert {count for _, count, _ in calls} == {2, 3}
    assert {inside for *_, inside in calls} == {1}
    assert threading.get_ident() not in {thread for thread, *_ in calls}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert found.digest == made(model_of(two_modes), tmp_path / "b.safetensors", 12, 10, 5).digest


def test_on_the_bundled_model_the_numbers_are_those_of_one_thread(tmp_path, two_threads):
    """Parts of a batch go through the network apart, which rounds otherwise."""
    model, found = load("tiny"), []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        out = tmp_path / f"{threads}.safetensors"
        list(estimate(model, ["a coat", "a bag"], 2.0, 8, 6, out, batch_size=6))
        found.append(read_statistics(str(out), model.noise, model.shape))
    for one, other in zip(*([f.l, f.s, f.b] for f in found), strict=True):
        difference = np.abs(one.astype(float) - other.astype(float))
        assert difference.mean() < 1e-3 * np.abs(one.astype(float)).mean()


def test_the_derivatives_are_those_of_the_whole_trajectory(tmp_path):
    """Of x0 = lambda^2 along any state: differences of second order or more are exact."""
    n, width = 12, float(np.diff(ends_of(SD))[0]) / 12
    levels = np.array(ends_of(SD)[0] + width * np.arange(n + 1))
    by = {i: torch.tensor(levels[i] ** 2) for i in range(n + 1)}
    for i in range(n + 1):
        d, coarse = _slopes({k: by[k] for k in by if abs(k - i) <= 2}, i, n, width)
        assert d.item() == pytest.approx(2 * levels[i], abs=1e-5)
        assert (coarse is None) == (i in (0, 1, n - 1, n))


def test_other_settings_do_not_go_on_with_the_sums(tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    progress = estimate(model_of(two_modes), [""], 1.0, 12, 20, out, batch_size=8)
    assert [next(progress), next(progress)] == [0, 8]
    progress.close()
    assert next(estimate(model_of(two_modes), [""], 1.0, 16, 20, out, batch_size=8)) == 0
    for damage in (b"123", out.with_name(f"{out.name}.sums.safetensors").read_bytes()[:400]):
        out.with_name(f"{out.name}.sums.safetensors").write_bytes(damage)
        assert next(estimate(model_of(two_modes), [""], 1.0, 12, 20, out, batch_size=8)) == 0
        assert "sums.safetensors is damaged, what it held is made again" in capsys.readouterr().err


def test_sums_of_other_weights_are_not_gone_on_with(tmp_path):
    """Of one family with one noise schedule, as a model and its fine-tune: they had been mixed."""
    out = tmp_path / "a.safetensors"
    first, other = model_of(two_modes), model_of(two_modes)
    other.pipeline.components["unet"].weight += 1
    progress = estimate(first, [""], 1.0, 12, 20, out, batch_size=8)
    assert [next(progress), next(progress)] == [0, 8]
    progress.close()
    for model, additions, done in ((other, {}, 0), (first, {"lora": "a:2"}, 0), (first, {}, 8)):
        found = estimate(model, [""], 1.0, 12, 20, out, batch_size=8, additions=additions)
        assert next(found) == done
        found.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float16}, "the dtype must be float32, got float16"),
        ({"noise": SD.zero_terminal_snr()}, "a model with zero terminal SNR has none"),
    ],
)
def test_models_without_statistics_are_refused(tmp_path, changes, message):
    model = SimpleNamespace(**(vars(model_of(two_modes)) | changes))
    with pytest.raises(UserError, match=message):
        next(estimate(model, [""], 1.0, 12, 20, tmp_path / "a.safetensors"))


def test_guidance_of_an_unconditional_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="guidance_scale is 2, but the model is unconditional"):
        next(estimate(model_of(two_modes), [""], 2.0, 12, 20, tmp_path / "a.safetensors"))


@pytest.mark.parametrize(("intervals", "samples"), [(3, 2), (10_001, 2), (4, 1)])
def test_numbers_that_could_not_be_read_back_are_refused_at_once(tmp_path, intervals, samples):
    """Of more intervals the file had been made, for hours, and then refused."""
    message = f"4 to 10,000 intervals and at least 2 samples, got {intervals:,} and {samples}"
    with pytest.raises(UserError, match=message):
        next(estimate(model_of(two_modes), [""], 1.0, intervals, samples, tmp_path / "a"))


def test_rows_are_kept_for_a_schedule(tmp_path):
    known = made(model_of(two_modes), tmp_path / "a.safetensors", 12, 4)
    schedule = Schedule((Step(1.0),), 0.5, "dpm-v3", statistics=known.spec)
    cpu = torch.device("cpu")
    rows = known.rows(schedule, cpu)
    assert known.rows(replace(schedule), cpu) is rows
    assert known.rows(replace(schedule, final_sigma=0.4), cpu) is not rows
