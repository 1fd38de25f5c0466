"""What a network's config says that it wants beside latents, a time and texts."""

from typing import Any

from stepsampler.errors import UserError

# Of a U-Net's config: the values that some family here serves, and what others want
_WANTED = {
    "class_embed_type": ((), "a class"),
    "num_class_embeds": ((), "a class"),
    "encoder_hid_dim_type": (("text_proj",), "an image, as with an IP-Adapter"),
    "addition_embed_type": (("text_time",), "more than a text"),
}


def check_conditions(net: Any) -> None:
    """Refuse a U-Net that must be told more than a prompt.

    Raises:
        UserError: names what it wants, and the key and value of its config.
    """
    if net.config.get("time_cond_proj_dim"):
        raise UserError(
            "the U-Net takes the guidance scale as an embedding (a latent consistency model), "
            "which is not supported"
        )
    for key, (served, wanted) in _WANTED.items():
        value = net.config.get(key)
        if hasattr(net, "up_blocks") and value is not None and value not in served:
            raise UserError(
                f"the U-Net wants {wanted} ({key} of its config is {value!r}), which is not "
                "supported"
            )
