"""What ComfyUI's server does with a posted workflow: it validates it and executes it."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import comfy_extras
import engine
import execution
import folder_paths
import nodes
import torch
from cases import TINY, comfy_model, condition

CORE = ("nodes_custom_sampler.py", "nodes_flux.py", "nodes_model_advanced.py", "nodes_sd3.py")
CHECKPOINT = "tiny.safetensors"


class Loader:
    """CheckpointLoaderSimple with the bundled pipeline, whose layers are none of ComfyUI's."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"ckpt_name": ([CHECKPOINT],)}}

    def load(self, ckpt_name):
        return comfy_model(), Clip(), Vae()


class Clip:
    def tokenize(self, text, **_):
        return text

    def encode_from_tokens_scheduled(self, tokens, **_):
        return engine.conditioning(condition(tokens, tokens == "")["encoder_hidden_states"])


class Vae:
    def decode(self, latents):
        scaled = latents * engine.comfy.latent_formats.SD15().scale_factor
        return TINY.decode(scaled).permute(0, 2, 3, 1).float() / 255


def set_up(custom_node=None):
    """Register the nodes that a workflow of ours may use, and the folder of one of ours."""
    folder = Path(comfy_extras.__path__[0])
    for name in CORE:
        assert asyncio.run(nodes.load_custom_node(str(folder / name), module_parent="comfy_extras"))
    nodes.NODE_CLASS_MAPPINGS["CheckpointLoaderSimple"] = Loader
    if custom_node is not None:
        place = Path(folder_paths.get_folder_paths("custom_nodes")[0]) / custom_node.name
        if not place.exists():
            shutil.copytree(custom_node, place, ignore=shutil.ignore_patterns("__pycache__"))
        assert asyncio.run(nodes.load_custom_node(str(place)))


def post(workflow):
    """Its errors by node, or the images that SaveImage wrote, uint8 of shape (n, 3, h, w).

    Raises:
        AssertionError: a node raised; with its message.
    """
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("1", workflow, None))
    if not valid:
        return error | {"node_errors": node_errors}
    messages = []
    listener = SimpleNamespace(
        client_id="test",
        last_node_id=None,
        last_prompt_id=None,
        sockets_metadata={},
        send_sync=lambda event, data, sid=None: messages.append((event, data)),
    )
    cache = {"ram": 0, "ram_inactive": 0, "lru": 0}
    executor = execution.PromptExecutor(listener, execution.CacheType.CLASSIC, cache)
    executor.execute(workflow, "1", {"client_id": "test"}, outputs)
    failed = [data for event, data in messages if event == "execution_error"]
    assert not failed, failed[0]["exception_message"]
    found = [
        image for out in executor.history_result["outputs"].values() for image in out["images"]
    ]
    return torch.cat([_read(image) for image in found])


def _read(image):
    import numpy as np
    from PIL import Image

    path = Path(folder_paths.get_output_directory()) / image["subfolder"] / image["filename"]
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).permute(2, 0, 1)[None]
