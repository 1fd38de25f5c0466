"""What a workflow of ComfyUI says of a schedule, and what else it says that bends the sampling.

Sigmas of its schedulers come from its own functions, version 0.30.0.
"""

import copy
import json

import pytest
from exporting import TARGET
from workflows import (
    FLUX_TARGET,
    KSAMPLER,
    LOADER,
    SD3_TARGET,
    V_TARGET,
    changed,
    patch,
)

from stepsampler import UserError
from stepsampler.formats import read, reading
from stepsampler.noise import FlowSchedule

PLAIN = read(json.dumps(KSAMPLER), "comfyui", TARGET)


# ---- Schedulers, and parts of a schedule


@pytest.mark.parametrize(
    ("target", "name", "sigmas"),
    [
        (TARGET, "sgm_uniform", (14.6146, 5.09241, 2.27973, 1.16286, 0.571189, 0.0)),
        (TARGET, "simple", (14.6146, 5.08776, 2.27646, 1.16058, 0.569285, 0.0)),
        (TARGET, "ddim_uniform", (5.13443, 2.29285, 1.16822, 0.57405, 0.0413144, 0.0)),
        (TARGET, "beta", (14.6146, 7.37184, 2.61524, 1.02733, 0.39551, 0.0)),
        (TARGET, "karras", (14.6146, 4.79653, 1.2741, 0.24795, 0.0291672, 0.0)),
        (TARGET, "exponential", (14.6146, 3.08898, 0.652892, 0.137996, 0.0291672, 0.0)),
        (TARGET, "kl_optimal", (14.6146, 2.14274, 0.961588, 0.419836, 0.0291672, 0.0)),
        (SD3_TARGET, "normal", (1.0, 0.900359, 0.751121, 0.502985, 0.00892857, 0.0)),
        (SD3_TARGET, "simple", (1.0, 0.923077, 0.818182, 0.666667, 0.428571, 0.0)),
        (SD3_TARGET, "beta", (1.0, 0.955338, 0.840949, 0.630939, 0.298077, 0.0)),
        (FLUX_TARGET, "simple", (1.0, 0.926647, 0.825702, 0.677987, 0.4412, 0.0)),
        (FLUX_TARGET, "sgm_uniform", (1.0, 0.926674, 0.825777, 0.678159, 0.441589, 0.0)),
    ],
)
def test_schedulers_are_those_of_comfyui(target, name, sigmas):
    found = reading(changed(scheduler=name), "comfyui", target, lossy=True).schedule
    assert found.sigmas == pytest.approx(sigmas, rel=1e-5)


def test_a_sampler_takes_all_sigmas_of_a_scheduler_and_a_scheduler_node_the_last():
    """`ddim_uniform` makes one more where 1000 / n is not whole."""
    assert read(changed(scheduler="ddim_uniform", steps=6), "comfyui", TARGET).num_steps == 7
    nodes = {
        "1": {"class_type": "BasicScheduler", "inputs": {"scheduler": "ddim_uniform", "steps": 6}}
    }
    assert read(json.dumps(nodes), "comfyui", TARGET).num_steps == 6


def test_denoise_and_a_range_of_steps_cut_the_sigmas():
    twelve = read(changed(steps=12), "comfyui", TARGET).sigmas
    assert read(changed(steps=6, denoise=0.5), "comfyui", TARGET).sigmas == twelve[-7:]
    nodes = copy.deepcopy(KSAMPLER)
    given = nodes["3"]["inputs"] | {"start_at_step": 2, "end_at_step": 8, "steps": 12}
    del given["denoise"]
    nodes["3"] = {"class_type": "KSamplerAdvanced", "inputs": given}
    assert read(json.dumps(nodes), "comfyui", TARGET).sigmas == (*twelve[2:8], 0.0)
    given["return_with_leftover_noise"] = "enable"
    assert read(json.dumps(nodes), "comfyui", TARGET).sigmas == twelve[2:9]
    given["add_noise"] = "disable"
    with pytest.raises(UserError, match=r"node 3 \(KSamplerAdvanced\): it starts without noise"):
        read(json.dumps(nodes), "comfyui", TARGET)


