"""How diffusers' pipelines call a guidance scale: the option, and what it is less than our w."""

from collections.abc import Collection
from typing import NamedTuple


class Called(NamedTuple):
    """`name` of a pipeline is w - `less`."""

    name: str
    less: float = 0.0


# cond + g (cond - uncond) has g = w - 1; Qwen-Image's guidance_scale is that of a distilled model
CALLED = {
    "z-image": Called("guidance_scale", 1.0),
    "krea2": Called("guidance_scale", 1.0),
    "qwen-image": Called("true_cfg_scale"),
}
PLAIN = Called("guidance_scale")
# What a call must be told for guidance by w alone, where its defaults are more. None: the value
# for pictures.
ALONE: dict[str, dict[str, float | None]] = {
    "ltx2": {
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_scale": None,
        "audio_stg_scale": None,
        "audio_modality_scale": None,
        "audio_guidance_rescale": None,
    },
}

IN_A_GUIDER = ("hunyuan-image",)  # a component, while calls take no scale


def called(family: str | None, guidance: str) -> Called:
    """Of a model's family (None: any) and its kind of guidance, "distilled" or not."""
    if family in IN_A_GUIDER and guidance == "distilled":
        return Called("distilled_guidance_scale")
    if family == "flux":  # of dev the distilled scale, of schnell that of two passes
        return PLAIN if guidance == "distilled" else Called("true_cfg_scale")
    return CALLED.get(family or "", PLAIN)


def from_zero(packages: Collection[str]) -> bool:
    """Whether a scale of 0, not 1, is none in pipelines of these packages of diffusers.

    A package is named as the family, with underscores.
    """
    return any(call.less and name.replace("-", "_") in packages for name, call in CALLED.items())


def sentence(family: str | None, guidance: str, w: float) -> str | None:
    """What a user must know to give our `w` to a pipeline; None where the number is the same."""
    name, less = called(family, guidance)
    if family in ALONE:
        numbers = {k: v if v is None else f"{v:g}" for k, v in ALONE[family].items()}
        without = ", ".join(f"{key}={value}" for key, value in numbers.items())
        return f"diffusers' pipeline guides by more than w, unless it is called with {without}"
    if less:
        return f"diffusers' pipeline calls it {name} = w - {less:g}: {w - less:g} for {w:g} here"
    if family in IN_A_GUIDER and name == PLAIN.name:
        return f"diffusers' pipeline has it in pipe.guider: pipe.guider.new({name}={w:g})"
    if name == PLAIN.name:
        return None
    beside = ", and guides only beside a negative prompt" if name == "true_cfg_scale" else ""
    return f"diffusers' pipeline calls it {name}{beside}"
