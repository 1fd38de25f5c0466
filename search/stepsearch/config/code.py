"""Functions of one's own that a study names, "module:function": called only by whoever allows it.

A study file or a run's folder can come from anywhere, so a name in it is no reason to run code: the
person at the command line says so, each time, with `--allow-code`.
"""

import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

from stepsampler.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    from stepsampler.models import Model
    from stepsearch.config import ModelConfig, StudyConfig

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_allowed = False


def named(spec: str) -> str:
    """The spec itself.

    Raises:
        ValueError: it is no "module:function".
    """
    if not NAME.fullmatch(spec):
        raise ValueError(f'must be "module:function", got {spec!r}')
    return spec


def allowed() -> bool:
    return _allowed


@contextmanager
def code(allow: bool) -> Iterator[None]:
    """Allow it or not, as long as this lasts; modules of the working directory are found then."""
    before, path = _allowed, list(sys.path)
    allow_code(allow)
    try:
        yield
    finally:
        allow_code(before)
        sys.path[:] = path


def allow_code(allow: bool) -> None:
    """The same from now on, in this process: a worker's."""
    global _allowed
    _allowed = allow
    if allow and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def check_code(config: "StudyConfig") -> None:
    """Refuse a study that names code, unless that is allowed.

    Raises:
        UserError: names the key and what it would run.
    """
    for key, spec in named_code(config).items():
        _check(key, spec)


def named_code(config: "StudyConfig") -> dict[str, str]:
    """The functions that a study names, by their keys."""
    known = {"model": config.model.code, "evaluation.metric": config.evaluation.metric}
    return {key: spec for key, spec in known.items() if spec is not None}


def _check(key: str, spec: str) -> None:
    if not _allowed:
        raise UserError(
            f"{key}: the study runs the function {spec}: read it, then allow it with --allow-code"
        )


def load_function(key: str, spec: str) -> Callable[..., Any]:
    """The function that a key of a study names.

    Raises:
        UserError: it is not allowed, or there is none.
    """
    _check(key, spec)
    module, _, name = spec.partition(":")
    with in_a_sentence(key, spec):
        found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise UserError(f"{key}: {spec}: the module has no function {name!r}")
    return found  # type: ignore[no-any-return]


@contextmanager
def in_a_sentence(key: str, spec: str) -> Iterator[None]:
    """Let whatever the code of a study raises be a UserError that names it and its line.

    Memory that is out is another matter, for which there is another sentence.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        if not isinstance(error, ImportError | SyntaxError):
            said = f"{type(error).__name__} in {_place(error)}" + (f": {said}" if said else "")
        raise UserError(f"{key}: {spec}: {said}") from error


def _place(error: BaseException) -> str:
    """File and line, where there is one outside of libraries the innermost of those."""
    frames = extract_tb(error.__traceback__)
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def digest_of(function: Callable[..., Any]) -> str:
    """Of the file that a function is in: who changes it measures something else."""
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    text = Path(file).read_bytes() if file else repr(function).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def open_model_of(options: "ModelConfig", device: str) -> "Model":
    """The study's model: by its own function, which returns a pipeline of diffusers, or as usual.

    Raises:
        UserError: as `stepsampler.models.open_model`, or the function is not allowed or not there.
    """
    from stepsampler.models import as_told, open_model, quiet

    if options.code is None:
        return open_model(options, device)
    quiet()
    function = load_function("model", options.code)
    with in_a_sentence("model", options.code):
        pipeline = function()
    if not hasattr(pipeline, "components"):
        kind = type(pipeline).__name__
        raise UserError(f"model: {options.code}: must return a pipeline of diffusers, got {kind}")
    return as_told(pipeline.to(device), options)
