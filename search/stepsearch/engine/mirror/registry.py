"""A schedule as a model of MLflow's registry: only when somebody asks for it by name.

Nothing is pickled: the model is the file `served.py`, the schedule's JSON, and a copy of
`stepsampler` that reads it. The diffusion model is named, as in the study, and not copied.
"""

import hashlib
import logging
import os
import re
import warnings
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import stepsampler
from stepsampler.errors import UserError
from stepsampler.support.options import ModelOptions
from stepsearch.config import StudyConfig
from stepsearch.config.code import named_code
from stepsearch.engine.claim import BEST
from stepsearch.engine.mirror import served
from stepsearch.engine.mirror.stores import Store

# By stepsampler, and by the file itself
NEEDED = "torch diffusers transformers accelerate safetensors sentencepiece numpy pillow pandas"
DIGEST = "stepsearch.schedule"  # tag of a version: what it is of
NAME = re.compile(r"[^/:.%\"']+")  # of a registered model


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        UserError: MLflow takes no such name.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--register: a model's name has none of / : . % and quotes, got {name!r}")
    return name


def register(name: str, config: StudyConfig, store: Store, parent: str) -> tuple[int, bool]:
    """Register the schedule of a finished run as `name`; its version, and whether that is new.

    The same schedule for the same model is registered once. `parent` is the run it belongs to.

    Raises:
        UserError: the study's model is code of the user's own, which no registry holds.
    """
    code = named_code(config).get("model")
    if code is not None:
        raise UserError(f"--register: the study's model is code, {code}, which is not copied")
    import mlflow
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    settings = _settings(config)
    content = (store.folder / BEST).read_bytes() + repr(sorted(settings.items())).encode()
    digest = hashlib.sha256(content).hexdigest()
    client = MlflowClient(tracking_uri=store.uri)
    for known in client.search_model_versions(f"name='{name}'"):
        if known.tags.get(DIGEST) == digest:
            return int(known.version), False
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.uri)
    quiet = logging.getLogger("mlflow")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # what it advises is done here: a signature, requirements
    try:
        with mlflow.start_run(run_id=parent), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # and examples of input
            made = mlflow.pyfunc.log_model(
                name="schedule",
                python_model=str(Path(served.__file__)),
                artifacts={"schedule": (store.folder / BEST).as_uri()},
                code_paths=[str(Path(stepsampler.__file__).parent)],
                model_config=settings,
                signature=ModelSignature(
                    Schema([ColSpec("string", "prompt"), ColSpec("long", "seed")]),
                    Schema([ColSpec("binary", "image")]),
                ),
                pip_requirements=[f"{package}=={version(package)}" for package in NEEDED.split()],
                registered_model_name=name,
            )
    finally:
        quiet.setLevel(level)
        mlflow.set_tracking_uri(before)
    number = int(made.registered_model_version)
    client.set_model_version_tag(name, str(number), DIGEST, digest)
    client.set_model_version_tag(name, str(number), "stepsearch.study", config.name)
    return number, True


def _settings(config: StudyConfig) -> dict[str, Any]:
    """What `served.py` is told. Files and folders that are here are named by their whole path."""
    options: dict[str, Any] = {
        f.name: value
        for f in fields(ModelOptions)
        if (value := getattr(config.model, f.name)) != f.default
    }
    for key in ("id", "config", "vae", "npnet"):
        if key in options and os.path.exists(options[key]):
            options[key] = os.path.abspath(options[key])
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {
        "model": plain,
        "negative_prompt": config.evaluation.negative_prompt,
        "batch_size": config.evaluation.batch,
        "device": None,
    }
