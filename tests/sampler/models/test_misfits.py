"""Networks and text encoders that are not of one model: one sentence, before the first pass."""

import pipelines
import pytest
from families import our_images, short_schedule, take

from stepsampler import UserError


def misfit(name, **changes):
    """A pipeline whose network says of itself, and has, other widths."""
    pipeline = pipelines.FAMILIES[name]()
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    net = getattr(pipeline, part)
    setattr(pipeline, part, type(net).from_config({**net.config, **changes}))
    return pipeline


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stable-diffusion", {"cross_attention_dim": 48}, "48 numbers .cross_att.* gives 32: they"),
        (
            "sdxl",
            {"cross_attention_dim": 32},
            "32 numbers .cross_attention_dim of its c.* gives 80",
        ),
        ("sdxl", {"projection_class_embeddings_input_dim": 99}, "numbers .projection_.* gives 24"),
        ("pixart-sigma", {"caption_channels": 48}, "48 numbers .caption_channels of.* gives 32"),
        ("sd3", {"pooled_projection_dim": 99}, "99 numbers .pooled_projection_dim .* gives 48"),
        ("flux-dev", {"joint_attention_dim": 48}, "48 numbers .joint_attention_dim .* gives 32"),
        ("lumina2", {"cap_feat_dim": 48}, "48 numbers .cap_feat_dim of its config., .* gives 8"),
    ],
)
def test_texts_of_another_width_are_refused_by_name(name, changes, message):
    model = take(name, misfit(name, **changes))
    with pytest.raises(UserError, match=message):
        our_images(model, short_schedule(model), pipelines.PROMPTS)
