"""The schedule as a file, and in the words of each tool."""

import json
from dataclasses import replace

from stepsampler.errors import UserError
from stepsampler.formats import export
from stepsampler.formats.stock import DPM, EULER, FLOW
from stepsampler.schedule import Schedule
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.sources import Source

FILE = "best.json"
TOOLS = {
    "comfyui": "ComfyUI: inputs of its nodes",
    "comfyui-workflow": "ComfyUI: a whole workflow",
    "sd.cpp": "stable-diffusion.cpp",
    "diffusers:StepScheduler": "diffusers: scheduler_config.json of StepScheduler",
    f"diffusers:{DPM}": f"diffusers: {DPM}",
    f"diffusers:{EULER}": f"diffusers: {EULER}",
    f"diffusers:{FLOW}": f"diffusers: {FLOW}",
}
GUIDED = """\
import stepsampler
from stepsampler.guided import guided

schedule = stepsampler.load({file})
with guided(pipe, schedule):  # any stock pipeline that docs/pipelines.md lists
    images = pipe(prompt, num_inference_steps=schedule.num_steps).images
"""
SCHEDULER = """\
import stepsampler
from stepsampler.scheduler import StepScheduler

schedule = stepsampler.load({file})
pipe.scheduler = StepScheduler.from_config(pipe.scheduler.config, schedule=schedule)
images = pipe(prompt, num_inference_steps=schedule.num_steps, guidance_scale={scale:g}).images
"""


def data(source: Source) -> Data:
    """`texts`: what each tool takes, with what it cannot hold."""
    plan = source.schedule
    if plan is None:
        if source.front:
            raise NotYet(
                "There are several: stepsearch front … -o FOLDER writes a file each, and the page "
                "of each run has the texts for other tools."
            )
        raise NotYet(
            "There is no schedule yet."
            if not source.evaluation
            else "The first contender is no schedule that could be given to a tool."
        )
    scales = [step.guidance_scale for step in plan.steps]
    file = json.dumps(FILE)
    texts = [
        {"tool": "The schedule file", "file": FILE, "text": plan.to_json()},
        {
            "tool": "stepsample: all of it, exactly",
            "text": f'stepsample {FILE} --prompt "a photo of a fox" --seeds 0-15 -o out/\n',
        },
        {
            "tool": "diffusers: a stock pipeline with the guidance of each step",
            "text": GUIDED.format(file=file),
        },
        {
            "tool": "diffusers: levels and solver alone",
            "text": SCHEDULER.format(file=file, scale=sum(scales) / len(scales)),
            "lost": ["guidance per step"] if len(set(scales)) > 1 else [],
        },
    ]
    bare = replace(plan, provenance={})
    return {"texts": texts + [_exported(bare, to, title) for to, title in TOOLS.items()]}


def _exported(plan: Schedule, to: str, title: str) -> Data:
    """By `formats`; or why it cannot be."""
    try:
        made = export(plan, to, lossy=True)
    except UserError as error:
        return {"tool": title, "format": to, "refused": str(error)}
    found: Data = {"tool": title, "format": to, "text": made.text}
    found["lost"], found["notes"] = list(made.lost), list(made.notes)
    return found


CARD = Card("Use it", "the schedule", data)
