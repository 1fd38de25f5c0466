"""The kinds of jobs: what each does with an evaluator, and how its result travels."""

import json
import zlib
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from stepsampler.errors import counted
from stepsampler.schedule import Schedule
from stepsearch.metrics.evaluator import Evaluator, Measurement
from stepsearch.polish.looking import Here, Seen
from stepsearch.rivals.placement import Placement, recall_or_place

T = TypeVar("T")
RULER = "ruler "  # before the names of the tensors of rulers
WHY = "why"  # of what was not measured, the tensor of a text


@dataclass(frozen=True)
class Job(ABC, Generic[T]):
    """Something that any worker of a study can do, and how its result travels."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def said(self) -> str:
        """What it is, for a sentence."""

    @property
    def passes(self) -> int:
        """Network passes, as a measure of how long it takes; 0 where nobody knows."""
        return 0

    @abstractmethod
    def do(self, evaluator: Evaluator) -> T: ...

    @abstractmethod
    def pack(self, made: T) -> bytes: ...

    @abstractmethod
    def unpack(self, content: bytes) -> T: ...


@dataclass(frozen=True)
class _Making(Job[T]):
    schedule: str  # its JSON
    start: int  # seeds
    stop: int

    @classmethod
    def of(cls, schedule: Schedule, seeds: range) -> Self:
        return cls(schedule.to_json(), seeds.start, seeds.stop)

    @property
    def said(self) -> str:
        passes = Schedule.from_json(self.schedule).passes
        return f"{counted(self.stop - self.start, 'image')} of {counted(passes, 'pass')}"

    @property
    def passes(self) -> int:
        return Schedule.from_json(self.schedule).passes * (self.stop - self.start)


@dataclass(frozen=True)
class Measuring(_Making[Measurement]):
    """Measure a schedule on seeds."""

    kind = "measure"

    def do(self, evaluator: Evaluator) -> Measurement:
        return evaluator.measure(Schedule.from_json(self.schedule), range(self.start, self.stop))

    def pack(self, made: Measurement) -> bytes:
        seen = {RULER + name: rows for name, rows in made.rulers.items()}
        tensors = {"features": made.features, "aligned": made.aligned, **seen}
        return bytes(save({name: np.ascontiguousarray(rows) for name, rows in tensors.items()}))

    def unpack(self, content: bytes) -> Measurement:
        """Without its sheet, which stays where it was made."""
        found = load(content)
        rulers = {k.removeprefix(RULER): rows for k, rows in found.items() if k.startswith(RULER)}
        return Measurement(found["features"], found["aligned"], None, rulers)


@dataclass(frozen=True)
class Picturing(_Making[NDArray[np.uint8]]):
    """Make the images of a schedule on seeds, (n, 3, height, width)."""

    kind = "images"

    def do(self, evaluator: Evaluator) -> NDArray[np.uint8]:
        made = evaluator.images(Schedule.from_json(self.schedule), range(self.start, self.stop))
        return made.numpy()

    def pack(self, made: NDArray[np.uint8]) -> bytes:
        return bytes(save({"images": made}))

    def unpack(self, content: bytes) -> NDArray[np.uint8]:
        return np.asarray(load(content)["images"], np.uint8)


@dataclass(frozen=True)
class Placing(Job[Placement]):
    """Compute where a rival puts the steps."""

    kind = "place"
    name: str
    num_steps: int
    guidance_scale: float

    @property
    def said(self) -> str:
        return f"{self.name} at {counted(self.num_steps, 'step')}"

    def do(self, evaluator: Evaluator) -> Placement:
        return recall_or_place(evaluator, self.name, self.num_steps, self.guidance_scale)

    def pack(self, made: Placement) -> bytes:
        return json.dumps(asdict(made)).encode()

    def unpack(self, content: bytes) -> Placement:
        return Placement(**json.loads(content))


@dataclass(frozen=True)
class Looking(Job[list[Seen | str]]):
    """Measure schedules that nearly are one another on the same seeds, for a polish."""

    kind = "look"
    plans: str  # alternatives of each, packed: of many numbers MySQL's columns hold no plain text
    start: int  # seeds
    stop: int

    @classmethod
    def of(cls, plans: Sequence[Sequence[Schedule]], seeds: range) -> Self:
        text = json.dumps([[s.to_json() for s in sides] for sides in plans])
        packed = b64encode(zlib.compress(text.encode(), 9)).decode()
        return cls(packed, seeds.start, seeds.stop)

    @cached_property
    def _plans(self) -> list[list[Schedule]]:
        plans = json.loads(zlib.decompress(b64decode(self.plans)))
        return [[Schedule.from_json(side) for side in sides] for sides in plans]

    @property
    def said(self) -> str:
        images = counted(self.stop - self.start, "image")
        return f"{images} of each of {counted(len(self._plans), 'schedule')} of a polish"

    @property
    def passes(self) -> int:
        each = [sides[0].passes for sides in self._plans if sides]
        return sum(each) * (self.stop - self.start)

    def do(self, evaluator: Evaluator) -> list[Seen | str]:
        return Here(evaluator)(self._plans, range(self.start, self.stop))

    def pack(self, made: list[Seen | str]) -> bytes:
        """By the plan's place: the side and what a polish asks of it, or why there is nothing."""
        tensors: dict[str, NDArray[Any]] = {}
        for k, seen in enumerate(made):
            if isinstance(seen, str):
                tensors[f"{k} {WHY}"] = np.frombuffer(seen.encode(), np.uint8)
                continue
            tensors[f"{k} side"] = np.array(seen.side)
            tensors[f"{k} features"] = np.ascontiguousarray(seen.measurement.features)
            tensors[f"{k} aligned"] = np.ascontiguousarray(seen.measurement.aligned)
            if seen.measurement.certain is not None:
                tensors[f"{k} certain"] = np.ascontiguousarray(seen.measurement.certain)
        return bytes(save(tensors))

    def unpack(self, content: bytes) -> list[Seen | str]:
        tensors, made = load(content), list[Seen | str]()
        for k in range(len(self._plans)):
            if f"{k} {WHY}" in tensors:
                made.append(tensors[f"{k} {WHY}"].tobytes().decode())
                continue
            features, aligned = tensors[f"{k} features"], tensors[f"{k} aligned"]
            found = Measurement(features, aligned, certain=tensors.get(f"{k} certain"))
            made.append(Seen(int(tensors[f"{k} side"]), found))
        return made


KINDS: dict[str, Callable[..., Job[Any]]] = {
    kind.kind: kind for kind in (Measuring, Picturing, Placing, Looking)
}
