"""These tests need ComfyUI and run in `.venv-comfyui` (scripts/test_comfyui), nowhere else.

`--write-table` puts what a whole session has measured into docs/schedules.md.
"""

import importlib.util
import tempfile
from pathlib import Path

import pytest

if importlib.util.find_spec("comfy") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    if torch.version.cuda is None:
        import operators  # of scripts

        operators.declare()

    import comfy.cli_args  # the other modules read its options as they are imported

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = tempfile.mkdtemp(prefix="comfyui-")


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="what was measured, to the docs")


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--write-table") and exitstatus == 0:
        import table

        table.write()


@pytest.fixture
def place():
    """Where our node looks for schedules."""
    import folder_paths

    folder = Path(folder_paths.models_dir) / "schedules"
    assert folder_paths.get_folder_paths("schedules") == [str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()
