"""Train an NPNet on pairs of noise: mean squared error to the better one, as its authors do.

A killed training goes on after its last epoch: weights, moments and the best weights so far lie in
one safetensors file, and the order of the pairs follows from the epoch.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, inf, pi
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepsampler.npnet.network import NPNet
from stepsearch.paths import recall, write_whole

HELD_OUT = 10  # of so many pairs, one chooses among the epochs and trains nothing
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Settings:
    epochs: int = 30
    rate: float = 1e-3  # falls to zero by a cosine
    batch_size: int = 64
    seed: int = 0


@dataclass
class Epoch:
    """Errors per number of the noise; `still` is that of noise that stays as it is."""

    done: int
    training: float
    held_out: float
    still: float
    best: float


class Trainer:
    """Noise, better noise, both (n, *latent), and states (m, tokens, width) of m prompts."""

    def __init__(
        self,
        network: NPNet,
        pairs: tuple[Tensor, Tensor],
        states: Tensor,
        prompts: Tensor,
        settings: Settings,
    ) -> None:
        """`prompts`, int64 (n,), says which of the states belongs to each pair; all on a device."""
        self.network, self.settings = network, settings
        self.noise, self.better = pairs
        self.states, self.prompts = states, prompts
        n = len(self.noise)
        self.held_out = torch.arange(0, n, HELD_OUT)
        self.learned = torch.tensor([k for k in range(n) if k % HELD_OUT], dtype=torch.int64)
        self.optimizer = torch.optim.AdamW(network.parameters(), settings.rate)
        self.done, self.best, self.best_error = 0, _weights(network), inf

    def run(self, state: Path, told: Callable[[Epoch], None]) -> float:
        """Train what is left of the epochs and leave the best weights in the network.

        Returns the error of those, on pairs that trained nothing.
        """
        recall(state, self._recall)
        still = self._error(lambda part: self.noise[part])
        while self.done < self.settings.epochs:
            training = self._epoch()
            self.done += 1
            held_out = self._error(self._predicted)
            if held_out < self.best_error:
                self.best, self.best_error = _weights(self.network), held_out
            self._save(state)
            told(Epoch(self.done, training, held_out, still, self.best_error))
        self.network.load_state_dict(self.best)
        return self.best_error

    def _epoch(self) -> float:
        """The mean error over it, before each of its steps."""
        generator = torch.Generator().manual_seed(self.settings.seed * 10_000 + self.done)
        order = self.learned[torch.randperm(len(self.learned), generator=generator)]
        batches = torch.split(order, self.settings.batch_size)
        self.network.train()
        total = 0.0
        for k, part in enumerate(batches):
            share = (self.done + k / len(batches)) / self.settings.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate * (1 + cos(pi * share)) / 2
            loss = (self._predicted(part) - self.better[part]).square().mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(part)
        self.network.eval()
        return total / len(order)

    def _predicted(self, part: Tensor) -> Tensor:
        return self.network(self.noise[part], self.states[self.prompts[part]])  # type: ignore[no-any-return]

    @torch.no_grad()
    def _error(self, predicted: Callable[[Tensor], Tensor]) -> float:
        total = 0.0
        for part in torch.split(self.held_out, self.settings.batch_size):
            total += (predicted(part) - self.better[part]).square().sum().item()
        return total / self.better[self.held_out].numel()

    def _save(self, path: Path) -> None:
        tensors = {f"model.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state[parameter]
            tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        info = {"info": json.dumps({"done": self.done, "error": self.best_error})}
        write_whole(path, lambda p: save_file(tensors, p, info))

    def _recall(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()["info"])
        device = self.noise.device
        tensors = load_file(path, str(device))
        self.network.load_state_dict(dict(_part(tensors, "model.")))
        self.best = dict(_part(tensors, "best."))
        for name, parameter in self.network.named_parameters():
            moments = {k: tensors[f"{k}.{name}"] for k in MOMENTS if f"{k}.{name}" in tensors}
            if moments:
                moments["step"] = moments["step"].cpu()
                self.optimizer.state[parameter] = moments
        self.done, self.best_error = info["done"], info["error"]


def _weights(network: NPNet) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((k.removeprefix(prefix), v) for k, v in tensors.items() if k.startswith(prefix))
