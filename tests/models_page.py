"""The table of docs/models.md, made of the installed diffusers and of what this package knows.

python tests/models_page.py     # writes the page's table anew
"""

import inspect
import re
import typing
from pathlib import Path

import diffusers
from stock_pipelines import GUIDABLE

from stepsampler.guided import APART, COND_FIRST, OWN_RULE
from stepsampler.models import families
from stepsampler.scheduler import StepScheduler

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARKS = ("<!-- table: python tests/models_page.py -->\n", "<!-- end of the table -->\n")
# Not from texts or classes to pictures or videos, or not by a network and a scheduler's steps
OTHER = re.compile(
    "Audio|Music|ShapE|Prior|Img2Img|Inpaint|Edit|ImageTo|VideoTo|Image2|Video2|Control|Upscale|"
    "SuperRes|Pix2Pix|Adapter|Depth|Variation|LEdits|Marigold|Refiner|Fill|Redux|Kontext|Combined|"
    "Decoder|Animate|Transfer|VACE|Layered|Condition|InContext|HDR|DFR|Refine|VisualCloze|I2V|I2I|"
    "ConsisID|Amused|LLaDA|Gemma|Proteina|GLIGEN|Panorama|Attend|Flax|Onnx|AutoPipeline|SRPipe|"
    "Semantic|SAG|LDM3D|FAR|Upsample|Sparse|StableUnCLIP|AceStep|LongCatAudio|JoyImage|World|KV|"
    "SkyreelsImage|Framepack|TI2VA|PIA|CLIPImage|StableVideo|WanAnimate|ChronoEdit|LucyEdit|PAG|"
    "Unified|Modular|Text2Img$|LatentUpscale|SanaWM|Omni|Decode"
)
# What no table of the package says: the reason against `StepScheduler`, and that against `guided`
NOT = {
    "AnyFlowPipeline": ("flow maps: the network is told where a step ends",) * 2,
    "ConsistencyModelPipeline": ("consistency models have levels of their own",) * 2,
    "Cosmos2TextToImagePipeline": ("levels of EDM behind a flow scheduler",) * 2,
    "Cosmos2_5_PredictBasePipeline": ("", "changes its predictions before it combines them"),
    "DDIMPipeline": ("swaps any scheduler for its own: load the model as DDPMPipeline",) * 2,
    "DreamLitePipeline": ("", "three predictions a step"),
    "LatentConsistencyModelPipeline": ("", "the network takes the scale as an embedding"),
    "MochiPipeline": ("its scheduler counts levels from 0 to 1 (invert_sigmas)",) * 2,
    "SanaSprintPipeline": ("TrigFlow has levels of its own",) * 2,
    "SkyReelsV2DiffusionForcingPipeline": ("copies its scheduler for every frame",) * 2,
}
# Run by the tests of `guided`; those of the families are run by its other ones
RUN = {name.split(",")[0] for name in GUIDABLE} | families().keys()


def classes():
    """Pipelines from texts or classes to pictures or videos, by name."""
    for name in sorted(dir(diffusers)):
        cls = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        if not inspect.isclass(cls) or OTHER.search(name) or "deprecated" in cls.__module__:
            continue
        if "scheduler" in inspect.signature(cls.__init__).parameters:
            yield name, cls


def scheduler_of(cls):
    """Of the class that the pipeline names first, by default."""
    hint = inspect.signature(cls.__init__).parameters["scheduler"].annotation
    kinds = [k for k in (hint, *typing.get_args(hint)) if inspect.isclass(k)]
    made = [k for k in kinds if issubclass(k, diffusers.SchedulerMixin)]
    return made[0]() if made and made[0] is not diffusers.SchedulerMixin else None


def row(name, cls):
    """Under StepScheduler and under `guided`: how, or a reason against it in brackets."""
    package, parts = cls.__module__.split(".")[2], inspect.signature(cls.__init__).parameters
    stock, guided = NOT.get(name, ("", ""))
    scheduler = None if stock else scheduler_of(cls)
    if scheduler is not None:
        try:
            StepScheduler.from_config(scheduler.config)
        except ValueError as error:
            stock = str(error).split(", got")[0]
    guided = guided or stock or OWN_RULE.get(package, "")
    if any("guider" in part for part in parts):
        guided = "a guider of its own"
    if guided:
        return f"({stock})" if stock else "", f"({guided})"
    if package in APART:
        return "", "two calls"
    return "", "doubled, conditional half first" if package in COND_FIRST else "doubled"


def table():
    lines = ["| pipeline | own loop | `StepScheduler` | `guided` |", "|---|---|---|---|"]
    counts, total = dict.fromkeys(("own", "stock", "guided", "stock run", "guided run"), 0), 0
    for name, cls in classes():
        stock, guided = row(name, cls)
        word = "yes" if name in RUN else "expected"
        stock, guided = (
            reason if reason.startswith("(") else f"{word}{reason and ': '}{reason}"
            for reason in (stock, guided)
        )
        own = "yes" if name in families() else ""
        lines.append(f"| {name} | {own} | {stock} | {guided} |")
        total += 1
        counts["own"] += bool(own)
        for key, value in (("stock", stock), ("guided", guided)):
            counts[key] += value[0] != "("
            counts[f"{key} run"] += value.startswith("yes")
    lines.append(
        f"\nOf {total} pipelines of diffusers {diffusers.__version__} {counts['own']} are sampled "
        f"by our own loop; `StepScheduler` takes {counts['stock']} ({counts['stock run']} run by a "
        f"test), `guided` {counts['guided']} ({counts['guided run']} run by a test)."
    )
    return "\n".join(lines) + "\n"


def replaced(page):
    start, end = (page.index(mark) for mark in MARKS)
    return page[: start + len(MARKS[0])] + table() + page[end:]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
