"""Workflows of ComfyUI: as posted to its server, and as its page saves them."""

import copy
import json

from exporting import FLUX, SD, SPEC

from stepsampler import ModelSpec
from stepsampler.formats import Target
from stepsampler.noise import FlowSchedule
from stepsampler.presets import MODELS

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
