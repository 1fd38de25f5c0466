"""Pipelines that call their network once for each half, and others whose guidance is their own."""

import ast
import copy
import functools
import re
from pathlib import Path

import diffusers
import models_page
import pipelines
import pytest
import stock_pipelines
import torch
from stock_pipelines import GUIDABLE

from stepsampler import UserError
from stepsampler.grids import from_sigmas
from stepsampler.guided import guided
from stepsampler.models import families
from stepsampler.models.stock.known import APART, COND_FIRST, OWN_RULE
from stepsampler.noise import FlowSchedule
from stepsampler.scheduler import StepScheduler

SIGMAS = (1.0, 0.8, 0.5)  # Wan 2.2 changes its network at 0.7
DOUBLED = ("ZImagePipeline", "LTXPipeline")
DIRECTED = ("Lumina2Pipeline", "QwenImagePipeline")  # guidance keeps the length of a prediction


def schedule_of(*scales, pipe=None):
    family = families().get(type(pipe).__name__)
    spec = FlowSchedule().spec(family.family if family else "some")
    return from_sigmas(SIGMAS, 0.0, scales, 1, "ddim", spec)


@pytest.fixture
def subject(request):
    return copy.deepcopy(_made(request.param))


@functools.cache
def _made(name):
    return GUIDABLE[name]()


every = pytest.mark.parametrize("subject", list(GUIDABLE), indirect=True)


class Seen:
    """What the networks of a subject returned, and what its scheduler was given."""

    def __init__(self, subject, monkeypatch):
        self.outputs, self.given, self.rows = [], [], 0
        for net in subject.networks:
            net.register_forward_hook(self.after)
        step = StepScheduler.step

        def spied(scheduler, output, *args, **kwargs):
            self.given.append((output, self.outputs))
            self.outputs = []
            return step(scheduler, output, *args, **kwargs)

        monkeypatch.setattr(StepScheduler, "step", functools.wraps(step)(spied))

    def after(self, _net, _args, output):
        output = output[0] if isinstance(output, tuple) else output.sample
        output = torch.stack(output) if isinstance(output, list) else output.clone()
        self.rows += len(output)
        self.outputs.append(output)


@every
def test_each_step_has_its_mixture_of_what_the_network_said(subject, monkeypatch):
    scales = (4.0, 1.0, 2.5)
    seen = Seen(subject, monkeypatch)
    with guided(subject.pipe, schedule_of(*scales, pipe=subject.pipe)):
        subject.run(3, 6.0)
    name = type(subject.pipe).__name__
    for (given, outputs), w in zip(seen.given, scales, strict=True):
        halves = outputs[0].chunk(2) if name in DOUBLED and w != 1 else outputs
        cond, uncond = (halves[-1], halves[0]) if name == "LTXPipeline" else (halves[0], halves[-1])
        expected = uncond + w * (cond - uncond) if w != 1 else cond
        if name in DIRECTED:
            expected = (
                expected * cond.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
            )
        expected = -expected if name in ("Lumina2Pipeline", "ZImagePipeline") else expected
        torch.testing.assert_close(given, expected.reshape(given.shape), rtol=1e-5, atol=1e-5)
    assert seen.rows == 10  # of two images, 5 passes each


@every
def test_constant_guidance_is_that_of_the_pipeline_itself(subject):
    schedule = schedule_of(4.0, 4.0, 4.0, pipe=subject.pipe)
    with guided(subject.pipe, schedule):
        found, again = subject.run(3, 6.0), subject.run(3, 2.0)
    assert torch.equal(found, again)
    config = subject.pipe.scheduler.config
    subject.pipe.scheduler = StepScheduler.from_config(config, schedule=schedule)
    expected = subject.run(3, 4.0 + subject.offset)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every
def test_an_unguided_schedule_is_an_unguided_run_whatever_the_scale_of_the_call(subject):
    schedule = schedule_of(1.0, 1.0, 1.0, pipe=subject.pipe)
    with guided(subject.pipe, schedule):
        found = [subject.run(3, scale) for scale in (6.0, 0.0)]
    config = subject.pipe.scheduler.config
    subject.pipe.scheduler = StepScheduler.from_config(config, schedule=schedule)
    expected = subject.run(3, 0.0)
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, subject.run(3, 6.0), atol=1e-3)


