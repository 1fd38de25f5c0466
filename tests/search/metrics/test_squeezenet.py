"""SqueezeNet of ImageNet, layer by layer against plain sums."""

import numpy as np
import torch

from stepsearch.metrics.features import Squeezed, load_extractor


def plain(weights, x):
    """The same network in NumPy-like sums: windows unfolded, one product a layer."""

    def conv(name, x, pad=0, stride=1):
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        k = w.shape[-1]
        columns = torch.nn.functional.unfold(x, k, padding=pad, stride=stride)
        side = (x.shape[-1] + 2 * pad - k) // stride + 1
        return (w.flatten(1) @ columns + b[:, None]).reshape(len(x), -1, side, side).relu()

    def pool(x):
        side = (x.shape[-1] - 3) // 2 + 1
        columns = torch.nn.functional.unfold(x, 3, stride=2)
        return columns.reshape(len(x), x.shape[1], 9, -1).amax(2).reshape(len(x), -1, side, side)

    x = torch.nn.functional.pad(x, (0, 1, 0, 1))  # «same» of an even side
    x = pool(conv("conv1", x, stride=2))
    for k in range(2, 10):
        small = conv(f"fire{k}.squeeze1x1", x)
        wide = conv(f"fire{k}.expand3x3", small, pad=1)
        x = torch.cat([conv(f"fire{k}.expand1x1", small), wide], 1)
        x = pool(x) if k in (3, 5) else x
    return x.mean((2, 3))


def test_features_are_those_of_the_published_layers():
    extractor = load_extractor("squeezenet")
    assert isinstance(extractor, Squeezed)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = (
        images.float()[:, [2, 1, 0]] - torch.tensor([104.006, 116.669, 122.679])[:, None, None]
    )
    found = extractor(images)
    assert found.shape == (2, 512)
    torch.testing.assert_close(
        found, plain(extractor.net.state_dict(), expected), rtol=1e-4, atol=1e-3
    )


def test_weights_are_float32_of_the_size_of_the_published_network():
    net = load_extractor("squeezenet").net
    assert sum(p.numel() for p in net.parameters()) == 1_235_496 - 512 * 1000 - 1000  # of 1.1
    assert np.isfinite(net.fire9.expand3x3.weight.numpy()).all()
