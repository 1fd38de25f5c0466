"""What diffusers asks of every scheduler (its SchedulerCommonTest), and saved pipelines."""

import copy
import importlib.util
import pickle
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pipelines
import pytest
import torch
import toy
from schedulers import SD, holding, some_schedule, without_schedule

from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsampler.scheduler import StepScheduler

EITHER = pytest.mark.parametrize(
    "make", [lambda: holding(some_schedule()), without_schedule], ids=["held", "count only"]
)


# ---- diffusers' scheduler contract (its SchedulerCommonTest), with and without a schedule


def chosen(scheduler):
    """The config without diffusers' own notes."""
    return {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}


@EITHER
def test_a_saved_scheduler_loads_and_steps_the_same(make, tmp_path):
    scheduler = make()
    scheduler.save_pretrained(tmp_path)
    again = StepScheduler.from_pretrained(tmp_path)
    assert chosen(again) == chosen(scheduler)
    x, output = torch.randn(2, 2, 4, 8, 8, generator=torch.manual_seed(0))
    for each in (scheduler, again):
        each.set_timesteps(5)
    a, b = (each.step(output, each.timesteps[1], x).prev_sample for each in (scheduler, again))
    assert torch.equal(a, b)


@EITHER
def test_the_config_survives_a_stock_scheduler_and_back(make):
    scheduler = make()
    compatibles = [c for c in scheduler.compatibles if "dummy" not in c.__module__]
    assert len(compatibles) > 10
    for cls in compatibles:
        if cls is diffusers.EDMEulerScheduler:
            continue  # whose own levels its config then names beside the betas
        other = cls.from_config(scheduler.config)
        again = StepScheduler.from_config(other.config)
        config = chosen(scheduler)
        assert {k: v for k, v in again.config.items() if k in config} == config


def test_a_default_is_no_choice_for_another_class():
    """diffusers records defaults in the config, so that another class keeps its own."""
    ours, stock = StepScheduler(), diffusers.DDIMScheduler()
    assert {"beta_start", "beta_schedule"} <= set(ours.config["_use_default_values"])
    for cls in (diffusers.LCMScheduler, diffusers.TCDScheduler, diffusers.EulerDiscreteScheduler):
        switched, expected = (cls.from_config(each.config).config for each in (ours, stock))
        for name in ("beta_start", "beta_end", "beta_schedule"):
            assert switched[name] == expected[name]
    assert diffusers.LCMScheduler.from_config(ours.config).config.beta_schedule == "scaled_linear"
    kept = StepScheduler(beta_schedule="linear")  # said, though it is the default
    assert diffusers.LCMScheduler.from_config(kept.config).config.beta_schedule == "linear"


@EITHER
def test_steps_keep_the_shape(make):
    scheduler = make()
    scheduler.set_timesteps(5)
    x = torch.randn(2, 4, 8, 8)
    for t in scheduler.timesteps[:2]:
        assert scheduler.step(0.1 * x, t, x).prev_sample.shape == x.shape


@EITHER
def test_a_tuple_and_an_output_object_hold_the_same(make):
    outputs = []
    for return_dict in (True, False):
        scheduler = make()
        scheduler.set_timesteps(5)
        x = torch.full((1, 4, 8, 8), 0.5)
        output = scheduler.step(0.1 * x, scheduler.timesteps[0], x, return_dict=return_dict)
        outputs.append(output.to_tuple() if return_dict else output)
    assert isinstance(outputs[1], tuple)
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)


@EITHER
def test_the_public_interface_is_there(make):
    scheduler = make()
    assert scheduler.order == 1
    assert scheduler.init_noise_sigma > 0
    assert len(scheduler) == 1000
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    scheduler.set_timesteps(5)
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(scheduler.scale_model_input(x, scheduler.timesteps[0]), x)
    scheduler.set_begin_index(2)
    scheduler.step(x, scheduler.timesteps[2], x)
    assert scheduler.begin_index == 2
    assert scheduler.step_index == 3


