"""A pass of the bundled network as it is and compiled, side by side.

    python scripts/bench/bench_compile.py                        # two minutes on a core
    python scripts/bench/bench_compile.py --device cuda --dtypes float16

Seconds are those of one pass of one image; the ratio holds on a busy machine, seconds do not.
"""

import argparse
import time

import torch

from stepsampler.models import LatentModel, load


def seconds(model: LatentModel, batch: int) -> float:
    """The best of ten calls, after two that warm up."""
    condition = model.encode(["a photo of a bag"] * batch)
    x = torch.randn(batch, *model.shape).to(model.device)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        model.network(x, 500.0, condition)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[2:]) / batch


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for dtype in args.dtypes:
        plain = seconds(load("tiny", args.device, dtype), args.batch)
        started = time.perf_counter()
        compiled = seconds(load("tiny", args.device, dtype, compile=True), args.batch)
        warm = time.perf_counter() - started - 11 * compiled * args.batch
        print(
            f"{dtype}: {1e3 * plain:.3f} ms as it is, {1e3 * compiled:.3f} ms compiled "
            f"({compiled / plain:.2f} of that), {warm:.0f} s to load and compile",
            flush=True,
        )


if __name__ == "__main__":
    main()
