"""stable-diffusion.cpp: arguments of its command line.

`--sigmas` takes them all, where the last step lands included, and sets the number of steps.
Guidance per step is `guidance_schedule` of `--extra-sample-args`: `<scale>x<steps>` joined by +,
from the last steps to the first. Distilled guidance is `--guidance`.

At 97d2990 (August 2026) that list is read one place off: its samplers count steps from one, the
list is indexed from zero, so that each step has the guidance of the next and the last one reads
before the list. One more entry behind the first step's mends it there, and is wrong where that
is mended. Heun's calls have numbers that fit neither. Unguided steps save no passes.
"""

import re
import shlex
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from math import inf, isfinite

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.common import Options, Reading, Sampler, Target, Text
from stepsampler.noise import EDMSchedule, NoiseSchedule, noise_of
from stepsampler.schedule import Schedule

SAMPLERS = {
    "euler": Sampler("ddim", 1, True),
    "heun": Sampler("heun", 2, True),
    "ipndm": Sampler("ipndm", 4, True, lowers_last=False),
    "dpm++2m": Sampler("dpmpp-midpoint", 2, False),  # lambda of a flow: -log sigma, not ours
}

# How many more entries than steps a version takes in a list of guidance.
VERSIONS = {"97d2990": 1, "mended": 0}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}  # else of a flow
LIST = "guidance_schedule="
READ = ("--sigmas", "--sampling-method", "--cfg-scale", "--guidance", "--extra-sample-args")
# Arguments that leave the path of the sampling as it is: weights, words, files, the machine, and
# what has no say beside --sigmas, or for these samplers. All others are named.
VALUED = {
    *(
        "--steps",
        "--scheduler",
        "--schedule",
        "--eta",
        "--flow-shift",
        "--strength",
        "--prediction",
    ),
    *("-m", "--model", "--diffusion-model", "--clip_l", "--clip_g", "--clip_vision", "--t5xxl"),
    *("--llm", "--llm_vision", "--qwen2vl", "--qwen2vl_vision", "--vae", "--taesd", "--tae"),
    *("--embd-dir", "--lora-model-dir", "--lora-apply-mode", "--tensor-type-rules", "--type"),
    *("-p", "--prompt", "-n", "--negative-prompt", "--clip-skip", "-H", "--height", "-W"),
    *("--width", "-b", "--batch-count", "-s", "--seed", "--rng", "--sampler-rng", "-M", "--mode"),
    *("-o", "--output", "--output-begin-idx", "--preview", "--preview-path"),
    *("--preview-interval", "-t", "--threads", "--vae-tile-size", "--vae-relative-tile-size"),
    *("--vae-tile-overlap", "--upscale-model", "--upscale-repeats", "--upscale-tile-size"),
    *("--chroma-t5-mask-pad", "--backend", "--params-backend"),
}
SWITCHES = {
    *("-v", "--verbose", "--color", "--mmap", "--offload-to-cpu", "--clip-on-cpu", "--vae-on-cpu"),
    *("--control-net-cpu", "--vae-tiling", "--fa", "--diffusion-fa", "--diffusion-conv-direct"),
    *("--vae-conv-direct", "--force-sdxl-vae-conv-scale", "--preview-noisy"),
    *("--taesd-preview-only", "--chroma-disable-dit-mask", "--chroma-enable-t5-mask"),
    *("--circular", "--circularx", "--circulary", "--disable-image-metadata"),
}


def export(schedule: Schedule, options: Options) -> Text:
    sampler, lost = common.for_a_list(SAMPLERS, schedule)
    noise = noise_of(schedule)
    if isinstance(noise, EDMSchedule):
        lost.append("EDM's preconditioning")
    elif isinstance(noise, NoiseSchedule) and noise.ends_in_noise:
        lost.append("zero terminal SNR (no documented option says it)")
    notes: list[str] = []
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
            spec, why = _list(schedule, options.version)
            if why:
                lost.append(f"guidance per step ({highest} instead): {why}")
            else:
                words += ["--extra-sample-args", f"guidance_schedule={spec}"]
                notes += [f"its list of guidance is for the version {options.version}"]
            if any(step.guidance_scale == 1 for step in schedule.steps):
                notes += ["unguided steps save no passes there"]
    return Text(shlex.join(words) + "\n", tuple(lost), tuple(notes))