@EITHER
def test_noise_can_be_added_at_the_schedulers_own_timesteps(make):
    scheduler = make()
    scheduler.set_timesteps(5)
    x = torch.randn(1, 4, 8, 8)
    noised = scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[4][None])
    assert noised.shape == x.shape


def test_trained_betas_are_taken():
    scheduler = StepScheduler(**pipelines.BETAS, trained_betas=np.array([0.1, 0.3]))
    assert scheduler.betas.tolist() == pytest.approx([0.1, 0.3])


@EITHER
def test_attributes_are_set_and_missed_as_diffusers_does(make):
    scheduler = make()
    scheduler.dummy_attribute = 5
    scheduler.register_to_config(test_attribute=5)
    assert scheduler.dummy_attribute == 5
    assert scheduler.config.test_attribute == 5
    with pytest.raises(AttributeError, match="no attribute 'does_not_exist'"):
        _ = scheduler.does_not_exist


@EITHER
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_where_the_original_stands(make, copied):
    scheduler = make()
    scheduler.set_timesteps(5)
    x = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
    x = scheduler.step(0.1 * x, scheduler.timesteps[0], x).prev_sample
    again = copied(scheduler)
    a, b = (each.step(0.2 * x, each.timesteps[1], x).prev_sample for each in (scheduler, again))
    assert torch.equal(a, b)


# ---- saved pipelines


def test_a_saved_pipeline_reloads_where_the_scheduler_was_imported(tmp_path, monkeypatch):
    pipe = pipelines.ddpm()
    noise = NoiseSchedule.from_scheduler_config(pipe.scheduler.config)
    schedule = make_schedule("karras", 3, noise)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is StepScheduler
    assert again.scheduler.config.schedule == pipe.scheduler.config.schedule
    # diffusers finds the loader through this name in our module
    monkeypatch.delattr("stepsampler.scheduler.SchedulerMixin")
    with pytest.raises(ValueError, match="does not seem to have any of the loading methods"):
        diffusers.DDPMPipeline.from_pretrained(tmp_path)


def test_the_file_alone_runs_a_saved_scheduler_without_our_package(tmp_path, monkeypatch):
    """As in the `scheduler` folder of a hub repository."""
    import stepsampler.scheduler

    holding(some_schedule()).save_pretrained(tmp_path)
    file = stepsampler.scheduler.__file__
    for name in [name for name in sys.modules if name.startswith("stepsampler")]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    spec = importlib.util.spec_from_file_location("copied", file)
    copied = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "copied", copied)
    spec.loader.exec_module(copied)
    ours, theirs = StepScheduler.from_pretrained, copied.StepScheduler.from_pretrained
    x = torch.ones(1, 4, 8, 8)
    ends = []
    for load in (ours, theirs):
        scheduler, state = load(tmp_path), x
        for t in scheduler.timesteps:
            state = scheduler.step(0.1 * state, t, state).prev_sample
        ends.append(state)
    assert torch.equal(*ends)


def test_the_closed_form_is_reached_through_the_scheduler_too():
    """DDIM with many steps follows the exact solution for Gaussian data."""
    n = 200
    schedule = make_schedule("uniform-logsnr", n, SD, solver="exact", order=2)
    schedule = replace(schedule, decode="x")
    scheduler = holding(schedule, "sample")
    x = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64) * scheduler.init_noise_sigma
    for t, step in zip(scheduler.timesteps, schedule.steps, strict=True):
        x0 = toy.gaussian_denoiser(x * np.sqrt(1 + step.sigma**2), step)
        x = scheduler.step(x0, t, x).prev_sample
    first = schedule.steps[0].sigma
    truth = toy.gaussian_solution(0.8 * first, first, schedule.final_sigma)
    assert x.item() == pytest.approx(truth, abs=1e-3)
