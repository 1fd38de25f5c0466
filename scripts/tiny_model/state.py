"""Training state that survives a kill: safetensors and JSON, written then renamed."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepsearch.paths import write_whole


@dataclass
class Clock:
    """Seconds of training so far, over all sittings, against the planned total."""

    total: float
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def tick(self) -> float:
        """Advance and return the progress in [0, 1]."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last = now
        return min(1.0, self.spent / self.total)


def learning_rate(progress: float, peak: float, warmup: float = 0.01) -> float:
    """Linear warm-up, flat, then a linear fall to zero over the last 60 %."""
    return peak * min(1.0, progress / warmup, (1 - progress) / 0.6)


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


def save_state(
    folder: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer, info: dict
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.values.items()}
    names = {id(p): name for name, p in module.named_parameters()}
    for parameter, moments in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}.{names[id(parameter)]}"] = moments[key]
    write_whole(
        folder / "state.safetensors",
        lambda path: save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path
        ),
    )
    write_whole(folder / "state.json", lambda path: path.write_text(json.dumps(info)))


def load_state(
    folder: Path, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> dict:
    """Restore what `save_state` wrote and return its info; {} where there is nothing."""
    if not (folder / "state.json").exists():
        return {}
    tensors: dict[str, Tensor] = load_file(folder / "state.safetensors")
    part = {
        prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("model.", "average.", "exp_avg.", "exp_avg_sq.", "step.")
    }
    module.load_state_dict(part["model."])
    devices = {name: p.device for name, p in module.named_parameters()}
    average.values = {k: v.to(devices[k]) for k, v in part["average."].items()}
    for name, parameter in module.named_parameters():
        if name in part["step."]:  # weights unpacked from a bundle come without moments
            optimizer.state[parameter] = {
                "exp_avg": part["exp_avg."][name].to(parameter.device),
                "exp_avg_sq": part["exp_avg_sq."][name].to(parameter.device),
                "step": part["step."][name],
            }
    info: dict = json.loads((folder / "state.json").read_text())
    return info
