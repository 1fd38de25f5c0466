"""Train the two small classifiers on real images."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stepsearch.metrics.networks import SmallClassifier
from stepsearch.paths import write_whole

from .data import load_split


def augment(x: Tensor) -> Tensor:
    """Shift by up to two pixels, the same for the batch."""
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return x.roll((down, right), (2, 3))  # the border is background


def train(data: Path, path: Path, seed: int, epochs: int = 3) -> None:
    torch.manual_seed(seed)
    images, labels = load_split(data, "train")
    x = SmallClassifier.prepare(images[:, None].expand(-1, 3, -1, -1))
    net = SmallClassifier()
    net.to(memory_format=torch.channels_last)
    total = epochs * (len(x) // 128)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=total)
    for epoch in range(epochs):
        net.train()
        for pick in torch.randperm(len(x))[: len(x) // 128 * 128].view(-1, 128):
            loss = F.cross_entropy(net(augment(x[pick])), labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{path.stem} epoch {epoch} accuracy {accuracy(net, data):.4f}", flush=True)
    write_whole(
        path, lambda p: save_file({k: v.contiguous() for k, v in net.state_dict().items()}, p)
    )


@torch.no_grad()
def accuracy(net: SmallClassifier, data: Path) -> float:
    images, labels = load_split(data, "t10k")
    net.eval()
    hits = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        logits = net(SmallClassifier.prepare(x[:, None].expand(-1, 3, -1, -1)))
        hits += int((logits.argmax(1) == y).sum())
    return hits / len(labels)
