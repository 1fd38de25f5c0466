#!/usr/bin/env bash
# Who is surprised: whoever takes a gradient through a network that torchao has quantised to int8 with
# dynamic activations, such as of a loss on images with respect to what a diffusion model was given.
#
# The output of such a linear layer has no graph, though its input asks for one. In a residual network,
# as all of these are, that raises nothing and warns of nothing: the gradient is that of the skip
# connections alone. Weight-only int8 of the same package keeps it.
#
# Nothing is downloaded but packages of PyPI. Exits with 0 as long as the gradient is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip torchao==0.17.0 numpy
cd "$folder"
venv/bin/python - <<'P' 2>stderr
import warnings
from copy import deepcopy

import torch
import torchao
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

print("torchao", torchao.__version__, "torch", torch.__version__)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


torch.manual_seed(0)
plain = Residual().eval().requires_grad_(False)
x, direction = torch.randn(8, 64), torch.randn(8, 64)


def gradient(net: nn.Module) -> torch.Tensor:
    given = x.clone().requires_grad_()
    return torch.autograd.grad((net(given) * direction).sum(), given)[0]


exact, lost = gradient(plain), {}
for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    name, net = type(config).__name__, deepcopy(plain)
    quantize_(net, config)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = gradient(net)
    output = float((net(x) - plain(x)).norm() / plain(x).norm())
    error = float((found - exact).norm() / exact.norm())
    lost[name] = torch.equal(found, direction)
    of_gradients = sum("grad" in str(warning.message) for warning in said)
    print(
        f"{name}: output off by {output:.1%}, gradient by {error:.1%}, "
        f"{'that of the skip alone' if lost[name] else 'whole'}, warnings of it: {of_gradients}"
    )
raise SystemExit(list(lost.values()) != [False, True])
P