def test_the_shift_of_a_flow_is_that_of_its_node():
    shifted = patch("ModelSamplingSD3", shift=6.0)
    sigmas = read(shifted, "comfyui", SD3_TARGET).sigmas
    assert sigmas[1] == pytest.approx(FlowSchedule(6.0).sigma(1000 + (6.0 / 1005 - 1) * 250), 1e-3)
    sized = patch("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=256, height=256)
    small = reading(sized, "comfyui", FLUX_TARGET, lossy=True).schedule
    large = reading(changed(), "comfyui", FLUX_TARGET, lossy=True).schedule
    assert small.sigmas[1] < large.sigmas[1]
    with pytest.raises(UserError, match=r"node 20 \(ModelSamplingSD3\) is for a flow model"):
        read(shifted, "comfyui", TARGET)


def test_rescaled_guidance_is_read_where_it_means_the_same():
    text = patch("RescaleCFG", multiplier=0.7)
    assert {s.guidance_rescale for s in read(text, "comfyui", V_TARGET).steps} == {0.7}
    with pytest.raises(UserError, match=r"node 20 \(RescaleCFG\): it is for v-prediction"):
        read(text, "comfyui", TARGET)


def test_overrides_are_read_as_the_nodes_work():
    """Both ends belong to a range, and the one nearest the sampler wins."""
    extra = {
        "20": {
            "class_type": "CFGOverride",
            "inputs": {"model": ["4", 0], "cfg": 2.0, "start_percent": 0.0, "end_percent": 1.0},
        },
        "21": {
            "class_type": "CFGOverride",
            "inputs": {"model": ["20", 0], "cfg": 1.0, "start_percent": 0.2, "end_percent": 0.6},
        },
    }
    found = read(changed(extra=extra, model=["21", 0]), "comfyui", TARGET)
    assert [step.guidance_scale for step in found.steps] == [2.0, 1.0, 1.0, 2.0, 2.0]
    with pytest.raises(UserError, match="guidance per step of heun, whose second call"):
        read(changed(extra=extra, model=["21", 0], sampler_name="heun"), "comfyui", TARGET)


def test_distilled_guidance_of_a_workflow():
    extra = {
        "20": {"class_type": "FluxGuidance", "inputs": {"guidance": 2.5, "conditioning": ["6", 0]}}
    }
    found = read(changed(extra=extra, positive=["20", 0], cfg=1.0), "comfyui", FLUX_TARGET)
    assert found.guidance == "distilled"
    assert {step.guidance_scale for step in found.steps} == {2.5}
    assert read(changed(cfg=1.0), "comfyui", FLUX_TARGET).steps[0].guidance_scale == 3.5
    with pytest.raises(UserError, match=r"cfg 8 of node 3 \(KSampler\) beside the distilled"):
        read(changed(extra=extra, positive=["20", 0]), "comfyui", FLUX_TARGET)
    with pytest.raises(UserError, match=r"node 20 \(FluxGuidance\) is for a flow model"):
        read(changed(extra=extra, positive=["20", 0]), "comfyui", TARGET)


LATENT = {"21": {"class_type": "VAEEncode", "inputs": {"pixels": ["22", 0], "vae": ["4", 2]}}}
RANGE = {
    "21": {
        "class_type": "ConditioningSetTimestepRange",
        "inputs": {"conditioning": ["7", 0], "start": 0.0, "end": 0.3},
    }
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            changed(extra=LATENT, latent_image=["21", 0]),
            r"21 \(VAEEncode\): it does not start from",
        ),
        (changed(extra=RANGE, negative=["21", 0]), r"node 21 \(ConditioningSetTimestepRange\)"),
        (patch("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2), r"does not hold node 20 \(FreeU_V2\)"),
        (patch("SomeCustomNode"), r"does not hold node 20 \(SomeCustomNode\)"),
        (patch("ModelSamplingDiscrete", sampling="lcm", zsnr=False), "epsilon, got 'lcm'; name an"),
        (patch("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False), "is epsilon, got"),
        (
            patch("ModelSamplingDiscrete", sampling="eps", zsnr=True),
            "zsnr is True, but the model has no zero",
        ),
        (patch("ModelSamplingContinuousEDM", sampling="edm"), "is for another model; name it with"),
        (changed(sampler_name="dpmpp_sde"), "sampler_name must be one of euler, heun,"),
        (
            changed(scheduler="linear_quadratic"),
            "scheduler must be one of normal, .* got 'linear_q",
        ),
        (changed(denoise=0.0), "denoise above 0 and at most 1, got 5 and 0"),
        (changed(steps="x"), r"steps of node 3 \(KSampler\) must be a number, got 'x'"),
        (changed(cfg=["99", 0]), r"cfg of node 3 \(KSampler\) comes from another node, which is"),
        (changed(extra={"30": KSAMPLER["3"]}), r"several sampling nodes, node 3 .* node 30"),
        (json.dumps({"4": LOADER}), "no sampling node .* and no nodes with sigmas"),
        ('{"1": {"inputs": {}}}', "node 1 has no class_type: the file is no workflow of ComfyUI"),
        ('{"nodes": [{"id": 1}]}', "expected JSON with the inputs of .* or a workflow"),
    ],
)
def test_what_else_bends_the_sampling_is_named_or_refused(text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, "comfyui", TARGET)
    assert "\n" not in str(caught.value)


def test_loras_and_v_prediction_as_it_is_bend_nothing():
    assert read(patch("LoraLoaderModelOnly", lora_name="x"), "comfyui", TARGET) == PLAIN
    v = patch("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False)
    assert read(v, "comfyui", V_TARGET).sigmas == PLAIN.sigmas
