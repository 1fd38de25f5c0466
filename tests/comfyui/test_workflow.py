"""Whole workflows, as a page or a script posts them to ComfyUI's server."""

import json

import flows
import pytest
import server
from cases import ALL, PROMPTS, SHAPE, TINY, ours
from loaded import FOLDER

from stepsampler.formats import Target, export, reading

PROMPT = next(iter(PROMPTS))
SIDE = 8 * SHAPE[1]  # ComfyUI takes 8 pixels for each entry of an empty latent; our VAE makes 2


@pytest.fixture(scope="module", autouse=True)
def nodes():
    server.set_up(FOLDER)


def images(schedule, as_comfyui=False):
    return TINY.decode(ours(schedule, PROMPT, as_comfyui))


def grey_levels(a, b):
    return int((a.int() - b.int()).abs().max())


def with_our_node(file):
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1},
        },
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": PROMPTS[PROMPT]}},
        "6": {
            "class_type": "StepSchedule",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "schedule": file,
            },
        },
        "7": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["5", 0],
                "sigmas": ["6", 0],
                "sampler": ["6", 1],
                "guider": ["6", 2],
                "latent_image": ["4", 0],
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    }


def test_our_node_from_a_copied_folder_to_a_saved_image(place):
    schedule = ALL["studies: tiny-3-steps"]
    schedule.save(place / "best.json")
    assert grey_levels(server.post(with_our_node("best.json")), images(schedule)) <= 1
    for name in ("../best.json", "/etc/passwd", "other.json"):
        refused = server.post(with_our_node(name))
        assert refused["node_errors"]["6"]["errors"][0]["type"] == "value_not_in_list"


WORKFLOWS = [
    "studies: tiny-3-steps",
    "seed-sd: seed-sd-5",
    "made: ddim interval",
    "made: heun",
    "made: ipndm",
]


def exported(schedule):
    """For the server's checkpoint, and images of the bundled model's size."""
    text = export(schedule, "comfyui-workflow", checkpoint=server.CHECKPOINT).text
    workflow = json.loads(text)
    by_kind = {node["class_type"]: node["inputs"] for node in workflow.values()}
    assert next(iter(by_kind)) == "CheckpointLoaderSimple"
    by_kind["EmptyLatentImage"] |= {"width": SIDE, "height": SIDE}
    by_kind["RandomNoise"]["noise_seed"] = PROMPTS[PROMPT]
    for node in workflow.values():
        if node["class_type"] == "CLIPTextEncode" and node["inputs"]["text"]:
            node["inputs"]["text"] = PROMPT
    return workflow


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_exported_workflow_runs_as_posted(name):
    found = server.post(exported(ALL[name]))
    assert grey_levels(found, images(ALL[name], as_comfyui=True)) <= 1


FLOWS = {name: schedule for name, (_, schedule) in flows.FLOWS.items() if "ipndm" not in name}


@pytest.mark.parametrize("name", [*WORKFLOWS, *FLOWS])
def test_a_server_misses_nothing_but_the_files(name):
    workflow = json.loads(export((ALL | FLOWS)[name], "comfyui-workflow").text)
    refused = server.post(workflow)
    assert refused["node_errors"]
    for key, node in refused["node_errors"].items():
        for error in node["errors"]:
            assert error["type"] == "value_not_in_list"
            assert error["extra_info"]["input_name"].rstrip("12").endswith("_name")
            assert workflow[key]["class_type"].split("Simple")[0].endswith("Loader")


def test_bare_nodes_are_no_workflow():
    """Which `comfyui` writes: its numbers are typed into a page."""
    refused = server.post(json.loads(export(ALL[WORKFLOWS[0]], "comfyui").text))
    assert refused["type"] == "missing_node_type"


