"""Small classifiers of 32 x 32 pictures: one to take features from, one to judge alignment.

They are trained on real images alone (`scripts/tiny_model/train.py judge`), from different seeds.
"""

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 96)


class SmallClassifier(nn.Module):
    """Four stages of convolutions on the grey picture; `features` pools each of them."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        before = 1
        for k, width in enumerate(WIDTHS):
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=1 if k == 0 else 2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
            )
            before = width
        self.head = nn.Linear(before, classes)

    @staticmethod
    def prepare(images: Tensor) -> Tensor:
        """uint8 (n, 3, 32, 32) -> grey floats (n, 1, 32, 32) in [-1, 1]."""
        return images.float().mean(1, keepdim=True) / 127.5 - 1

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of prepared images."""
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """Mean and standard deviation over space of every channel of every stage, (n, 416).

        Early stages see texture, blur and noise; late ones see what is shown.
        """
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled += [x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-6).sqrt()]
        return torch.cat(pooled, 1)
