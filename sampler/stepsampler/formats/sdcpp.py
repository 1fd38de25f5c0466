"""stable-diffusion.cpp: arguments of its command line.

`--sigmas` takes them all, where the last step lands included, and sets the number of steps.
Guidance per step is `guidance_schedule` of `--extra-sample-args`: `<scale>x<steps>` joined by +,
from the last steps to the first. Distilled guidance is `--guidance`.
"""

import re
import shlex
from itertools import groupby

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.common import Sampler, Target, Text
from stepsampler.schedule import Schedule

SAMPLERS = {
    "euler": Sampler("ddim", 1, True),
    "heun": Sampler("heun", 2, True),
    "ipndm": Sampler("ipndm", 4, True, lowers_last=False),
    "dpm++2m": Sampler("dpmpp-midpoint", 2, False),  # lambda of a flow: -log sigma, not ours
}


def export(schedule: Schedule, _detail: str | None, _shift: float) -> Text:
    sampler, lost = common.for_a_list(SAMPLERS, schedule)
    sigmas = common.sigma_list(schedule).replace(" ", "")
    words = ["--sampling-method", sampler, "--steps", str(schedule.num_steps), "--sigmas", sigmas]
    highest = common.plain(common.highest_guidance(schedule))
    if schedule.guidance == "distilled":
        words += ["--cfg-scale", "1.0", "--guidance", highest]
        if not common.one_guidance(schedule):
            lost.append(f"distilled guidance per step ({highest} instead)")
    else:
        words += ["--cfg-scale", highest]
        if not common.one_guidance(schedule):
            runs = [(w, len(list(g))) for w, g in groupby(s.guidance_scale for s in schedule.steps)]
            spec = "+".join(f"{common.plain(w)}x{count}" for w, count in reversed(runs))
            words += ["--extra-sample-args", f"guidance_schedule={spec}"]
    return Text(shlex.join(words) + "\n", tuple(lost))


def read(text: str, target: Target) -> Schedule:
    """A command line, or some of its arguments: `--sigmas` must be there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"expected arguments of stable-diffusion.cpp, {error}") from error
    given = dict(zip(words, [*words[1:], ""], strict=True))
    if "--sigmas" not in given:
        raise UserError("expected arguments of stable-diffusion.cpp with --sigmas")
    sigmas = common.sigmas_from(given["--sigmas"])
    name = given.get("--sampling-method")
    if name is not None and name not in SAMPLERS:
        raise UserError(f"--sampling-method must be one of {', '.join(SAMPLERS)}, got {name!r}")
    distilled = "--guidance" in given
    scale = _number(given, "--guidance" if distilled else "--cfg-scale", target.guidance_scale)
    scales = _schedule(given.get("--extra-sample-args", ""), len(sigmas) - 1, scale)
    if distilled:
        target = target._replace(guidance="distilled")
    return common.build(sigmas, scales, SAMPLERS[name] if name else None, target)


def _number(given: dict[str, str], name: str, default: float) -> float:
    try:
        return float(given.get(name, default))
    except ValueError as error:
        raise UserError(f"{name} must be a number, got {given[name]!r}") from error


def _schedule(arguments: str, n: int, scale: float) -> list[float]:
    """The scale of each step; steps before those of the schedule have `scale`."""
    match = re.search(r"(?:^|[,;])\s*guidance_schedule=([^,;]*)", arguments)
    if not match:
        return [scale] * n
    backwards: list[float] = []
    for part in match[1].split("+"):
        found = re.fullmatch(r"(\d*\.?\d+)x(\d{1,6})", part.strip())
        if not found:
            raise UserError(f"guidance_schedule: expected <scale>x<steps>, got {part!r}")
        backwards += [float(found[1])] * int(found[2])
    backwards += [scale] * (n - len(backwards))
    return backwards[:n][::-1]
