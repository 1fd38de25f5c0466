"""These tests need ComfyUI and run in `.venv-comfyui` (scripts/test_comfyui), nowhere else."""

import importlib.util
import tempfile

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
