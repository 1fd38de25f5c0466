"""A study that passes through every stage with a few images, as the text of its file."""

import json

SECTIONS = {
    "space": {"num_steps": 3, "passes": 6},
    "evaluation": {
        "images": 8,
        "selection_images": 8,
        "test_images": 8,
        "batch_size": 8,
        "rulers": [],
    },
    "baselines": {"rungs": [8], "guidance_scales": [2.0], "orders": [2], "presets": [], "test": 1},
    "teacher": {"images": 8},
}


def small_study(**changed):
    """That study, with keys of sections changed."""
    lines = []
    for section in SECTIONS | changed:
        keys = SECTIONS.get(section, {}) | changed.get(section, {})
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"
