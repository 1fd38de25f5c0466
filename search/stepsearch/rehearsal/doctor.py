"""`stepsearch doctor`: whether this machine can do what a study asks for, each with its remedy."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stepsampler.errors import counted
from stepsampler.models import BUNDLED, resolve
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.costs import costs
from stepsearch.paths import RUNS, bundled, local_folder
from stepsearch.report.cards.health import FAIL, LOOK, OPEN, PASS

ROOM = 5e9  # bytes of a disk that are enough where no study says how many
LARGE = 1 << 24  # bytes that are read at once
Said = tuple[str, str, str]  # state, sentence, what to do


def examine(config: StudyConfig | None, tracking: str) -> Iterator[dict[str, Any]]:
    """A check after the other: its name, state, sentence and what to do."""
    checks: dict[str, Callable[[], Said]] = {
        "torch and torchvision": _torchvision,
        "GPU": _gpu,
        "clean-fid": _cleanfid,
        "bundled weights": _bundled_weights,
        "MLflow": lambda: _mlflow(tracking),
        "disk": lambda: _disk(config),
        "cores": _cores,
    }
    if config is not None and config.model.code is None:
        checks["weights of the study"] = lambda: _weights(config.model.id)
    for name, check in checks.items():
        state, sentence, do = check()
        yield {"name": name, "state": state, "sentence": sentence, "do": do}


def _imports(module: str) -> str | None:
    """The last line of what a fresh process says when it imports a module; None: it does."""
    code = f"import {module}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = said.stderr.strip().splitlines() or ["it ended without a word"]
    return None if said.returncode == 0 else lines[-1]


def _torchvision() -> Said:
    ours = torch.__version__
    try:
        theirs = version("torchvision")
    except PackageNotFoundError:
        return PASS, f"torch {ours}; torchvision is not there, and nothing here needs it.", ""
    if (why := _imports("torchvision")) is None:
        return PASS, f"torch {ours} and torchvision {theirs} load together.", ""
    return (
        FAIL,
        f"torchvision {theirs} does not load beside torch {ours}: {why}",
        "pip uninstall torchvision, or install the one of torch's own index: diffusers and "
        "transformers fail where it is there and broken.",
    )


def _gpu() -> Said:
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
        told = ", ".join(f"{p.name} with {p.total_memory / 2**30:.0f} GiB" for p in found)
        return PASS, f"{counted(len(found), 'GPU')}: {told}.", ""
    if torch.backends.mps.is_available():
        return PASS, "The GPU of this Mac is there: --device mps.", ""
    if shutil.which("nvidia-smi"):
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}" if built else "torch is built for CPUs alone"
        return (
            FAIL,
            f"nvidia-smi is here, but torch sees no GPU: {why}.",
            "Install the torch that pytorch.org names for your driver; then look whether "
            "CUDA_VISIBLE_DEVICES hides it.",
        )
    return (
        LOOK,
        "There is no GPU.",
        "The bundled model does without; larger ones are slow on a CPU.",
    )


def _cleanfid() -> Said:
    if importlib.util.find_spec("cleanfid") is None:
        return (
            OPEN,
            "clean-fid is not installed; only the extractor inception needs it.",
            "pip install 'stepsearch[fid]', in an environment whose torch has its torchvision.",
        )
    if (why := _imports("cleanfid.features")) is None:
        return PASS, f"clean-fid {version('clean-fid')} loads.", ""
    return FAIL, f"clean-fid does not load: {why}", "pip install 'stepsearch[fid]' again."


def _bundled_weights() -> Said:
    files = sorted(bundled("").glob("*.safetensors"))
    for name in BUNDLED:
        files += sorted(Path(resolve(name)).rglob("*.safetensors"))
    if broken := [f"{file.name}: {why}" for file in files if (why := _unreadable(file))]:
        return FAIL, f"{counted(len(broken), 'file')} cannot be read: {broken[0]}", "Install again."
    return PASS, f"{counted(len(files), 'file')} of weights and statistics can be read.", ""


def _unreadable(file: Path) -> str | None:
    """Why a file of weights is none: cut short, or the pointer of a large file."""
    try:
        with safe_open(file, "pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        return str(error)
    return None


def _weights(name: str) -> Said:
    """Against the digests that the hub's cache names them by; those of a folder are only opened."""
    folder = Path(name).parent if Path(name).is_file() else local_folder(name)
    if folder is None:
        return (
            FAIL,
            f"The model {name!r} is not on this machine.",
            "The first run with a network downloads it; or give its folder as model.id.",
        )
    every = [Path(name)] if Path(name).is_file() else sorted(folder.rglob("*.safetensors"))
    checked = 0
    for file in every:
        digest = file.resolve().name
        if re.fullmatch("[0-9a-f]{64}", digest):
            checked += 1
            if _sha256(file) != digest:
                return (
                    FAIL,
                    f"{file} is not what was downloaded: its SHA-256 differs.",
                    f"Remove {file.resolve()} and download it again.",
                )
        elif why := _unreadable(file):
            return FAIL, f"{file} cannot be read: {why}", "Get it again."
    how = f"{checked} by their SHA-256" if checked else "which can be opened"
    return PASS, f"{name}: {counted(len(every), 'file')} of weights, {how}.", ""


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(LARGE):
            digest.update(part)
    return digest.hexdigest()


def _mlflow(tracking: str) -> Said:
    if tracking == "none":
        return OPEN, "Tracking is off.", ""
    from stepsearch.engine.tracking import MlflowTracking

    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tracker = MlflowTracking(None if tracking == "local" else tracking, said.append)
        tracker.reach(Path(folder))
    where = "in the run's folder" if tracking == "local" else "there"
    if not said:
        return PASS, f"MLflow {version('mlflow')} has a store {where}.", ""
    return FAIL, said[0], "Give --tracking an address that answers, or none."


def _disk(config: StudyConfig | None) -> Said:
    place = next(p for p in (RUNS.absolute(), *RUNS.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    needed = costs(config).disk if config else ROOM
    what = f"{free / 1e9:.1f} GB are free in {place}"
    if free > needed:
        return PASS, f"{what}.", ""
    need = f"the study needs about {needed / 1e9:.1f}" if config else "a study can need more"
    return LOOK, f"{what}; {need}.", "Make room, or give --run a folder elsewhere."


def _cores() -> Said:
    here = os.cpu_count() or 1
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else here
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f"{counted(ours, 'core')} of {here}" if ours < here else counted(here, "core")
    limit = f", OMP_NUM_THREADS={threads}" if threads else ""
    if threads and threads.isdigit() and int(threads) > ours:
        return LOOK, f"{told}{limit}.", "More threads than cores wait for one another."
    return PASS, f"{told}{limit}: a run without --workers starts {min(2, here)} processes.", ""
