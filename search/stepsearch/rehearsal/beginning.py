"""`stepsearch init`: a study to begin with, its settings explained."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Beginning:
    """What differs between the studies to begin with."""

    title: str
    id: str
    kind: str
    dtype: str
    size: int
    passes: int
    more: str  # further lines of the box
    batch: int
    scales: str
    teacher: float
    reference: str = "coco/val2014"
    prompts: str = "coco/annotations/captions_val2014.json"
    where: str = "a folder or zip of them; docs/searching.md says where COCO's come from"


MORE = "max_steps = 10                  # of more steps fewer are guided\n"
FLOW = "final_sigma = [0.0005, 0.1]     # below 0.0007 means exactly 0\n"
SD15 = Beginning(
    "Stable Diffusion 1.5 with the passes of 8 guided steps",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion",
    "float16",
    512,
    16,
    MORE + "guidance_scale = [0.5, 9.0]     # below 1 means off: one pass instead of two\n",
    8,
    "[3.0, 5.0, 7.5]",
    5.0,
)
EVERY = {
    "sd15": SD15,
    "sdxl": Beginning(
        "SDXL with the passes of 8 guided steps",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "sdxl",
        "float16",
        1024,
        16,
        SD15.more,
        4,
        SD15.scales,
        5.0,
    ),
    "flux-dev": Beginning(
        "FLUX.1-dev with 8 steps; its guidance is distilled, so that a step costs one pass",
        "black-forest-labs/FLUX.1-dev",
        "flux-dev",
        "bfloat16",
        1024,
        8,
        FLOW + "guidance_scale = [1.0, 6.0]\n",
        2,
        "[2.5, 3.5, 5.0]",
        3.5,
    ),
    "folder-of-images": Beginning(
        "Your images, a folder with a caption in a .txt beside each; on Stable Diffusion 1.5",
        SD15.id,
        SD15.kind,
        SD15.dtype,
        SD15.size,
        SD15.passes,
        SD15.more,
        SD15.batch,
        SD15.scales,
        SD15.teacher,
        "my-images",
        "my-images",
        "a thousand at least, of the kind that you want to make",
    ),
}
TEXT = """\
# {title}.
# stepsearch check THIS-FILE says what is missing and what it costs, stepsearch run THIS-FILE
# searches. Whatever is not here has a default: docs/searching.md, and search/stepsearch/config/.

[model]
id = {id}  # a hub id, a folder, or a .safetensors file
kind = {kind:<25}# for a dry run without the weights
dtype = {dtype}
size = {size:<25}# pixels, or "768x1024", width x height

[space]                         # the box that is searched
num_steps = 8
passes = {passes:<23}# the budget of one image, in calls of the network
{more}
[evaluation]                    # what is measured
reference = {reference}  # real images: {where}
prompts = {prompts}
extractor = "lite0"             # or "dinov2:facebook/dinov2-base"; "inception" with the extra `fid`
alignment = "clip:openai/clip-vit-large-patch14"   # what says whether images show their prompts
batch_size = {batch:<19}# images in a call: as many as fit into the memory
images = 300                    # per trial
selection_images = 600          # for the choice among the best trials, on other seeds
test_images = 2000              # for the numbers at the end, on others again

[baselines]                     # well-known schedules of the same cost, scored first
guidance_scales = {scales}
rungs = [24, 80, 240]           # images of each round; the worse ones end early

[teacher]                       # the same model with many steps: the standard for alignment
steps = 50
guidance_scale = {teacher}
images = 300

[search]
trials = 60
alignment_drop = 0.005          # how much of the teacher's alignment may be lost
polish = 1                      # the best of all, by what each of its numbers does to the metric:
polish_iterations = 2           # up to a quarter of all passes; where it paid: docs/searching.md
# polish_gain = true            # also how much all steps take of the predictions; few tools can
"""


def study_text(name: str) -> str:
    """A valid study file with comments, of one of `EVERY`."""
    known = vars(EVERY[name])
    quoted = {k: json.dumps(known[k]) for k in ("id", "kind", "dtype", "reference", "prompts")}
    return TEXT.format(**known | quoted)
