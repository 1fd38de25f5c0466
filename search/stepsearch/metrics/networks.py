"""The networks behind extractors and the judge that are not another package's.

Two small classifiers of 32 x 32 pictures, one to take features from, one to judge alignment, are
trained on real images alone (`scripts/tiny_model/train.py judge`), from different seeds. SqueezeNet
is one of ImageNet (`scripts/convert_squeezenet.py`). `Untrained` has the weights it was drawn with.
"""

import torch
import torch.nn.functional as F
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


class Fire(nn.Module):
    """A squeeze to few channels, and two expansions side by side."""

    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(before, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze1x1(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016) up to its last fire module, without the classifier."""

    FIRES = (
        *((64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)),
        *((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)),
    )
    POOLED = ("conv1", "fire3", "fire5")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for k, widths in enumerate(self.FIRES, 2):
            self.add_module(f"fire{k}", Fire(*widths))

    @staticmethod
    def prepare(images: Tensor) -> Tensor:
        """Floats of [0, 255] in RGB -> BGR less ImageNet's means, as Caffe had them."""
        means = images.new_tensor([104.006, 116.669, 122.679])
        return images.flip(1) - means[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Mean over space of the last module's channels, (n, 512), of prepared images."""
        bottom, right = (side % 2 for side in x.shape[-2:])
        x = F.pad(x, (right, 1, bottom, 1))  # «same» at a stride of 2: the later side first
        for name, layer in self.named_children():
            x = layer(x).relu()
            if name in self.POOLED:
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


class Untrained(nn.Module):
    """Convolutions with random weights, and absolute values: three stages, pooled over space.

    Features of networks that have learned nothing tell images apart as well, and other things about
    them than trained ones (Naeem et al. 2020, arXiv 2002.09797, sec. 4). Absolute values instead of
    rectifiers leave no channel that is 0 in nearly all real images, where the few others would be
    most of a distance. Every other filter of the first stage has a mean of zero for each colour, so
    that half of them see no brightness.
    """

    WIDTHS = (32, 64, 128)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.ParameterList()
        before, side = 3, 5
        for width in self.WIDTHS:
            drawn = torch.randn(width, before, side, side, generator=generator)
            if before == 3:
                drawn[::2] -= drawn[::2].mean((2, 3), keepdim=True)
            norms = drawn.flatten(1).norm(dim=1)[:, None, None, None]
            self.filters.append(nn.Parameter(2**0.5 * drawn / norms))
            before, side = width, 3

    def forward(self, x: Tensor) -> Tensor:
        """Mean and standard deviation over space of every channel of every stage, (n, 448).

        Of images (n, 3, height, width) in [-1, 1], of at least 16 pixels a side.
        """
        pooled = []
        for filters in self.filters:
            margin = filters.shape[-1] // 2
            x = F.conv2d(F.pad(x, (margin,) * 4, mode="reflect"), filters).abs()
            pooled += [x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-6).sqrt()]
            x = F.avg_pool2d(x, 2)
        return torch.cat(pooled, 1)
