"""These tests need clean-fid and run in `.venv-fid` (scripts/test_fid), nowhere else.

clean-fid imports torchvision, whose operators do not load beside a CPU-only torch; declaring the
two that it asks for at import is enough, since none of them is called.
"""

import importlib.util

import torch

if importlib.util.find_spec("cleanfid") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
