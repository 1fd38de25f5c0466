#!/usr/bin/env bash
# Who is surprised: whoever names weights by a digest of their file, or compares files to see whether
# a conversion made the same again.
#
# safetensors writes the keys of the metadata in an order of its own, another at every call: the same
# tensors with the same metadata, saved again in the same process, are a file of other bytes. With
# one key, or none, the bytes are the same each time.
#
# Nothing is downloaded but packages of PyPI. Exits with 0 as long as it is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'P'
import hashlib

import numpy as np
import safetensors
from safetensors.numpy import load, save

TIMES = 40
print("safetensors", safetensors.__version__)


def digests(metadata):
    """Different digests among files of the same content."""
    tensors = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    files = [save(tensors, metadata) for _ in range(TIMES)]
    assert all((load(file)["b"] == 1).all() for file in files)
    return len({hashlib.sha256(file).hexdigest() for file in files})


several = digests({"model": "x", "made": "by hand", "scale": "2", "steps": "8"})
one, none = digests({"model": "x"}), digests(None)
print(f"{TIMES} times the same: {several} files with four keys, {one} with one, {none} with none")
raise SystemExit(not (several > 1 and one == none == 1))
P
