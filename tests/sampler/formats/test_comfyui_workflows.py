"""Workflows of ComfyUI, read in both of their forms, and written.

`comfyui_nodes.json` has the inputs and outputs of its nodes, from `/object_info` of version 0.30.0;
sigmas of its schedulers come from its own functions.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from exporting import FLUX, SD, SPEC, TARGET, baseline, flow
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stepsampler import ModelSpec, UserError
from stepsampler.formats import Target, export, read, reading
from stepsampler.formats.files import text_of
from stepsampler.grids import from_sigmas, guide
from stepsampler.noise import FlowSchedule
from stepsampler.presets import MODELS, preset

NODES = json.loads(Path(__file__).with_name("comfyui_nodes.json").read_text())
FLUX_TARGET = Target(FlowSchedule(3.158), FLUX, guidance="distilled")
SD3_TARGET = Target(FlowSchedule(3.0), MODELS["sd3"])
V_TARGET = Target(SD, ModelSpec("stable-diffusion", "v_prediction", SPEC.noise))

LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}}
KSAMPLER = {
    "4": LOADER,
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 512, "height": 512, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
            "seed": 0,
            "steps": 5,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}


def changed(node="3", extra=None, **inputs):
    """The workflow with other inputs of a node, and further nodes."""
    nodes = copy.deepcopy(KSAMPLER) | (extra or {})
    nodes[node]["inputs"] |= inputs
    return json.dumps(nodes)


def patch(kind, **inputs):
    return changed(
        extra={"20": {"class_type": kind, "inputs": {"model": ["4", 0], **inputs}}}, model=["20", 0]
    )


# ---- ManualSigmas


@pytest.mark.parametrize(
    ("text", "sigmas"),
    [
        ("14.61, 6.47, 0.0,", (14.61, 6.47, 0.0)),
        ("14.61; 6.47; 0.0", (14.61, 6.47, 0.0)),
        ("sigmas: 14.61, 6.47, 0.0", (14.61, 6.47, 0.0)),
        ("[14.61\n 6.47 | 0]", (14.61, 6.47, 0.0)),
        ("14.61/.5/+0", (14.61, 0.5, 0.0)),
        ("14.61,,6.,0", (14.61, 6.0, 0.0)),
    ],
)
def test_sigmas_are_read_as_the_node_reads_them(text, sigmas):
    assert read(text, "comfyui", TARGET).sigmas == sigmas
    node = {"1": {"class_type": "ManualSigmas", "inputs": {"sigmas": text}}}
    assert read(json.dumps(node), "comfyui", TARGET).sigmas == sigmas


def test_loose_nodes_of_the_api_form_are_read():
    nodes = {
        "1": {"class_type": "ManualSigmas", "inputs": {"sigmas": "14.61, 6.47, 0.0"}},
        "2": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "3": {"class_type": "CFGGuider", "inputs": {"cfg": 5.0}},
    }
    expected = from_sigmas([14.61, 6.47], 0.0, [5.0] * 2, 1, "ddim", SPEC)
    assert read(json.dumps(nodes), "comfyui", TARGET) == expected
    nodes["4"] = {"class_type": "FreeU_V2", "inputs": {"b1": 1.3}}
    with pytest.raises(UserError, match=r"a schedule does not hold node 4 \(FreeU_V2\)"):
        read(json.dumps(nodes), "comfyui", TARGET)
    nodes["5"] = nodes["1"]
    with pytest.raises(UserError, match=r"several nodes of ManualSigmas, node 1 .* node 5"):
        reading(json.dumps(nodes), "comfyui", TARGET, lossy=True)


# ---- What is written, and read back


HELD = [
    (baseline(), TARGET),
    (baseline("karras", 5, "heun", 2), TARGET),
    (guide(preset("seed-sd-8").schedule, 7.5, (0.3, 5.0)), TARGET),
    (guide(baseline("linspace", 20), 6.0, (0.28, 5.42)), TARGET),
    (preset("ays-sdxl").schedule, Target(SD, MODELS["sdxl"])),
    (preset("oss-flux-10").schedule, FLUX_TARGET),
    (replace(flow(w=4.0), model=MODELS["sd3"]), SD3_TARGET),
]


@pytest.mark.parametrize(("schedule", "target"), HELD)
def test_a_written_workflow_fits_the_nodes_and_is_read_back(schedule, target):
    text = export(schedule, "comfyui-workflow", checkpoint="mine.safetensors").text
    nodes = json.loads(text)
    for node in nodes.values():
        known = NODES[node["class_type"]]
        assert set(node["inputs"]) == set(known["inputs"])
        for name, value in node["inputs"].items():
            kind = known["inputs"][name]
            if isinstance(value, list):
                source, slot = value
                assert NODES[nodes[source]["class_type"]]["outputs"][slot] == kind
            elif isinstance(kind, list):
                assert kind[1] <= value <= kind[2]
            else:
                assert kind in ("COMBO", "STRING")
    assert "mine.safetensors" in text
    again = reading(text, "comfyui", target)
    assert again.lost == ()
    bare = read(export(schedule, "comfyui").text, "comfyui", target)
    assert again.schedule == bare
    assert again.schedule.sigmas == schedule.sigmas
    scales = [step.guidance_scale for step in schedule.steps]
    assert [step.guidance_scale for step in again.schedule.steps] == scales
    assert "CLIPTextEncode" in again.notes[0]
    as_posted = json.dumps({"client_id": "x", "prompt": nodes})
    assert read(as_posted, "comfyui", target) == again.schedule


def test_families_without_nodes_of_their_own_are_refused():
    with pytest.raises(UserError, match="a workflow is made for stable-diffusion, sdxl, sd3, flux"):
        export(replace(baseline(), model=MODELS["dit"]), "comfyui-workflow")


def test_guidance_above_a_hundred_and_finer_than_a_hundredth_is_said():
    with pytest.raises(UserError, match=r"guidance 120 of step 0 \(100 at most\)"):
        export(baseline(w=120.0), "comfyui")
    lossy = export(baseline(w=120.0), "comfyui", lossy=True)
    assert json.loads(lossy.text)["CFGGuider"] == {"cfg": 100.0}
    assert export(baseline(w=7.53), "comfyui").notes == ()
    assert "rounds guidance to hundredths" in export(baseline(w=7.531), "comfyui").notes[0]
    assert "rounds guidance to tenths" in export(preset_flux(3.55), "comfyui").notes[0]


def preset_flux(scale):
    return guide(preset("oss-flux-10").schedule, scale)


def test_a_level_between_timesteps_is_said():
    assert export(baseline(), "comfyui").notes == ()
    assert "nearest whole timesteps" in export(preset("seed-sd-8").schedule, "comfyui").notes[0]


# ---- The page's form


def page():
    """What its page began with for years: links as lists, values without names."""

    def node(key, kind, inputs, outputs, values=None):
        slots = [{"name": name, "type": of, "link": link} for name, of, link in inputs]
        made = {"id": key, "type": kind, "mode": 0, "inputs": slots}
        made["outputs"] = [{"name": of, "type": of} for of in outputs]
        return made | ({"widgets_values": values} if values is not None else {})

    nodes = [
        node(4, "CheckpointLoaderSimple", [], ["MODEL", "CLIP", "VAE"], ["x.safetensors"]),
        node(5, "EmptyLatentImage", [], ["LATENT"], [512, 512, 1]),
        node(6, "CLIPTextEncode", [("clip", "CLIP", 3)], ["CONDITIONING"], ["a fox"]),
        node(7, "CLIPTextEncode", [("clip", "CLIP", 5)], ["CONDITIONING"], [""]),
        node(
            3,
            "KSampler",
            [
                ("model", "MODEL", 1),
                ("positive", "CONDITIONING", 4),
                ("negative", "CONDITIONING", 6),
                ("latent_image", "LATENT", 2),
            ],
            ["LATENT"],
            [156680208700286, "randomize", 5, 8, "euler", "normal", 1],
        ),
    ]
    links = [
        [1, 4, 0, 3, 0, "MODEL"],
        [2, 5, 0, 3, 3, "LATENT"],
        [3, 4, 1, 6, 0, "CLIP"],
        [4, 6, 0, 3, 1, "CONDITIONING"],
        [5, 4, 1, 7, 0, "CLIP"],
        [6, 7, 0, 3, 2, "CONDITIONING"],
    ]
    return {"last_node_id": 9, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


PLAIN = read(json.dumps(KSAMPLER), "comfyui", TARGET)


def between(data, kind, values, mode=0):
    """A node of the model between loader and sampler."""
    slots = [{"name": "model", "type": "MODEL", "link": 1}]
    node = {"id": 20, "type": kind, "mode": mode, "inputs": slots, "widgets_values": values}
    node["outputs"] = [{"name": "MODEL", "type": "MODEL"}]
    data["nodes"].append(node)
    data["links"][0] = [1, 4, 0, 20, 0, "MODEL"]
    data["links"].append([9, 20, 0, 3, 0, "MODEL"])
    data["nodes"][4]["inputs"][0]["link"] = 9
    return data


def test_a_saved_page_says_the_same_as_its_api_form():
    assert read(json.dumps(page()), "comfyui", TARGET) == PLAIN
    assert PLAIN.sigmas == pytest.approx((14.6146, 4.08608, 1.61558, 0.69515, 0.0291672, 0.0), 1e-5)
    assert [step.guidance_scale for step in PLAIN.steps] == [8.0] * 5


def test_nodes_of_a_page_that_do_not_run_are_passed():
    text = json.dumps(between(page(), "PerturbedAttentionGuidance", [3.0]))
    with pytest.raises(UserError, match=r"does not hold node 20 \(PerturbedAttentionGuidance\)"):
        read(text, "comfyui", TARGET)
    bypassed = json.dumps(between(page(), "PerturbedAttentionGuidance", [3.0], mode=4))
    assert read(bypassed, "comfyui", TARGET) == PLAIN
    assert read(json.dumps(between(page(), "Reroute", [])), "comfyui", TARGET) == PLAIN
    muted = page()
    muted["nodes"].append({"id": 30, "type": "KSampler", "mode": 2, "inputs": []})
    assert read(json.dumps(muted), "comfyui", TARGET) == PLAIN


def test_values_of_a_page_may_come_from_primitives_and_switches():
    data = page()
    sampler = data["nodes"][4]
    sampler["inputs"] += [
        {"name": "steps", "type": "INT", "widget": {"name": "steps"}, "link": 11},
        {"name": "cfg", "type": "FLOAT", "widget": {"name": "cfg"}, "link": 12},
    ]
    data["nodes"] += [
        {"id": 21, "type": "PrimitiveNode", "widgets_values": [5, "fixed"], "outputs": []},
        {"id": 22, "type": "PrimitiveFloat", "widgets_values": [8.0], "inputs": []},
        {"id": 24, "type": "PrimitiveFloat", "widgets_values": [1.0], "inputs": []},
        {
            "id": 23,
            "type": "ComfySwitchNode",
            "widgets_values": [False],
            "inputs": [{"name": "on_false", "link": 13}, {"name": "on_true", "link": 14}],
        },
    ]
    data["links"] += [
        [11, 21, 0, 3, 4, "INT"],
        [12, 23, 0, 3, 5, "FLOAT"],
        [13, 22, 0, 23, 0, "FLOAT"],
        [14, 24, 0, 23, 1, "FLOAT"],
    ]
    sampler["widgets_values"][2:4] = [99, 99]
    assert read(json.dumps(data), "comfyui", TARGET) == PLAIN


def inside(data, promoted=None):
    """The whole page as a subgraph, whose number of steps comes from outside."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(names, link, strict=True)) for link in data["links"]]
    links.append(dict(zip(names, (50, -10, 0, 3, 4, "INT"), strict=True)))
    data["nodes"][4]["inputs"].append({"name": "steps", "type": "INT", "link": 50})
    graph = {"id": "u-1", "name": "Text to Image", "nodes": data["nodes"], "links": links}
    graph |= {"inputs": [{"name": "steps", "type": "INT"}], "outputs": []}
    outer = {"id": 100, "type": "u-1", "mode": 0, "outputs": []}
    outer["inputs"] = [{"name": "steps", "type": "INT", "link": 1}]
    if promoted:
        outer["properties"] = {"proxyWidgets": [["3", "cfg"]]}
        outer["widgets_values"] = [promoted]
    number = {"id": 101, "type": "PrimitiveInt", "mode": 0, "inputs": [], "widgets_values": [5]}
    return {
        "nodes": [outer, number],
        "links": [[1, 101, 0, 100, 0, "INT"]],
        "definitions": {"subgraphs": [graph]},
    }


