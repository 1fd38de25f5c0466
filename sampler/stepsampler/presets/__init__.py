"""Published schedules by name: data files of this folder, one for each source.

A file has `source`, `licence`, `note` and `presets`; a preset is a schedule file without `format`,
its `model` one of `MODELS`, and with a `note`, `approximate` and `distilled` of its own where they
are needed: the last says that it was made for a model distilled to few steps.
`by_statistics` is what it has instead under DPM-Solver-v3: `statistics`, and whether a `corrector`.
"""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stepsampler.schedule import (
    BY_STATISTICS,
    FORMAT,
    ModelSpec,
    Schedule,
    StatisticsSpec,
    load,
)
from stepsampler.support.checks import ScheduleError
from stepsampler.support.files import meant

SD_NOISE = (  # Stable Diffusion's betas at the timesteps 0, 250, 500, 749 and 999
    0.029167158,
    0.69579894,
    1.6182788,
    4.0817294,
    14.614641,
)
DIT_NOISE = (
    0.0100005,
    0.95803371,
    3.4429671,
    17.246983,
    157.40728,
)
FLOW = (0.0, 0.25, 0.5, 0.75, 1.0)
MODELS = {
    "sd15": ModelSpec("stable-diffusion", "epsilon", SD_NOISE),
    "sdxl": ModelSpec("sdxl", "epsilon", SD_NOISE),
    "dit": ModelSpec("dit", "epsilon", DIT_NOISE),
    "sd3": ModelSpec("sd3", "flow_prediction", FLOW),
    "flux": ModelSpec("flux", "flow_prediction", FLOW),
    "sit": ModelSpec("sit", "flow_prediction", FLOW),
    "wan": ModelSpec("wan", "flow_prediction", FLOW),
    "z-image": ModelSpec("z-image", "flow_prediction", FLOW),
    "qwen-image": ModelSpec("qwen-image", "flow_prediction", FLOW),
    "chroma": ModelSpec("chroma", "flow_prediction", FLOW),
    "flux2": ModelSpec("flux2", "flow_prediction", FLOW),
    "ltx": ModelSpec("ltx", "flow_prediction", FLOW),
    "ltx2": ModelSpec("ltx2", "flow_prediction", FLOW),
}
OWN = ("model", "note", "approximate", "distilled")  # keys that are none of a schedule file
NOT_SAMPLED = ("sit",)  # of `MODELS`: diffusers has no pipeline of theirs


class Preset(NamedTuple):
    """One published schedule."""

    name: str
    model: str | None  # a key of MODELS; None: no family of this sampler
    source: str
    schedule: Schedule
    distilled: bool = False  # made for a model distilled to few steps

    @property
    def sampled(self) -> bool:
        """Whether models of that kind can be sampled here."""
        return self.model is not None and self.model not in NOT_SAMPLED

    @property
    def approximate(self) -> bool:
        """Whether the schedule file cannot hold all that was published; the note says what."""
        return bool(self.schedule.provenance.get("approximate"))


def preset(name: str, statistics: Sequence[StatisticsSpec] = ()) -> Preset:
    """Take a preset; one that goes by statistics as published, if those are among `statistics`.

    Raises:
        ScheduleError: there is none of this name; names the nearest.
    """
    entries = _entries()
    if name not in entries:
        raise ScheduleError(f"no preset {name!r}; {nearest(name)}")
    head, entry = entries[name]
    entry, lacks = _by_statistics(entry, statistics)
    model = entry["model"]
    provenance: dict[str, Any] = {
        "preset": name,
        "source": head["source"],
        "licence": head["licence"],
    }
    provenance["note"] = " ".join(filter(None, [_sentence(entry.get("note")), head["note"]]))
    if entry.get("approximate"):
        provenance["approximate"] = True
    if lacks:
        provenance["lacks"] = lacks
    rest = {k: v for k, v in entry.items() if k not in OWN}
    spec = {"model": {**vars(MODELS[model]), "noise": list(MODELS[model].noise)}} if model else {}
    data = {"format": FORMAT, **rest, **spec, "provenance": provenance}
    return Preset(
        name,
        model,
        head["source"],
        Schedule.from_json(json.dumps(data)),
        bool(entry.get("distilled")),
    )


def names() -> list[str]:
    """Of all presets, source by source."""
    return list(_entries())


def nearest(name: str) -> str:
    """Half a sentence for one who mistook a name: the presets nearest to it, or where they are."""
    near = get_close_matches(name, _entries(), 3, 0.5)
    return f"the nearest are {', '.join(near)}" if near else "`stepsample presets` lists them"


def _by_statistics(
    entry: dict[str, Any], known: Sequence[StatisticsSpec]
) -> tuple[dict[str, Any], str | None]:
    """The entry under DPM-Solver-v3, if it is published so; or as it is, and what it lacks."""
    entry = dict(entry)
    published = entry.pop("by_statistics", None)
    if published is None:
        return entry, None
    wanted = StatisticsSpec(**published["statistics"])
    found = next((spec for spec in known if spec.is_like(wanted)), None)
    if found is None:
        return entry, f"statistics {wanted}: {entry['solver']} stands in for {BY_STATISTICS}"
    del entry["approximate"]
    *steps, last = entry["steps"]
    steps = [step | {"corrector": published["corrector"]} for step in steps]
    digest = {"digest": found.digest} if found.digest else {}
    named = published["statistics"] | digest
    return entry | {"solver": BY_STATISTICS, "statistics": named, "steps": [*steps, last]}, None


def open_schedule(name: str | Path, statistics: Sequence[StatisticsSpec] = ()) -> Schedule:
    """Read a schedule file, or take the preset of that name, with the statistics that are given.

    A file wins over a preset; a name with a suffix or a folder is always a file.

    Raises:
        ScheduleError: neither is there, or the file cannot be sampled.
    """
    path = Path(name)
    if path.exists() or path.suffix == ".json" or path.parent != Path("."):
        return load(path)
    try:
        return preset(str(name), statistics).schedule
    except ScheduleError as error:
        raise ScheduleError(f"{name}: no such file, and {error}{meant(path, '.json')}") from error


@cache
def _entries() -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """Name -> head of its file, entry."""
    found: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
    for file in sorted(Path(__file__).parent.glob("*.json")):
        head = json.loads(file.read_text(encoding="utf-8"))
        found |= {name: (head, entry) for name, entry in head.pop("presets").items()}
    return found


def _sentence(note: str | None) -> str | None:
    return f"{note}." if note else None
