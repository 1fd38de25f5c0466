"""These tests need clean-fid and run in `.venv-fid` (scripts/test_fid), nowhere else."""

import importlib.util

if importlib.util.find_spec("cleanfid") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import operators  # of scripts

    operators.declare()
