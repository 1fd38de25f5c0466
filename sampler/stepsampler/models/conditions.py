"""What a network's config says that it wants beside latents, a time and texts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stepsampler.errors import UserError

# Of a U-Net's config: the values that some family here serves, and what others want
_WANTED = {
    "class_embed_type": ((), "a class"),
    "num_class_embeds": ((), "a class"),
    "encoder_hid_dim_type": (("text_proj",), "an image, as with an IP-Adapter"),
    "addition_embed_type": (("text_time",), "more than a text"),
}
# Where configs of networks say how wide the states of texts are, the surest first
_WIDTHS = (
    *("caption_channels", "cap_feat_dim", "text_hidden_dim", "joint_attention_dim"),
    *("encoder_hid_dim", "cross_attention_dim"),
)


def check_widths(net: Any, condition: Mapping[str, Tensor]) -> None:
    """Refuse texts that are not as wide as the network takes them, before it is called.

    Raises:
        UserError: names both widths, and the key of the network's config.
    """
    config, states = net.config, condition.get("encoder_hidden_states")
    pooled = condition.get("text_embeds", condition.get("pooled_projections"))
    total = config.get("projection_class_embeddings_input_dim")  # with six numbers of sizes
    times = config.get("addition_time_embed_dim")
    keys = _WIDTHS[1:] if config.get("use_prompt_embeddings") is False else _WIDTHS
    wanted = [(states, key, config.get(key)) for key in keys if config.get(key)][:1]
    wanted += [(pooled, "pooled_projection_dim", config.get("pooled_projection_dim"))]
    if total and times:
        wanted += [(pooled, "projection_class_embeddings_input_dim", total - 6 * times)]
    for found, key, widths in wanted:
        known = set(widths) if isinstance(widths, list | tuple) else {widths}
        if found is not None and known - {None} and found.shape[-1] not in known:
            raise UserError(
                f"the network takes texts as {widths} numbers ({key} of its config), but the text "
                f"encoder gives {found.shape[-1]}: they are not of one model"
            )


def check_conditions(net: Any) -> None:
    """Refuse a U-Net that must be told more than a prompt.

    Raises:
        UserError: names what it wants, and the key and value of its config.
    """
    for key, (served, wanted) in _WANTED.items():
        value = net.config.get(key)
        if hasattr(net, "up_blocks") and value is not None and value not in served:
            raise UserError(
                f"the U-Net wants {wanted} ({key} of its config is {value!r}), which is not "
                "supported"
            )


def told_scale(net: Any) -> bool:
    """Whether the guidance scale is an input of a network: guidance is distilled.

    As a number in transformers, as an embedding in the U-Nets of latent consistency models.
    """
    return bool(net.config.get("guidance_embeds") or net.config.get("time_cond_proj_dim"))


def embedded_scale(pipeline: Any, net: Any, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The condition with its guidance scales, w, as the embedding of w - 1 that such a U-Net takes.

    Luo et al. 2023 (arXiv 2310.04378), whose scale is 0 without guidance.
    """
    found = dict(condition)
    width = net.config.get("time_cond_proj_dim")
    if width and "guidance" in found:
        made = pipeline.get_guidance_scale_embedding(found.pop("guidance") - 1, width)
        found["timestep_cond"] = made.to(net.dtype)
    return found


# Input channels of U-Nets of Stable Diffusion that want more than a latent
WIDER = {
    5: "a model that wants depth too",
    7: "an upscaler",
    8: "a model that edits images",
    9: "an inpainting model",
}


def wider(channels: int, latent: int) -> str:
    """What is said of a network that wants more than a latent."""
    return (
        f"its network takes {channels} channels where latents have {latent}: "
        f"{WIDER.get(channels, 'it wants more than a latent')}; only models from "
        "texts to pictures or videos are supported"
    )


def checked(net: Any) -> Any:
    """A network of a pipeline, as it is or compiled, offloaded or with adapters.

    Raises:
        UserError: it is wrapped in something that hides its config, where pipelines look too.
    """
    if not hasattr(net, "config"):
        raise UserError(
            f"the pipeline's network is a {type(net).__name__} without a config; hand over the "
            "diffusers network itself"
        )
    return net
