"""torchvision beside a CPU-only torch: its compiled operators do not load, and importing it fails.

clean-fid and torchmetrics ask for two of them at import; declaring those is enough, since none is
called here.
"""

import torch

_library: list[torch.library.Library] = []  # it forgets the operators when it is collected


def declare() -> None:
    """Declare the operators without which `import torchvision` fails."""
    if not _library:
        _library.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _library[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
