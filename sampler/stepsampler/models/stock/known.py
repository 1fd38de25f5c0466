"""What is known of diffusers' pipelines beside the families of our own loop.

How they guide, and what keeps one from running a schedule.
"""

import inspect
import re
from typing import Any

from stepsampler.models.conditions import checked

# Packages of diffusers.pipelines that call the network apart for each half, the conditional one
# first, or for one half only. Everywhere else a batch of two equal halves is a doubled one.
# fmt: off
APART = frozenset({
    "bria_fibo2", "chroma", "chronoedit", "cogview4", "flux", "flux2",
    "glm_image", "helios", "hunyuan_video", "joyimage", "kandinsky5", "krea2",
    "longcat_image", "lucy", "lumina2", "nucleusmoe_image", "ovis_image", "qwenimage",
    "qwenimage21", "skyreels_v2", "wan",
})
# fmt: on
# Packages that double the batch with the conditional half first. Everywhere else it is the second.
COND_FIRST = frozenset({"dit", "omnigen", "z_image"})
# Packages that hand the doubled batch, and not one of its halves, to their scheduler.
WHOLE = frozenset({"dit"})
# Packages that give a network of distilled guidance a thousand times the scale.
THOUSANDS = frozenset({"hunyuan_image", "hunyuan_video"})
# Packages whose guidance is more than a combination of two predictions.
OWN_RULE = {
    "ace_step": "guides by a momentum of earlier steps",
    "anyflow": "tells its network where a step ends",
    "ideogram4": "has a network of its own for the unconditional half",
    "kandinsky6": "guides pictures and sound",
    "ltx2": "guides pictures and sound, each by up to three terms",
    "lumina": "guides three of its channels",
    "pag": "guides by perturbed attention too",
}
# The same of single classes.
OWN_RULES = {
    "Cosmos2_5_PredictBasePipeline": "changes its predictions before it combines them",
    "DreamLitePipeline": "combines three predictions a step",
}
PRIOR = "its network is told an image embedding, which another diffusion model makes of a text"
# Classes that cannot run a schedule, and why not.
NOT = {
    "AnyFlowPipeline": "it is a flow map, whose network is told where a step ends",
    "ConsistencyModelPipeline": "consistency models have levels of their own",
    "Cosmos2TextToImagePipeline": "it has levels of EDM behind a flow scheduler",
    "CosmosTextToWorldPipeline": "it hands its scheduler x0, which it computes itself",
    "DDIMPipeline": "it swaps any scheduler for its own: load the model as DDPMPipeline",
    "HeliosPipeline": "it samples at several resolutions, with levels of their own",
    "HeliosPyramidPipeline": "it samples at several resolutions, with levels of their own",
    "LatentConsistencyModelPipeline": "it wants x0 of its scheduler too"
    ", which a StableDiffusionPipeline does not",
    "KandinskyPipeline": PRIOR,
    "KandinskyV22Pipeline": PRIOR,
    "SanaSprintPipeline": "each of its steps begins with fresh noise"
    ", which a schedule of a flow does not have",
    "SkyReelsV2DiffusionForcingPipeline": "it copies its scheduler for every frame",
}
# Those of them whose call of a scheduler's step StepScheduler has no answer to.
UNSTEPPED = frozenset({"LatentConsistencyModelPipeline"})
# Names of pipelines that start from more than a text, or are not of pictures.
OTHER = re.compile(
    "Audio|Music|ShapE|Prior|Img2Img|Inpaint|Edit|ImageTo|VideoTo|Image2(?!1)|Video2|Control|Upscale|"
    "SuperRes|Pix2Pix|Adapter|Depth|Variation|LEdits|Marigold|Refiner|Fill|Redux|Kontext|Combined|"
    "Decoder|Transfer|VACE|Vace|Layered|Condition|InContext|HDR|DFR|Refine|VisualCloze|I2V|I2I|"
    "ConsisID|Amused|LLaDA|Gemma|Proteina|GLIGEN|Panorama|Attend|Flax|Onnx|AutoPipeline|SRPipe|"
    "Semantic|SAG|LDM3D|FAR|Upsample|Sparse|StableUnCLIP|AceStep|LongCatAudio|JoyImage|KV|"
    "SkyreelsImage|Framepack|TI2VA|PIA|CLIPImage|StableVideo|WanAnimate|ChronoEdit|LucyEdit|PAG|"
    "Unified|Modular|Text2Img$|LatentUpscale|SanaWM|Omni(?!Gen)|Decode"
)


def why_not(cls: Any) -> str | None:
    """What keeps pipelines of a class of diffusers from running a schedule; None if nothing."""
    name, call = cls.__name__, inspect.signature(cls.__call__).parameters
    if name in NOT:
        return NOT[name]
    if OTHER.search(name):
        return "it is no pipeline from texts to pictures or videos"
    schedulers = [p for p in inspect.signature(cls.__init__).parameters if "scheduler" in p]
    if len(schedulers) != 1:
        return f"it has {len(schedulers) or 'no'} scheduler{'s' if schedulers else ''}"
    for needed in ("prompt", "generator", "num_inference_steps"):
        if needed not in call:
            return f"its call takes no {needed}"
    more = [
        p.name
        for p in call.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        if p.name not in ("self", "prompt")
    ]
    return f"it needs {' and '.join(more)} beside a prompt" if more else None


def plain_names(cls: Any) -> list[str]:
    """The class itself, or the plain ones that a modular one stands for, the nearest first."""
    name: str = cls.__name__
    if "Modular" not in name:
        return [name]
    bases = [each.__name__ for each in cls.__mro__ if each.__name__.endswith("ModularPipeline")]
    return [base.replace("Modular", "") for base in bases]


def networks(pipeline: Any) -> dict[str, Any]:
    """The networks that a step may call, by the names of the pipeline's components."""
    return {
        name: checked(part)
        for name, part in pipeline.components.items()
        if part is not None and ("unet" in name or "transformer" in name)
    }


def packages(cls: Any) -> set[str]:
    """Where a pipeline's class and those that it is made of live in diffusers."""
    names = [each.__module__.split(".") for each in cls.__mro__]
    homes = (["diffusers", "pipelines"], ["diffusers", "modular_pipelines"])
    return {n[2] for n in names if n[:2] in homes and len(n) > 3}


def own_rule(cls: Any) -> str | None:
    """What pipelines of a class do for guidance that is no combination of two predictions."""
    rules = [OWN_RULE[package] for package in sorted(packages(cls) & OWN_RULE.keys())]
    return OWN_RULES.get(cls.__name__) or next(iter(rules), None)


def read_inputs(pipeline: Any) -> dict[str, Any]:
    """What a call of a pipeline takes, by name, and the defaults; of a modular one its blocks."""
    if not hasattr(pipeline, "blocks"):
        call = inspect.signature(type(pipeline).__call__).parameters
        return {p.name: p.default for p in call.values()}
    defaults: dict[str, Any] = pipeline.default_call_parameters
    return dict.fromkeys(pipeline.blocks.input_names) | defaults


def hush(pipeline: Any) -> None:
    """No progress bars, also of blocks within blocks, which diffusers' own call leaves on."""
    pipeline.set_progress_bar_config(disable=True)
    blocks = [pipeline._blocks] if hasattr(pipeline, "_blocks") else []  # `blocks` are a copy
    for block in blocks:
        blocks += block.sub_blocks.values()
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
