"""Workflows of ComfyUI, read in both of their forms, and written.

`comfyui_nodes.json` has the inputs and outputs of its nodes, from `/object_info` of version 0.30.0.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from exporting import SD, SPEC, TARGET, baseline, flow
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from workflows import FLUX_TARGET, KSAMPLER, SD3_TARGET, between, inside, page

from stepsampler import UserError
from stepsampler.formats import Target, export, read, reading
from stepsampler.formats.files import text_of
from stepsampler.grids import from_sigmas, guide
from stepsampler.presets import MODELS, preset

NODES = json.loads(Path(__file__).with_name("comfyui_nodes.json").read_text())
PLAIN = read(json.dumps(KSAMPLER), "comfyui", TARGET)


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


def test_subgraphs_of_a_page_are_read():
    assert read(json.dumps(inside(page())), "comfyui", TARGET) == PLAIN
    other = read(json.dumps(inside(page(), promoted=4.5)), "comfyui", TARGET)
    assert {step.guidance_scale for step in other.steps} == {4.5}
    itself = inside(page())
    itself["definitions"]["subgraphs"][0]["nodes"].append({"id": 1, "type": "u-1", "inputs": []})
    with pytest.raises(UserError, match="subgraph 'Text to Image' is inside itself"):
        read(json.dumps(itself), "comfyui", TARGET)


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
