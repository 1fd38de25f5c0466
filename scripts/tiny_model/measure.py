"""Measure a bundled model: floors, room for few steps, alignment, speed, and sheets to look at.

    python scripts/tiny_model/measure.py --images 2000 --steps 3 4 5 --out runs/model-card
    python scripts/tiny_model/measure.py --floors      # real images and worse ones alone

Real images come from the Debian package `dataset-fashion-mnist`. Distances are against the held-out
images; the floor of real images is that of as many training images. Every contender has the best of
a few constant guidance scales by FD of 300 images of other seeds, and of the placements of one
number of steps the best few go on to all images. Images are cached, so a second run resumes.
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
from stepsampler.schedule import Schedule
from stepsampler.support.pictures import save_sheet
from stepsearch.metrics.alignment import Prompt, load_prompts
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import SELECTION, TEST
from stepsearch.metrics.features import Judge, load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.paths import write_whole

sys.path.insert(0, str(Path(__file__).parents[1]))
from stepsampler.errors import percent
from tiny_model import data

EXTRACTORS = ("texture", "lite0", "untrained", "squeezenet", "patches")
SCALES = (1.25, 1.5, 2.0, 3.0)
SCREEN = 300  # images that choose guidance scales and placements
FINALISTS = 2  # placements of each kind that go on
CHUNK = 100  # images in a file of the cache


class Bench:
    """Scores sets of images under every extractor."""

    def __init__(self, model: LatentModel, batch: int, cache: Path) -> None:
        self.model, self.batch, self.cache = model, batch, cache
        self.extractors = [load_extractor(name) for name in EXTRACTORS]
        self.references = [load_reference("fashion-mnist", e, 32, cache) for e in self.extractors]
        self.judge = Judge()

    def images(
        self, schedule: Schedule, prompts: list[Prompt], n: int, first: int = TEST
    ) -> Tensor:
        """Images of the n seeds from `first`, cached in chunks."""
        parts = [self._chunk(schedule, prompts, first + k) for k in range(0, n, CHUNK)]
        return torch.cat(parts)[:n]

    def _chunk(self, schedule: Schedule, prompts: list[Prompt], start: int) -> Tensor:
        key = json.dumps([schedule.to_json(), [p.text for p in prompts], start, self.digest()])
        path = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"
        if not path.exists():
            places = range(start, start + CHUNK)
            picks = [prompts[k % len(prompts)].text for k in places]
            batches = generate(self.model, schedule, picks, places, batch_size=self.batch)
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
            + (f"  alignment {percent(row['alignment'])}" if labels else ""),
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
        bench.line("real, contrast of 95 %", (0.95 * real).round().byte()),
        bench.line("real, contrast of 90 %", (0.9 * real).round().byte()),
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


def best_of(
    bench: Bench, named: list[tuple[str, Schedule]], prompts: list[Prompt], keep: int
) -> list[tuple[str, Schedule]]:
    """The schedules of least FD on a few images of other seeds."""
    labels = labels_of(prompts, SCREEN)
    scores = []
    for name, schedule in named:
        row = bench.line(name, bench.images(schedule, prompts, SCREEN, SELECTION), labels)
        scores.append(row[EXTRACTORS[0]])
    return [named[i] for i in np.argsort(scores)[:keep]]


def labels_of(prompts: list[Prompt], n: int) -> list[int]:
    return [prompts[k % len(prompts)].label or 0 for k in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--data", type=Path, default=data.DEFAULT_FOLDER)
    parser.add_argument("--out", type=Path, default=Path("runs/model-card"))
    parser.add_argument("--floors", action="store_true", help="end with real images")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = load(args.model)
    bench = Bench(model, args.batch, args.out / "cache")
    prompts = load_prompts("fashion-mnist")
    noise, n = model.noise, args.images
    real, real_labels = data.load_split(args.data, "train")

    if args.floors:
        floors(bench, rgb(real[:n]), real_labels[:n])
        return

    def teacher(w: float) -> tuple[str, Schedule]:
        plan = make_schedule("linspace", 50, noise, order=2, guidance_scale=w)
        return f"teacher, 50 steps of DPM++(2M), w {w:g}", plan

    print(f"-- {SCREEN} images of the selection seeds: which guidance and placements")
    finalists = best_of(bench, [teacher(w) for w in SCALES], prompts, 1)
    for steps in args.steps:
        guided = [
            (f"{grid}, {steps} steps, w {w:g}", make_schedule(grid, steps, noise, guidance_scale=w))
            for grid in args.grids
            for w in SCALES
        ]
        unguided = [
            (f"{grid}, {2 * steps} steps, w 1", make_schedule(grid, 2 * steps, noise))
            for grid in args.grids
        ]
        finalists += best_of(bench, guided, prompts, FINALISTS)
        finalists += best_of(bench, unguided, prompts, 1)

    print(f"-- {n} images")
    rows = floors(bench, rgb(real[:n]), real_labels[:n])
    aligned = bench.images(teacher(2.0)[1], prompts, n)
    save_sheet(aligned[:100], args.out / "teacher.png", 10)
    nearest(aligned[:20], args.data, args.out / "nearest.png")
    held_out = load_prompts("fashion-mnist", held_out=True)
    images = bench.images(teacher(2.0)[1], held_out, n)
    rows.append(bench.line("teacher, w 2, held-out prompts", images, labels_of(held_out, n)))
    for name, schedule in finalists:
        rows.append(bench.line(name, bench.images(schedule, prompts, n), labels_of(prompts, n)))
    rows.append({"name": "seconds per 5-step guided image", "value": speed(bench, prompts)})
    print(f"{1000 * rows[-1]['value']:.1f} ms per 5-step guided image in batches of {args.batch}")
    write_whole(args.out / "rows.json", lambda p: p.write_text(json.dumps(rows, indent=1)))


if __name__ == "__main__":
    main()
