#!/usr/bin/env bash
# Who is surprised: whoever runs a 4-bit model of bitsandbytes on a CPU, and saves it or looks at it.
#
# `state_dict()` of a Linear4bit that has computed changes what the layer computes next, and what it
# returns is no longer the layer. On a CPU with AVX512-BF16 the first forward pass repacks a weight,
# and its scales (`absmax`, one a block of 64) become a transposed table. `state_dict` undoes the
# packing, and leaves the scales in that order; the next pass takes them for those of other blocks.
# With `compress_statistics=True` (double quantisation) the order is restored.
#
# Nothing is downloaded but packages of PyPI. Exits with 0 as long as outputs change, with 2 on a CPU
# that does not repack.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip torch==2.13.0  # alone, it is the build for CPUs
pip bitsandbytes==0.50.2 numpy
cd "$folder"
venv/bin/python - <<'P' 2>/dev/null
import bitsandbytes
import torch

print("bitsandbytes", bitsandbytes.__version__, "torch", torch.__version__)
changed = {}
for double in (False, True):
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(256, 64, bias=False, compress_statistics=double)
    layer.weight.data *= torch.linspace(0.1, 4.0, 256)  # so that blocks have scales of their own
    x, plain = torch.randn(8, 256), layer.weight.data.clone()
    layer = layer.to("cpu").eval()
    if not layer.support_avx512bf16_for_cpu:
        print("this CPU has no AVX512-BF16, and bitsandbytes repacks nothing")
        raise SystemExit(2)
    with torch.no_grad():
        exact, first, again = x @ plain.T, layer(x), layer(x)
        saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        after = layer(x)
    far = lambda y: float((y - exact).norm() / exact.norm())  # noqa: E731
    changed[double] = not torch.equal(first, after)
    print(f"compress_statistics={double}: distance from the layer that was quantised, relative")
    print(f"  first pass {far(first):.3f}, second {far(again):.3f}, after state_dict() {far(after):.3f}")
    print(f"  absmax in state_dict(): shape {list(saved['weight.absmax'].shape)}, "
          f"{saved['weight.absmax'].dtype}")
raise SystemExit(not changed[False])
P
