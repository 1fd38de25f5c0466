"""What is looked at of a pipeline's network before it is taken."""

from typing import Any

from stepsampler.errors import UserError

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
        f"{WIDER.get(channels, 'it wants more than a latent')}; only text-to-image models are "
        "supported"
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
