"""Training of the predictor: each step of the student is to be where the teacher is."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import seeded_noise
from stepsampler.models import LatentModel, Model
from stepsampler.sample import Denoiser, execute, trajectory
from stepsampler.schedule import Schedule, Step
from stepsearch.metrics.evaluator import SEARCH, model_digest
from stepsearch.paths import recall, write_whole
from stepsearch.rivals.amed.predictor import Predictor, Setting, Told
from stepsearch.rivals.amed.student import Middle, Student, denoiser
from stepsearch.rivals.live import check_gradients

RATE = 5e-3  # of Adam, as the authors'
AVERAGED = 64  # trajectories of the static form
SAVED = 10  # batches between two saves of the state
Report = Callable[[int, float], object]  # (trajectories done, mean squared distance)


@dataclass
class Training:
    """A predictor and what its training needs to go on.

    The student's steps are learned one after the other, from states and predictions of the student
    as it was, with the gradient of the squared distance of that step alone: as the authors do.
    """

    predictor: Predictor
    model: LatentModel
    prompts: Sequence[str]
    negative_prompt: str = ""
    additions: Sequence[str] = ()  # of the model, as of `additions_digest`
    passes: int = 0
    done: int = 0  # trajectories
    losses: list[float] = field(default_factory=list)  # mean squared distance of each batch

    def __post_init__(self) -> None:
        self.setting = self.predictor.setting
        self.student = Student(self.setting, self.model.noise)
        self.adam = torch.optim.Adam(self.predictor.parameters(), RATE)
        self.teacher = self.student.teacher(self.model.spec, self.model.guidance)

    def run(self, trajectories: int, batch_size: int, state: Path, report: Report) -> None:
        """Go on from the file `state`, if it is there, up to so many trajectories.

        Trajectory k has the noise of search seed k and prompt k modulo their number.
        """
        self._recall(state)
        batches = 0
        while self.done < trajectories:
            count = min(batch_size, trajectories - self.done)
            self.losses.append(self.learn(range(SEARCH + self.done, SEARCH + self.done + count)))
            self.done += count
            batches += 1
            report(self.done, self.losses[-1])
            if batches % SAVED == 0 or self.done >= trajectories:
                self._save(state)

    @torch.enable_grad()
    def learn(self, seeds: range) -> float:
        """One batch: an update of the weights for each interval; the mean squared distance."""
        told, known, total = list[Told](), list[Tensor](), 0.0
        denoise, noise = self._on(seeds)
        goals = self._goals(denoise, noise)
        start = noise * self.student.grid[0]
        for k in range(self.setting.intervals):
            asked: list[Told] = []

            def choose(i: int, k: int = k, asked: list[Told] = asked) -> Told:
                if i < k:
                    return told[i]
                asked.append(self._ask(i, len(noise)))
                return asked[0]

            steps = execute(
                _Replay(denoise, known), start, self.student.rows(choose), depth=self.student.depth
            )
            with self.middle.watched():
                for _ in range(2 * k + 2):
                    state = next(steps)
            loss = (state - goals[k]).square()
            self.adam.zero_grad()
            (loss.sum() / len(noise)).backward()  # type: ignore[no-untyped-call]
            self.adam.step()
            # backwards through the one call that the step follows, and that at another time
            self._count(3 * len(noise))
            total += float(loss.detach().mean()) / self.setting.intervals
            told.append(Told(*(values.detach() for values in asked[0])))
        return total

    @torch.no_grad()
    def averages(self, n: int = AVERAGED, batch_size: int = 32) -> Schedule:
        """The static form: what the predictor tells on average, over the first n search seeds."""
        every: list[list[Told]] = [[] for _ in range(self.setting.intervals)]
        for first in range(0, n, batch_size):
            denoise, noise = self._on(range(SEARCH + first, SEARCH + min(first + batch_size, n)))

            def choose(k: int, count: int = len(noise)) -> Told:
                every[k].append(self._ask(k, count))
                return every[k][-1]

            with self.middle.watched():
                rows = self.student.rows(choose)
                start = noise * self.student.grid[0]
                list(execute(denoise, start, rows, depth=self.student.depth))
        told = [Told(*(torch.cat(parts) for parts in zip(*each, strict=True))) for each in every]
        return self.student.static(told, self.model.spec, self.model.guidance)

    @property
    def middle(self) -> Middle:
        if not hasattr(self, "_middle"):
            self._middle = Middle(self.model)
        return self._middle

    def _ask(self, k: int, n: int) -> Told:
        return asked(self.predictor, self.student, self.middle, k, n)

    def _on(self, seeds: range) -> tuple[Denoiser, Tensor]:
        texts = [self.prompts[seed % len(self.prompts)] for seed in seeds]
        plain = denoiser(self.model, texts, self.negative_prompt)

        def counting(x: Tensor, step: Step) -> Tensor:
            self._count(len(x))
            return plain(x, step)

        return counting, seeded_noise(seeds, self.model.shape).to(self.model.device)

    def _count(self, calls: int) -> None:
        guided = self.setting.guidance_scale != 1 and self.model.guidance != "distilled"
        self.passes += calls * (2 if guided else 1)

    @torch.no_grad()
    def _goals(self, denoise: Denoiser, noise: Tensor) -> list[Tensor]:
        states = list(trajectory(denoise, noise, self.teacher))
        each = self.setting.between + 1
        return states[each - 1 :: each]

    def _save(self, path: Path) -> None:
        tensors = {f"weight.{k}": v.contiguous() for k, v in self.predictor.state_dict().items()}
        for i, values in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in values.items()}
        tensors |= {
            "done": torch.tensor([self.done, self.passes]),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        write_whole(path, lambda p: save_file(tensors, p, {"identity": self.identity}))

    @cached_property
    def identity(self) -> str:
        """Of what a state must be, to go on."""
        model = (model_digest(self.model), str(self.model.shape), *self.additions)
        told = (str(self.setting), *model, self.negative_prompt, *self.prompts)
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def _recall(self, path: Path) -> None:
        found = recall(path, load_file)
        if found is None:
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            theirs = (file.metadata() or {}).get("identity")
        if theirs != self.identity:
            raise UserError(
                f"{path}: that is the state of another training; remove it to begin anew"
            )
        weights = {k[7:]: v for k, v in found.items() if k.startswith("weight.")}
        self.predictor.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in found.items():
            if key.startswith("adam."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        self.done, self.passes = (int(x) for x in found["done"])
        self.losses = found["losses"].tolist()


class _Replay:
    """A denoiser that knows the predictions of its first calls, and remembers those after them."""

    def __init__(self, denoise: Denoiser, known: list[Tensor]) -> None:
        self.denoise, self.known, self.calls = denoise, known, 0

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        self.calls += 1
        if self.calls <= len(self.known):
            return self.known[self.calls - 1]
        x0 = self.denoise(x, step)
        self.known.append(x0.detach())
        return x0


def asked(predictor: Predictor, student: Student, middle: Middle, k: int, n: int) -> Told:
    """What a predictor says of interval k, at whose beginning the network was just called."""
    setting = student.setting
    device = next(predictor.parameters()).device
    if setting.afs and k == 0:
        seen = torch.zeros(n, setting.bottleneck, device=device)
    else:
        seen = middle.of(n)
        if seen.shape[1] != setting.bottleneck:
            raise UserError(
                f"the predictor knows a network with {setting.bottleneck} numbers in its middle, "
                f"this one has {seen.shape[1]}: it was trained for another size"
            )
    return predictor(seen, student.grid[k], student.grid[k + 1])  # type: ignore[no-any-return]


def bottleneck(model: Model, prompt: str) -> int:
    """How many numbers the middle of a model's U-Net has, a channel: found by a call.

    Raises:
        UserError: as of `Middle`.
    """
    middle = Middle(model)
    assert isinstance(model, LatentModel)
    with torch.no_grad(), middle.watched(), model.uncompiled():
        denoise = denoiser(model, [prompt], "")
        noise = seeded_noise([0], model.shape).to(model.device)
        denoise(noise, Step(1.0))
    return middle.of(1).shape[1]


def new(
    model: Model,
    setting: Setting,
    prompts: Sequence[str],
    negative_prompt: str,
    additions: Sequence[str] = (),
) -> Training:
    """A training from its beginning, always the same.

    Raises:
        UserError: a model that AMED is not for, one that is not in float32, or quantised.
    """
    assert isinstance(model, LatentModel)
    check_gradients(model, "amed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = Predictor(setting).to(model.device)
    return Training(predictor, model, prompts, negative_prompt, additions)