def test_subgraphs_of_a_page_are_read():
    assert read(json.dumps(inside(page())), "comfyui", TARGET) == PLAIN
    other = read(json.dumps(inside(page(), promoted=4.5)), "comfyui", TARGET)
    assert {step.guidance_scale for step in other.steps} == {4.5}
    itself = inside(page())
    itself["definitions"]["subgraphs"][0]["nodes"].append({"id": 1, "type": "u-1", "inputs": []})
    with pytest.raises(UserError, match="subgraph 'Text to Image' is inside itself"):
        read(json.dumps(itself), "comfyui", TARGET)


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
    with pytest.raises(UserError, match=r"node 20 \(RescaleCFG\): it rescales v, and the model"):
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
        (patch("ModelSamplingDiscrete", sampling="eps", zsnr=True), "zsnr changes the model's"),
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


# ---- Files


def test_an_image_of_comfyui_has_its_workflow_in_it(tmp_path):
    info = PngInfo()
    info.add_text("prompt", json.dumps(KSAMPLER))
    info.add_text("workflow", json.dumps(page()))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=info)
    assert read(text_of(tmp_path / "made.png"), "comfyui", TARGET) == PLAIN
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="plain.png: the image has no workflow of ComfyUI in it"):
        text_of(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "made.png").read_bytes()[:90])
    with pytest.raises(UserError, match="cut.png: the image"):
        text_of(tmp_path / "cut.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_of_other_systems_are_read(tmp_path, encoding):
    (tmp_path / "s.txt").write_text("14.61, 6.47, 0.0", encoding=encoding)
    assert read(text_of(tmp_path / "s.txt"), "comfyui", TARGET).num_steps == 2
