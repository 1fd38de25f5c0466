"""Levels and weights that are learned from a teacher, as NeuralSolver's (arXiv 2505.21114) are."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepsampler.generate import seeded_noise
from stepsampler.grids import make_schedule
from stepsampler.models import LatentModel
from stepsampler.sample import execute, sample
from stepsampler.schedule import Schedule
from stepsearch.metrics.evaluator import SEARCH, seeds_of
from stepsearch.paths import write_whole
from stepsearch.polish.knobs import Knobs
from stepsearch.rivals.live import FAR, Following, LiveTableau
from stepsearch.rivals.placement import Counting

TEACHER = 50  # steps of DPM++(2M)


@dataclass(frozen=True)
class Triangular(Knobs):
    """Each step's weights are of all predictions so far, as in NeuralSolver's tables."""

    def _count(self, i: int) -> int:
        return i + 1


class Teacher:
    """Where the model's many steps end, for the first search seeds; kept in a file."""

    def __init__(
        self, model: LatentModel, prompts: list[str], scale: float, images: int, path: Path
    ) -> None:
        self.model, self.prompts, self.images, self.path = model, prompts, images, path
        self.options = {"guidance_scale": scale, "model": model.spec}
        self.passes = 0

    def part(self, seeds: range) -> Counting:
        texts = [self.prompts[seed % len(self.prompts)] for seed in seeds]
        return Counting(self.model, texts, "", seeded_noise(seeds, self.model.shape))

    def goals(self, batch: int) -> Tensor:
        """The ends, (images, *shape); their passes are counted where they are made."""
        if not self.path.exists():
            plan = make_schedule("linspace", TEACHER, self.model.noise, **self.options)
            ends = []
            for first in range(0, self.images, batch):
                part = self.part(seeds_of(SEARCH + first, min(batch, self.images - first)))
                with torch.no_grad():
                    ends.append(sample(part, part.latents, plan).cpu())
                self.passes += part.passes
            tensors = {"ends": torch.cat(ends), "passes": torch.tensor(self.passes)}
            write_whole(self.path, lambda path: save_file(tensors, path))
        found = load_file(self.path)
        self.passes = int(found["passes"])
        return found["ends"]


def learn(teacher: Teacher, calls: int, iterations: int, batch: int) -> tuple[Schedule, int]:
    """By gradients of the squared distance to where the teacher ends; and the passes of that.

    From DPM++(2M), whose guidance stays. Image k of an iteration is the next of the teacher's; the
    rate of Adam falls to nothing. NeuralSolver's own tables are of flow models, whose first level
    a variance-preserving model does not reach.
    """
    model, goals = teacher.model, teacher.goals(batch)
    knobs = Triangular(make_schedule("linspace", calls, model.noise, **teacher.options))
    parameters = knobs.zero().requires_grad_()
    free = torch.tensor([not name.startswith("scale") for name in knobs.names])
    adam = torch.optim.Adam([parameters], 1.0)
    batches = max(1, len(goals) // batch)
    passes = 0
    for k in range(iterations):
        first = k % batches * batch
        part = teacher.part(seeds_of(SEARCH + first, min(batch, len(goals) - first)))
        goal = goals[first : first + batch].to(model.device)
        rows = LiveTableau(knobs.schedule, parameters).at(parameters)
        start = part.latents * knobs.start.sigmas[0]
        *_, end = execute(Following(part, nudge=FAR), start, rows)
        loss = (end - goal).square().mean()
        adam.zero_grad()
        loss.backward()
        before = parameters.detach().clone()
        adam.step()  # of one unit; each kind has its own, and falls to nothing
        moved = (parameters.detach() - before) * knobs.rates * free * (1 - k / iterations)
        parameters.data = before + moved
        passes += part.passes
        if k % 10 == 0 or k + 1 == iterations:
            print(
                f"  {calls} calls, iteration {k}: distance {float(loss.detach()):.4f}", flush=True
            )
    return replace(knobs.schedule(parameters.detach()), provenance={}), passes
