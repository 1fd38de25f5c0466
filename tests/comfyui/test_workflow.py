"""Whole workflows, as a page or a script posts them to ComfyUI's server."""

import pytest
import server
from cases import ALL, PROMPTS, SHAPE, TINY, ours
from loaded import FOLDER

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
