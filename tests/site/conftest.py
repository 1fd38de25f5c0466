"""These tests need the site and jsonschema and run in `.venv-site` (scripts/test_site)."""

import importlib.util

if importlib.util.find_spec("zensical") is None:
    collect_ignore_glob = ["test_*.py"]
