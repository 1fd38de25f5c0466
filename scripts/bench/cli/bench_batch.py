"""Memory of `stepsample batch` by the length of a set, and its time an image beside another build.

python scripts/bench/cli/bench_batch.py [--against CHECKOUT] [--counts 1000,10000] [--rounds 3]

Of each set, one caption in 200 is broken: empty, a number, a list. The other build, another
checkout of this repository, is given the whole captions alone, in turns with this one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[3]
WORDS = ("ankle boot", "bag", "coat", "dress", "pullover", "sandal", "shirt", "sneaker", "trouser")
BROKEN = ("", 7, None, ["a bag"], "   ")
SCHEDULE = "tiny-3-steps"


def caption_file(folder: Path, count: int, broken: bool) -> Path:
    """JSON lines with a `caption` each."""
    lines = []
    for k in range(count):
        lost = broken and k % 200 == 100
        caption = BROKEN[k // 200 % len(BROKEN)] if lost else WORDS[k % len(WORDS)]
        lines.append(json.dumps({"caption": caption}))
    path = folder / f"captions-{count}{'-broken' if broken else ''}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def batch(checkout: Path, prompts: Path, out: Path, schedule: Path) -> dict[str, float]:
    """Images, wall and CPU seconds, and the peak in MiB of one call."""
    paths = os.pathsep.join(str(checkout / half) for half in ("search", "sampler"))
    command = [sys.executable, "-c", "from stepsampler.cli import main; main()", "batch"]
    command += [str(schedule), "--prompts", str(prompts), "--out", str(out), "--column", "caption"]
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    images = len(list(out.glob("*.png")))
    if not images:
        raise SystemExit(f"no image was made by: {' '.join(command)}")
    return {
        "images": images,
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--counts", default="1000,10000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    schedule = HERE / "studies" / f"{SCHEDULE}.schedule.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = [int(count) for count in options.counts.split(",")]
        for turn in range(options.rounds):
            for count in counts:
                prompts = caption_file(folder, count, broken=True)
                row = batch(HERE, prompts, folder / f"{turn}-{count}", schedule)
                print(f"{count:,} captions: {figures(row)}", flush=True)
            if options.against is None:
                continue
            prompts = caption_file(folder, min(counts), broken=False)
            ours = batch(HERE, prompts, folder / f"{turn}-ours", schedule)
            theirs = batch(options.against, prompts, folder / f"{turn}-theirs", schedule)
            print(f"this build:  {figures(ours)}")
            print(f"that build:  {figures(theirs)}")
            for kind in ("wall", "cpu"):
                ratio = ours[kind] / ours["images"] / (theirs[kind] / theirs["images"])
                print(f"{kind} an image, this / that: {ratio:.3f}", flush=True)


def figures(row: dict[str, float]) -> str:
    each = 1000 * row["cpu"] / row["images"]
    return (
        f"{row['images']:,.0f} images, {row['wall']:.1f} s, {each:.1f} ms of CPU an image, "
        f"peak {row['peak']:.1f} MiB"
    )


if __name__ == "__main__":
    main()