def _list(schedule: Schedule, version: str | None) -> tuple[str, str | None]:
    """The list of guidance for a version, or why there is none."""
    if version is not None and version not in VERSIONS:
        raise UserError(f"--for-version must be one of {', '.join(VERSIONS)}, got {version!r}")
    if common.per_step_guidance_of_heun(schedule):
        return "", "the calls of a Heun step get that of other steps"
    if version is None:
        return "", (
            "versions such as 97d2990 (August 2026) shift it by one step; "
            "--for-version 97d2990 or mended says which it is for"
        )
    scales = [step.guidance_scale for step in schedule.steps]
    scales = [*[scales[0]] * VERSIONS[version], *scales]
    runs = [(w, len(list(same))) for w, same in groupby(scales)]
    return "+".join(f"{common.plain(w)}x{count}" for w, count in reversed(runs)), None


def read(text: str, target: Target) -> Reading:
    """A command line, or some of its arguments: `--sigmas` must be there."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(
            "expected arguments of stable-diffusion.cpp, but a quote in it is not closed"
        ) from error
    given, others = _arguments(words)
    if "--sigmas" not in given:
        raise UserError("expected arguments of stable-diffusion.cpp with --sigmas")
    sigmas = common.numbers_from(given["--sigmas"])
    name = given.get("--sampling-method")
    if name is not None and name not in SAMPLERS:
        raise UserError(f"--sampling-method must be one of {', '.join(SAMPLERS)}, got {name!r}")
    distilled = "--guidance" in given
    scale = _number(given, "--guidance" if distilled else "--cfg-scale", target.guidance_scale)
    extra = given.get("--extra-sample-args", "")
    scales = _schedule(extra, len(sigmas) - 1, scale)
    if distilled:
        target = target._replace(guidance="distilled")
    made = common.build(sigmas, scales, SAMPLERS[name] if name else None, target)
    lost = list(others)
    predicted = PREDICTIONS.get(given.get("--prediction", ""), "flow_prediction")
    if "--prediction" in given and target.model and target.model.prediction_type != predicted:
        lost.append(f"--prediction {given['--prediction']} of another model")
    if distilled and "--cfg-scale" in given and _number(given, "--cfg-scale", 1.0) != 1:
        lost.append(f"--cfg-scale {given['--cfg-scale']} beside --guidance")
    parts = [part.strip() for part in re.split("[,;]", extra)]
    lost += [
        f"{part} of --extra-sample-args" for part in parts if part and not part.startswith(LIST)
    ]
    if common.per_step_guidance_of_heun(made):
        lost.append("guidance per step of heun, whose calls get that of other steps")
    notes = []
    if given.get("--steps", str(made.num_steps)) != str(made.num_steps):
        notes.append(f"--steps {given['--steps']}: --sigmas has {made.num_steps}, which hold")
    return Reading(made, tuple(lost), tuple(notes))


def _arguments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Those with values, and, as written, those that bend the sampling.

    Raises:
        UserError: a name and its value are one word, which the program does not know.
    """
    given: dict[str, str] = {}
    others = []
    queue = deque(words)
    while queue:
        word = queue.popleft()
        if not re.match("--?[A-Za-z]", word) or word in SWITCHES:
            continue  # the program's name, what ends a line in a shell, or a switch
        name, joined, _ = word.partition("=")
        if joined:
            raise UserError(f"{name} and its value are two words there, got {word[:80]!r}")
        valued = word in VALUED or word in READ
        value = ""
        if queue and (valued or not queue[0].startswith("-")):
            value = queue.popleft()
        if valued:
            given[word] = value
        else:
            others.append(f"{word} {value}".rstrip())
    return given, others


def _number(given: dict[str, str], name: str, default: float) -> float:
    try:
        number = float(given.get(name, default))
    except ValueError:
        number = inf
    if not isfinite(number):
        raise UserError(f"{name} must be a number, got {given[name]!r}")
    return number


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