def workflow_of(sampling, latents="5"):
    """With the nodes `sampling` between the prompts and the image."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1},
        },
        **sampling,
        "90": {"class_type": "VAEDecode", "inputs": {"samples": [latents, 0], "vae": ["1", 2]}},
        "91": {"class_type": "SaveImage", "inputs": {"images": ["90", 0], "filename_prefix": "x"}},
    }


SIDES = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}


def k_sampler(**inputs):
    given = {
        **SIDES,
        "latent_image": ["4", 0],
        "seed": PROMPTS[PROMPT],
        "steps": 6,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    return {"5": {"class_type": "KSampler", "inputs": given | inputs}}


def k_sampler_advanced(**inputs):
    given = k_sampler()["5"]["inputs"] | {
        "add_noise": "enable",
        "noise_seed": PROMPTS[PROMPT],
        "start_at_step": 0,
        "end_at_step": 10000,
        "return_with_leftover_noise": "disable",
    }
    del given["seed"], given["denoise"]
    return {"5": {"class_type": "KSamplerAdvanced", "inputs": given | inputs}}


def advanced(sampler, scheduler, overrides=()):
    """SamplerCustomAdvanced; `scheduler` is a node, `overrides` are given from the loader on."""
    nodes, model = {}, ["1", 0]
    for k, (cfg, start, end) in enumerate(overrides):
        inputs = {"model": model, "cfg": cfg, "start_percent": start, "end_percent": end}
        nodes[f"{20 + k}"] = {"class_type": "CFGOverride", "inputs": inputs}
        model = [f"{20 + k}", 0]
    if "model" in scheduler["inputs"]:
        scheduler["inputs"]["model"] = model
    custom = {
        "noise": ["6", 0],
        "guider": ["7", 0],
        "sampler": ["8", 0],
        "sigmas": ["9", 0],
        "latent_image": ["4", 0],
    }
    return nodes | {
        "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": PROMPTS[PROMPT]}},
        "7": {"class_type": "CFGGuider", "inputs": {**SIDES, "model": model, "cfg": 4.0}},
        "8": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}},
        "9": scheduler,
        "5": {"class_type": "SamplerCustomAdvanced", "inputs": custom},
    }


def basic(scheduler, steps, denoise=1.0):
    inputs = {"model": None, "scheduler": scheduler, "steps": steps, "denoise": denoise}
    return {"class_type": "BasicScheduler", "inputs": inputs}


KARRAS = {"steps": 6, "sigma_max": 14.614642, "sigma_min": 0.0291675, "rho": 7.0}
EXPONENTIAL = {"steps": 5, "sigma_max": 12.0, "sigma_min": 0.05}
MANUAL = {"class_type": "ManualSigmas", "inputs": {"sigmas": "14.61,6.5; 2.25 -> .7  0.0"}}
RAN = {
    "normal": k_sampler(),
    "normal dpmpp_2m": k_sampler(sampler_name="dpmpp_2m", steps=9),
    "sgm_uniform": k_sampler(scheduler="sgm_uniform"),
    "karras": k_sampler(scheduler="karras", sampler_name="dpmpp_2m"),
    "simple": k_sampler(scheduler="simple", sampler_name="dpmpp_2m", steps=7),
    "ddim_uniform": k_sampler(scheduler="ddim_uniform", sampler_name="ddim"),
    "ddim_uniform of one more": k_sampler(scheduler="ddim_uniform", steps=7),
    "beta": k_sampler(scheduler="beta", sampler_name="heun", steps=5),
    "exponential": k_sampler(scheduler="exponential", sampler_name="ipndm"),
    "kl_optimal": k_sampler(scheduler="kl_optimal"),
    "no guidance": k_sampler(cfg=1.0),
    "to an earlier step": k_sampler_advanced(end_at_step=4),
    "to an earlier step with noise": k_sampler_advanced(
        end_at_step=4, return_with_leftover_noise="enable"
    ),
    "basic": advanced("euler", basic("normal", 5)),
    "basic of one less": advanced("euler", basic("ddim_uniform", 7)),
    "karras node": advanced("dpmpp_2m", {"class_type": "KarrasScheduler", "inputs": KARRAS}),
    "exponential node": advanced(
        "heun", {"class_type": "ExponentialScheduler", "inputs": EXPONENTIAL}
    ),
    "manual": advanced("ipndm", MANUAL),
    "override": advanced("euler", basic("normal", 6), [(1.0, 0.0, 0.3), (7.0, 0.3, 0.85)]),
    "overlap": advanced("dpmpp_2m", basic("karras", 6), [(1.0, 0.0, 0.65), (7.0, 0.3, 0.85)]),
    "reversed": advanced("euler", basic("normal", 6), [(7.0, 0.3, 0.85), (1.0, 0.0, 0.65)]),
}


@pytest.mark.parametrize("name", RAN)
def test_an_imported_workflow_is_what_the_server_ran(name):
    workflow = workflow_of(RAN[name])
    read = reading(json.dumps(workflow), "comfyui", Target(TINY.noise, TINY.spec)).schedule
    assert grey_levels(server.post(workflow), images(read, as_comfyui=True)) <= 1
