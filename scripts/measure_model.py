"""Measure the bundled model: floors, room for few steps, alignment, speed, and sheets to look at.

    python scripts/measure_model.py --images 2000 --out runs/model-card

Real images come from the Debian package `dataset-fashion-mnist`. Distances are against the held-out
images; the floor of real images is that of as many training images. Guidance is the best of a few
constants for every contender. Measurements are cached, so a second run resumes.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stepsampler.generate import generate
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.models import LatentModel, load
from stepsampler.pictures import save_sheet
from stepsampler.schedule import Schedule
from stepsearch.distance import score
from stepsearch.evaluate import TEST, Prompt, load_prompts
from stepsearch.features import Judge, load_extractor
from stepsearch.paths import write_whole
from stepsearch.reference import load_reference

sys.path.insert(0, str(Path(__file__).parent))
from tiny_model import data

EXTRACTORS = ("texture", "lite0")
TEACHER_SCALES = (2.0, 3.0, 4.0)
FEW_SCALES = (1.0, 2.0, 3.0, 4.0)


class Bench:
    """Scores sets of images under both extractors."""

    def __init__(self, model: LatentModel, n: int, batch: int, cache: Path) -> None:
        self.model, self.n, self.batch, self.cache = model, n, batch, cache
        self.extractors = [load_extractor(name) for name in EXTRACTORS]
        self.references = [load_reference("fashion-mnist", e, 32, cache) for e in self.extractors]
        self.judge = Judge()

    def images(self, schedule: Schedule, prompts: list[Prompt], n: int) -> Tensor:
        """Images of the test seeds, cached."""
        key = json.dumps([schedule.to_json(), [p.text for p in prompts[:40]], n, self.digest()])
        path = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
        if not path.exists():
            picks = [prompts[k % len(prompts)].text for k in range(n)]
            batches = generate(
                self.model, schedule, picks, range(TEST, TEST + n), batch_size=self.batch
            )
            images = torch.cat([b.images for b in batches])
            write_whole(path, lambda p: np.save(p.open("wb"), images.numpy()))
        return torch.from_numpy(np.load(path))

    def digest(self) -> str:
        return str(float(self.model.pipeline.unet.conv_out.weight.double().sum()))

    def line(self, name: str, images: Tensor, labels: list[int] | None = None) -> dict:
        row: dict = {"name": name, "n": len(images)}
        for extractor, reference in zip(self.extractors, self.references, strict=True):
            features = torch.cat([extractor(x) for x in images.split(100)]).numpy()
            result = score(reference.project(features), reference.test)
            row[extractor.name] = result.value
            row[f"{extractor.name}_se"] = result.se
        if labels is not None:
            classes = torch.cat([self.judge(x) for x in images.split(500)])
            row["alignment"] = float((classes == torch.tensor(labels)).float().mean())
        print(
            f"{name:<46} "
            + " ".join(f"{e} {row[e]:8.3f} ± {row[e + '_se']:.3f}" for e in EXTRACTORS)
            + (f"  alignment {row['alignment']:.1%}" if labels else ""),
            flush=True,
        )
        return row


def rgb(images: Tensor) -> Tensor:
    return images[:, None].expand(-1, 3, -1, -1).contiguous()


def blurred(images: Tensor, sigma: float) -> Tensor:
    at = torch.arange(-4, 5).float()
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(images.float(), (4, 4, 4, 4), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)
    x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
    return x.round().clamp(0, 255).byte()


def floors(bench: Bench, real: Tensor, labels: Tensor) -> list[dict]:
    """Real images, their reconstructions, and what the metrics must notice."""
    vae = bench.model.pipeline.vae
    with torch.inference_mode():
        decoded = []
        for x in real.split(100):
            latents = vae.encode(x.float() / 127.5 - 1).latent_dist.mean
            decoded.append(bench.model.decode(latents * vae.config.scaling_factor))
    noise = torch.randn(real.shape, generator=torch.manual_seed(0))
    few = real[labels < 5]
    wrong = torch.cat([few, few])[: len(real)]
    return [
        bench.line("real images", real, labels.tolist()),
        bench.line("reconstructions", torch.cat(decoded)),
        bench.line("real, blurred by 0.5 pixels", blurred(real, 0.5)),
        bench.line("real, blurred by 1 pixel", blurred(real, 1.0)),
        bench.line("real, noise of 8 / 255", (real + 8 * noise).round().clamp(0, 255).byte()),
        bench.line("real, five of ten classes", wrong),
    ]


def nearest(samples: Tensor, folder: Path, path: Path) -> None:
    """Each sample above its nearest training image, by pixels."""
    train = data.load_split(folder, "train")[0]
    x = samples.float().mean(1).flatten(1)
    y = train.float().flatten(1)
    best = torch.cdist(x, y).argmin(1)
    save_sheet(torch.cat([samples, rgb(train[best])]), path, len(samples), ["sample", "nearest"])


def speed(bench: Bench, prompts: list[Prompt]) -> float:
    """Seconds per guided image of five steps, in batches."""
    schedule = make_schedule("power", 5, bench.model.noise, guidance_scale=2.0)
    texts = [prompts[k % len(prompts)].text for k in range(4 * bench.batch)]
    run = lambda: list(  # noqa: E731
        generate(bench.model, schedule, texts, range(len(texts)), batch_size=bench.batch)
    )
    run()
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--grids", default="all", help="comma-separated, or all")
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--out", type=Path, default=Path("runs/model-card"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.model)
    bench = Bench(model, args.images, args.batch, args.out / "cache")
    prompts = load_prompts("fashion-mnist")
    labels = [prompts[k % len(prompts)].label or 0 for k in range(args.images)]
    real, real_labels = data.load_split(args.data, "train")
    rows = floors(bench, rgb(real[: args.images]), real_labels[: args.images])

    for w in TEACHER_SCALES:
        schedule = make_schedule("linspace", 50, model.noise, order=2, guidance_scale=w)
        images = bench.images(schedule, prompts, args.images)
        rows.append(bench.line(f"teacher, 50 steps of DPM++(2M), w {w:g}", images, labels))
        if w == 2.0:
            save_sheet(images[:100], args.out / "teacher.png", 10)
            nearest(images[:20], args.data, args.out / "nearest.png")
    held_out = load_prompts("fashion-mnist", held_out=True)
    schedule = make_schedule("linspace", 50, model.noise, order=2, guidance_scale=2.0)
    images = bench.images(schedule, held_out, min(500, args.images))
    targets = [held_out[k % len(held_out)].label or 0 for k in range(len(images))]
    rows.append(bench.line("teacher, w 2, held-out prompts", images, targets))

    grids = list(GRIDS) if args.grids == "all" else args.grids.split(",")
    for grid in grids:
        for w in FEW_SCALES:
            n = args.steps if w != 1 else 2 * args.steps  # the same number of passes
            schedule = make_schedule(grid, n, model.noise, order=2, guidance_scale=w)
            images = bench.images(schedule, prompts, args.images)
            rows.append(bench.line(f"{grid}, {n} steps, w {w:g}", images, labels))
    rows.append({"name": "seconds per 5-step guided image", "value": speed(bench, prompts)})
    print(f"{1000 * rows[-1]['value']:.1f} ms per 5-step guided image in batches of {args.batch}")
    write_whole(args.out / "rows.json", lambda p: p.write_text(json.dumps(rows, indent=1)))


if __name__ == "__main__":
    main()
