#!/usr/bin/env python3
"""The demo of an older build and that of this one: time, passes, and what each finds.

    git clone . /tmp/before && git -C /tmp/before checkout 322786e
    python scripts/compare_demos.py /tmp/before --seeds 0 1 2 --out docs/demo

Writes a table (.md) and its numbers (.json). Both have the same test seeds and real images, so that
their FDs compare. Runs that are done are not made again: what else the machine did may differ from
run to run, so that the processor's seconds are of more use than the clock's. Cut off, the same
command goes on; what a run had taken until then is in its sum.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stepsampler.errors import percent
from stepsearch.paths import write_whole

HERE = Path(__file__).parents[1]
STUDY = Path("studies", "tiny-3-steps.toml")
CODE = "from stepsearch.cli import main; main()"
COLUMNS = ("build", "seed", "minutes", "processor seconds", "passes", "FD ± se", "alignment")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("before", type=Path, help="a checkout of the older build")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the search")
    add("--runs", type=Path, default=Path("runs/demo"), help="where the runs are")
    add("--out", type=Path, default=Path("docs/demo"), help="files without their suffix")
    add("--options", nargs="*", default=[], help="of stepsearch run, without their dashes")
    args = parser.parse_args(argv)
    builds = {"before": args.before.resolve(), "now": HERE}
    options = [f"--{option}" for option in args.options]
    rows = []
    for seed in args.seeds:
        for build, root in builds.items():
            rows.append(row(build, root, args.runs.resolve(), seed, options))
            print(" | ".join(cells(rows[-1])), flush=True)
            write(args.out, rows)
    print(compared(rows))


def row(build: str, root: Path, runs: Path, seed: int, options: list[str]) -> dict:
    """Run one demo to its end, unless that has been done."""
    folder = runs / f"{build}-{seed}"
    took = folder.with_suffix(".json")  # beside it: the folder is the run's own
    known = json.loads(took.read_text()) if took.exists() else {}
    if not known.get("done"):
        known = run(root, folder, took, known, ["--seed", str(seed), *options])
    data = json.loads((folder / "result.json").read_text())
    found = next((r for r in data["test"] if r["kind"] == "found"), data["test"][0])
    contenders = sum(r["passes"] * r["n"] for r in data["test"])
    return {
        "build": build,
        "seed": seed,
        "seconds": known["seconds"],
        "processor": known["processor"],
        "passes": data["passes"] | {"test": contenders},
        **{key: found[key] for key in ("fd", "se", "n", "alignment")},
    }


def run(root: Path, folder: Path, took: Path, before: dict, options: list[str]) -> dict:
    """One call; seconds by the clock and the processor's, of all its processes, are added up."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(str(root / part) for part in ("search", "sampler"))
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "HF_HUB_OFFLINE": "1"}
    env = {**os.environ, **quiet, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    call = [sys.executable, "-c", CODE, "run", str(STUDY), "--run", str(folder), *options]
    clock, processor = time.monotonic(), processor_seconds()
    done = False
    try:
        subprocess.run(call, cwd=root, env=env, check=True)
        done = True
    finally:
        known = {
            "done": done,
            "seconds": before.get("seconds", 0.0) + time.monotonic() - clock,
            "processor": before.get("processor", 0.0) + processor_seconds() - processor,
        }
        write_whole(took, lambda p: p.write_text(json.dumps(known)))
    return known


def processor_seconds() -> float:
    """Of the ended children of this process, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cells(found: dict) -> list[str]:
    return [
        found["build"],
        str(found["seed"]),
        f"{found['seconds'] / 60:.1f}",
        f"{found['processor']:.0f}",
        f"{sum(found['passes'].values()):,}",
        f"{found['fd']:.2f} ± {found['se']:.2f}",
        percent(found["alignment"]),
    ]


def compared(rows: list[dict]) -> str:
    """Sentences: now as a share of before, over the seeds that both have."""
    builds = {b: {r["seed"]: r for r in rows if r["build"] == b} for b in ("before", "now")}
    seeds = [seed for seed in builds["before"] if seed in builds["now"]]
    if not seeds:
        return ""
    pairs = [(builds["before"][seed], builds["now"][seed]) for seed in seeds]

    def share(of: str) -> str:
        def value(found: dict) -> float:
            return float(sum(found["passes"].values()) if of == "passes" else found[of])

        return f"{sum(value(now) for _, now in pairs) / sum(value(b) for b, _ in pairs):.2f}"

    less = np.array([now["fd"] - before["fd"] for before, now in pairs])
    error = f" ± {less.std(ddof=1) / np.sqrt(len(less)):.2f}" if len(less) > 1 else ""
    return (
        f"Now takes {share('seconds')} of the time by the clock, {share('processor')} of the "
        f"processor's and {share('passes')} of the passes. What it finds has an FD of "
        f"{less.mean():+.2f}{error} to that of before"
        + (", the mean over the seeds of the search and its standard error." if error else ".")
    )


def write(out: Path, rows: list[dict]) -> None:
    stages = list(dict.fromkeys(stage for found in rows for stage in found["passes"]))
    lines = [
        "# The demo, before and now",
        "",
        "Made by `scripts/compare_demos.py`: whole runs on one machine, each at a time of its own. "
        "Minutes depend on what else it did, the processor's seconds less. FD is of "
        f"{rows[0]['n']:,} test seeds, the same for all.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *(f"| {' | '.join(cells(found))} |" for found in rows),
        "",
        compared(rows),
        "",
        f"| passes | {' | '.join(stages)} |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for build, seed in dict.fromkeys((found["build"], found["seed"]) for found in rows):
        one = next(r for r in rows if (r["build"], r["seed"]) == (build, seed))
        counts = [f"{one['passes'].get(stage, 0):,}" for stage in stages]
        lines.append(f"| {build}, seed {seed} | {' | '.join(counts)} |")
    text = "\n".join(lines) + "\n"
    write_whole(out.with_suffix(".md"), lambda path: path.write_text(text))
    dumped = json.dumps({"rows": rows}, indent=1)
    write_whole(out.with_suffix(".json"), lambda path: path.write_text(dumped + "\n"))


if __name__ == "__main__":
    main()
