"""The tiny pipelines of `stepsearch.miniatures`, and how the stock pipelines make their images."""

from stepsearch.miniatures import *  # noqa: F403

PROMPTS = ["a photo of a sneaker", "a shirt", "bag"]
SIZE = 32  # pixels of the latent families' images here; the pixel U-Nets make 16
# What some stock pipelines must be told to make images of that size
_SQUARE = {"height": SIZE, "width": SIZE}
_NO_BINS = {**_SQUARE, "use_resolution_binning": False}
CALL = {
    "pixart-alpha": _NO_BINS,
    "pixart-sigma": _NO_BINS,
    "flux-dev": _SQUARE,
    "flux-schnell": _SQUARE,
    "sana": _NO_BINS,
}
