"""What is asked of a device, CUDA or CPU, and nowhere else: waiting, memory, names."""

import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "diffusers", "transformers")


def sync(device: torch.device) -> None:
    """Wait until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """That a call takes, with all that it leaves to the device."""
    sync(device)
    began = time.perf_counter()
    run()
    sync(device)
    return time.perf_counter() - began


def free(device: torch.device) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that lie on the device at most during a call; on a CPU, in this process."""
    free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@contextmanager
def memory_of(most: int, device: torch.device) -> Iterator[None]:
    """Inside, this process has no more of the device's memory than so many bytes."""
    free(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Inside, float32 is float32: cuDNN would round what it multiplies to 10 bits (TF32)."""
    if device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def described(device: torch.device) -> dict[str, str]:
    """The card, and the versions of what ran on it."""
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        name = f"{known.name}, {known.total_memory / 2**30:.0f} GiB"
    else:
        name = f"CPU, {os.cpu_count()} cores"
    versions = {library: version(library) for library in LIBRARIES}
    cuda = {"cuda": str(torch.version.cuda)} if device.type == "cuda" else {}
    return {
        "card": name,
        "python": platform.python_version(),
        **versions,
        **cuda,
        "os": sys.platform,
    }
