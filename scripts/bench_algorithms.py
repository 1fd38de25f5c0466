"""Held-out FD against search passes, for each search algorithm and several search seeds.

    stepsearch run studies/tiny-3-steps.toml
    python scripts/bench_algorithms.py runs/tiny-3-steps --trials 60 --seeds 3 --out docs/algorithms

Every search starts from the points that the finished run in the folder was given (its baselines),
in the same box. After each of --at trials, the best feasible trial so far is scored on selection
seeds, which no search sees. Prints passes and hours before it starts; resumes; stops at --hours.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch

from stepsearch.config import StudyConfig
from stepsearch.distance import score
from stepsearch.evaluate import SELECTION, Evaluator, seeds_of
from stepsearch.study import (
    alignment_floor,
    claimed,
    enqueue,
    finished,
    open_study,
    planned_space,
    run_trials,
    schedule_of,
)

ALGORITHMS = ("random", "tpe", "cmaes", "gp")


def one_search(
    source: Path, folder: Path, config: StudyConfig, budgets: list[int], threads: int, end: float
) -> list[dict]:
    """One search in this process; a row for each budget it reached before `end`."""
    torch.set_num_threads(threads)
    evaluator = Evaluator(config, source / "cache", "cpu")
    space = planned_space(source, config, evaluator.model.noise, evaluator.model.spec)
    given = [t for t in finished(open_study(source, claimed(source))) if "origin" in t.user_attrs]
    floor = alignment_floor(source)
    rows = []
    for budget in budgets:
        study = open_study(folder, config)
        enqueue(study, [(t.params, t.user_attrs["origin"]) for t in given])
        some = config.search.model_copy(update={"trials": budget})
        run_trials(
            study,
            folder,
            config.model_copy(update={"search": some}),
            space,
            evaluator,
            floor,
            deadline=end,
        )
        trials = finished(study)[:budget]
        if len(trials) < budget:
            break
        best = min(trials, key=lambda t: (t.user_attrs["alignment"] < floor, t.value))
        seeds = seeds_of(SELECTION, config.evaluation.selection_images)
        found = score(
            evaluator.measure(schedule_of(best), seeds).features, evaluator.reference.search
        )
        images = config.evaluation.images
        rows.append(
            {
                "algorithm": config.search.algorithm,
                "seed": config.search.seed,
                "trials": budget,
                "passes": sum(t.user_attrs["passes"] for t in trials) * images,
                "searched": best.value,
                "fd": found.value,
                "se": found.se,
            }
        )
    return rows


def table(rows: list[dict], budgets: list[int]) -> str:
    """Mean over search seeds of the held-out FD, and the range, for each budget."""
    lines = ["| algorithm | " + " | ".join(f"{b} trials" for b in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for algorithm in ALGORITHMS:
        cells = []
        for budget in budgets:
            values = [
                r["fd"] for r in rows if r["algorithm"] == algorithm and r["trials"] == budget
            ]
            cells.append(
                f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""
            )
        lines.append(f"| {algorithm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for algorithm in ALGORITHMS:
        mine = [r for r in rows if r["algorithm"] == algorithm]
        budgets = sorted({r["trials"] for r in mine})
        groups = [[r for r in mine if r["trials"] == b] for b in budgets]
        x = [np.mean([r["passes"] for r in g]) / 1e3 for g in groups]
        y = [[r["fd"] for r in g] for g in groups]
        if groups:
            line = axes.plot(x, [np.mean(v) for v in y], marker="o", label=algorithm)[0]
            low, high = [min(v) for v in y], [max(v) for v in y]
            axes.fill_between(x, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="search, thousand network passes", ylabel="held-out FD of the best trial")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished stepsearch run")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--at", type=int, nargs="+", default=None, help="budgets to report")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/algorithms"))
    args = parser.parse_args()
    budgets = args.at or [args.trials // 4, args.trials // 2, args.trials]
    base = claimed(args.run)
    searches = []
    for seed in range(args.seeds):
        for algorithm in args.algorithms:
            search = base.search.model_copy(update={"algorithm": algorithm, "seed": seed})
            searches.append(base.model_copy(update={"search": search}))
    images = len(searches) * (
        budgets[-1] * base.evaluation.images + len(budgets) * base.evaluation.selection_images
    )
    passes = images * base.space.passes
    print(
        f"{len(searches)} searches, at most {passes / 1e6:.1f} million passes: "
        f"{passes * 0.004 / args.processes / 3600:.1f} hours at 4 ms a pass and process; "
        f"stops after {args.hours:g} hours",
        flush=True,
    )
    end = time.time() + 3600 * args.hours
    args.out.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, multiprocessing.cpu_count() // args.processes)
    rows: list[dict] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        futures = []
        for config in searches:
            folder = args.run / "algorithms" / f"{config.search.algorithm}-{config.search.seed}"
            job = (args.run, folder, config, budgets, threads, end)
            futures.append(pool.submit(one_search, *job))
        for done, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
            print(f"{done} of {len(searches)} searches", flush=True)
    text = table(rows, budgets)
    args.out.with_suffix(".md").write_text(text + "\n")
    plot(rows, args.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