@every
def test_two_images_of_the_same_noise_are_those_of_their_prompts(subject):
    """Equal halves of a batch are not always a doubled one."""
    pipe, noise = subject.pipe, subject.call["latents"]
    subject.call["latents"] = torch.cat([noise[:1]] * 2)
    with guided(pipe, schedule_of(3.0, 1.0, 1.0, pipe=subject.pipe)):
        both = subject.run(3, 6.0)
        subject.call = {
            k: v[:1] if k == "latents" or "prompt_" in k else v for k, v in subject.call.items()
        }
        torch.testing.assert_close(both[:1], subject.run(3, 6.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@every
def test_a_call_without_guidance_is_refused_and_all_is_as_before(subject):
    pipe, before = subject.pipe, dict(subject.pipe.components)
    with pytest.raises(UserError, match="step 0: .* pass it a guidance_scale above 1"):  # noqa: SIM117
        with guided(pipe, schedule_of(3.0, 1.0, 1.0, pipe=subject.pipe)):
            subject.run(3, 0.0)
    assert all(pipe.components[name] is part for name, part in before.items())
    assert "step" not in vars(pipe.scheduler)


def test_flux_is_guided_by_two_calls_too():
    pipe = pipelines.flux(False)
    latents = pipe._pack_latents(torch.randn(2, 4, 16, 16), 2, 4, 16, 16)
    call = {**pipelines.CALL["flux-schnell"], "latents": latents, "negative_prompt": ["", ""]}
    subject = stock_pipelines.Subject(pipe, {**call, "prompt": ["a", "b"]}, "true_cfg_scale")
    schedule = schedule_of(3.0, 3.0, 3.0, pipe=pipe)
    with guided(pipe, schedule):
        found = subject.run(3, 5.0)
    pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
    torch.testing.assert_close(found, subject.run(3, 3.0), rtol=1e-5, atol=1e-5)


@every
def test_half_precision_is_not_taken_for_another_combination(subject):
    subject.pipe.to(torch.bfloat16)
    subject.call = {
        k: v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in subject.call.items()
    }
    if "prompt" in subject.call:  # Z-Image: lists of embeddings, and latents that stay in float32
        for key in ("prompt_embeds", "negative_prompt_embeds"):
            subject.call[key] = [v.bfloat16() for v in subject.call[key]]
        subject.call["latents"] = subject.call["latents"].float()
    with guided(subject.pipe, schedule_of(4.0, 1.0, 2.5, pipe=subject.pipe)):
        assert subject.run(3, 6.0).isfinite().all()


# ---- refused in words


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ZImagePipeline", {"cfg_normalization": 0.1}, "makes something else of its network's"),
        ("ZImagePipeline", {"cfg_truncation": 0.1}, "step 1: .* no truncation of guidance"),
        ("Lumina2Pipeline", {"cfg_trunc_ratio": 0.4}, "step 1: .* no truncation of guidance"),
    ],
)
def test_options_that_change_the_guidance_are_refused(name, options, message):
    subject = GUIDABLE[name]()
    with (
        pytest.raises(UserError, match=message),
        guided(subject.pipe, schedule_of(3.0, 3.0, 3.0, pipe=subject.pipe)),
    ):
        subject.run(3, 5.0, **options)


def test_levels_of_edm_in_a_flow_scheduler_are_refused():
    pipe = stock_pipelines.cosmos2().pipe
    with pytest.raises(ValueError, match="sigma_data of the pipeline's scheduler is not supp"):
        StepScheduler.from_config(pipe.scheduler.config, schedule=schedule_of(1, 1, 1))
    with pytest.raises(ValueError, match="sigma_data"), guided(pipe, schedule_of(1, 1, 1)):
        pass
    ours = StepScheduler(prediction_type="flow_prediction", schedule=schedule_of(1, 1, 1))
    pipe = stock_pipelines.cosmos2(ours).pipe  # which tells its scheduler what it wants
    with pytest.raises(ValueError, match="sigma_data"):
        pipe.scheduler.set_timesteps(3)


def test_skip_layer_guidance_is_refused():
    pipe = pipelines.sd3()
    options = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1.0}
    with (
        pytest.raises(UserError, match="calls its network more than once in a step"),
        guided(pipe, schedule_of(3.0, 3.0, 3.0, pipe=pipe)),
        torch.no_grad(),
    ):
        pipe("a fox", num_inference_steps=3, output_type="latent", **options)


# ---- what `guided` believes of diffusers, read in its sources


def _calls(cls):
    """Of a pipeline's own networks in its methods: the names that their results are given."""
    names = []
    for node in ast.walk(cls):
        if isinstance(node, ast.Assign):
            value = ast.unparse(node.value)
            if re.match(r"(self\.)?(unet|transformer\w*|current_model)\(", value):
                names.append(ast.unparse(node.targets[0]))
    return names


def test_the_packages_that_call_apart_are_those_of_the_sources():
    root = Path(diffusers.__file__).parent / "pipelines"
    negative = re.compile("neg|uncond|null")
    apart = {}
    for file in root.rglob("pipeline_*.py"):
        if "deprecated" in file.parts or "scheduler.step(" not in file.read_text():
            continue
        for cls in ast.parse(file.read_text()).body:
            names = _calls(cls) if isinstance(cls, ast.ClassDef) else []
            if len(names) > 1 and sum(bool(negative.search(n)) for n in names) == 1:
                assert not negative.search(names[0]), cls.name  # the conditional half is first
                apart[file.relative_to(root).parts[0]] = cls.name
    scheduler_of_their_own = {"cosmos", "kandinsky6", "longcat_audio_dit"}
    one_half_only = {"flux2"} - apart.keys()
    assert set(apart) - scheduler_of_their_own == APART - one_half_only


def test_the_halves_of_a_doubled_batch_are_as_in_the_sources():
    root = Path(diffusers.__file__).parent / "pipelines"
    split = re.compile(r"(\w+), (\w+) = \w+\.chunk\(2\)|(\w+), (\w+) = torch\.split\(\s*noise")
    seen, cond_first = set(), set()
    for file in root.rglob("pipeline_*.py"):
        text = file.read_text()
        if "deprecated" in file.parts or "scheduler.step(" not in text:
            continue
        package = file.relative_to(root).parts[0]
        for names in (tuple(filter(None, found)) for found in split.findall(text)):
            negative = [bool(re.search("neg|uncond", name)) for name in names]
            if sum(negative) == 1:
                seen.add(package)
                cond_first |= {package} if negative[1] else set()
    assert len(seen) > 25
    assert cond_first <= {*COND_FIRST, *OWN_RULE, "stable_cascade"}, "its network is no U-Net"


def test_the_page_of_models_is_that_of_the_installed_diffusers():
    page = models_page.PAGE.read_text(encoding="utf-8")
    assert page == models_page.replaced(page), "run python tests/models_page.py"
