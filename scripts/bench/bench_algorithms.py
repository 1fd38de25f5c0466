"""Held-out FD against search passes: algorithms, the ladder of rungs, or an earlier run's help.

    stepsearch run studies/tiny-3-steps.toml
    python scripts/bench/bench_algorithms.py runs/tiny-3-steps --trials 60 --out docs/algorithms
    python scripts/bench/bench_algorithms.py runs/tiny-3-steps --ladder 60 125 250 --out docs/ladder
    python scripts/bench/bench_algorithms.py runs/tiny-4-steps --transfer runs/tiny-3-steps

Every search starts from the points that the finished run in the folder was given (its baselines),
in the same box. After each of --at trials, the best feasible trial so far is scored on selection
seeds, which no search sees. Prints passes and hours before it starts; resumes; stops at --hours.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from optuna.trial import TrialState

from stepsampler.errors import UserError, percent
from stepsearch.config import StudyConfig
from stepsearch.engine.claim import (
    alignment_floor,
    claim_folder,
    claimed,
    identity_of,
    planned_space,
)
from stepsearch.engine.ladder import infeasible, passes_spent
from stepsearch.engine.study import (
    enqueue,
    finished,
    open_study,
    pruned,
    reap,
    run_trials,
    schedule_of,
)
from stepsearch.engine.transfer import earlier_best, start_points
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import SELECTION, Evaluator, seeds_of

ABOUT = """\
Made by `scripts/bench/bench_algorithms.py` from the first points of the study {study}. Held-out FD
of the best trial so far, on {n} selection seeds: mean over {seeds} search seeds, and the range.

"""
ALGORITHMS = ("random", "tpe", "cmaes", "nsga2", "gp-cmaes", "gp-local", "gp")


@dataclass(frozen=True)
class Search:
    """One search: an arm of the comparison, with one search seed."""

    arm: str
    config: StudyConfig
    start: Path | None = None  # a finished run whose best trials come first


def searches(base: StudyConfig, args: argparse.Namespace) -> list[Search]:
    """Every arm with every seed; the first arm is what the others are compared with."""
    if args.ladder:
        arms = {"all images": ({}, None), "ladder": ({"rungs": args.ladder}, None)}
    elif args.transfer:
        arms = {"cold": ({}, None), f"from {args.transfer.name}": ({}, args.transfer)}
    else:
        arms = {name: ({}, None) for name in args.algorithms}
    found = []
    for seed in range(args.seeds):
        for arm, (evaluation, start) in arms.items():
            algorithm = arm if arm in ALGORITHMS else args.algorithms[-1]
            data = base.model_dump()
            data["model"] |= {"dtype": args.dtype or base.model.dtype}
            if args.ladder:
                data["evaluation"] |= {"images": args.ladder[-1], "rungs": [], **evaluation}
            data["search"] |= {"algorithm": algorithm, "seed": seed, "trials": args.trials}
            found.append(Search(arm, StudyConfig.model_validate(data), start))
    return found


def one_search(
    source: Path,
    folder: Path,
    search: Search,
    budgets: list[int],
    threads: int,
    end: float,
    device: str = "cpu",
) -> list[dict]:
    """One search in this process; a row for each budget it reached before `end`.

    Raises:
        UserError: the source's run was of another model, other real images or other prompts.
    """
    torch.set_num_threads(threads)
    config, own = search.config, claimed(source)
    evaluator = Evaluator(config, source / "cache", device)
    same = evaluator if config.model == own.model else Evaluator(own, source / "cache", device)
    if identity_of(source) != same.identity:
        raise UserError(
            f"{source}: its run was of another model, reference or prompts than are here: "
            f"{identity_of(source)!r}, not {same.identity!r}"
        )
    space = planned_space(source, config, evaluator.model)
    given = [t for t in finished(open_study(source, claimed(source))) if "origin" in t.user_attrs]
    floor = alignment_floor(source)
    claim_folder(folder, config)
    study = open_study(folder, config)
    reap(study, folder)
    if search.start:
        enqueue(study, folder, start_points(search.start, space, config.search.finalists))
    enqueue(study, folder, [(t.params, t.user_attrs["origin"]) for t in given])
    rows = []
    for budget in budgets:
        some = config.search.model_copy(update={"trials": budget})
        part = config.model_copy(update={"search": some})
        run_trials(study, folder, part, space, evaluator, floor, deadline=end)
        ended = sorted(finished(study) + pruned(study), key=lambda t: t.number)
        trials = ended[:budget]  # numbers have gaps where one failed or was killed
        if len(trials) < budget:
            break
        whole = [t for t in trials if t.state == TrialState.COMPLETE]
        best = min(whole, key=lambda t: (infeasible(t), t.value))
        seeds = seeds_of(SELECTION, config.evaluation.selection_images)
        found = score(
            evaluator.measure(schedule_of(best), seeds).features, evaluator.reference.search
        )
        rows.append(
            {
                "arm": search.arm,
                "seed": config.search.seed,
                "trials": budget,
                "finished": len(whole),
                "passes": passes_spent(trials, config.evaluation),
                "searched": best.value,
                "fd": found.value,
                "se": found.se,
            }
        )
    return rows


def summary(rows: list[dict], budgets: list[int]) -> str:
    """Mean over search seeds of the held-out FD, and the range, for each budget."""
    lines = ["| search | " + " | ".join(f"{b} trials" for b in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for arm in dict.fromkeys(r["arm"] for r in rows):
        cells = []
        for budget in budgets:
            values = [r["fd"] for r in rows if r["arm"] == arm and r["trials"] == budget]
            cells.append(
                f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""
            )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ladder_table(rows: list[dict], budget: int) -> str:
    """Passes and held-out FD of either arm, seed by seed, and what the ladder saves and costs."""
    lines = [
        "| search seed | passes, all images | passes, ladder | saved | FD, all images | FD, ladder "
        "| loss |",
        "|---" * 7 + "|",
    ]
    last = {(r["arm"], r["seed"]): r for r in rows if r["trials"] == budget}
    seeds = sorted({s for _, s in last if ("all images", s) in last and ("ladder", s) in last})
    pairs = [(last["all images", s], last["ladder", s]) for s in seeds]
    for s, (plain, ladder) in zip(seeds, pairs, strict=True):
        lines.append(
            f"| {s} | {plain['passes']:,} | {ladder['passes']:,} "
            f"| {percent(1 - ladder['passes'] / plain['passes'], '.0')} "
            f"| {plain['fd']:.2f} ± {plain['se']:.2f} | {ladder['fd']:.2f} ± {ladder['se']:.2f} "
            f"| {ladder['fd'] - plain['fd']:+.2f} |"
        )
    if len(pairs) > 1:
        passes = np.array([[r["passes"] for r in pair] for pair in pairs])
        fds = np.array([[r["fd"] for r in pair] for pair in pairs])
        means, ses = fds.mean(0), fds.std(0, ddof=1) / np.sqrt(len(pairs))
        loss = fds[:, 1] - fds[:, 0]
        lines.append(
            f"| mean ± se over seeds | {passes[:, 0].mean():,.0f} | {passes[:, 1].mean():,.0f} "
            f"| {percent(1 - passes[:, 1].sum() / passes[:, 0].sum(), '.0')} "
            f"| {means[0]:.2f} ± {ses[0]:.2f} | {means[1]:.2f} ± {ses[1]:.2f} "
            f"| {loss.mean():+.2f} ± {loss.std(ddof=1) / np.sqrt(len(loss)):.2f} |"
        )
    return "\n".join(lines)


def transfer_table(rows: list[dict], arm: str, budgets: list[int]) -> str:
    """Passes until the held-out FD with which the cold start ended was reached, seed by seed."""
    lines = ["| search seed | FD, cold | passes, cold | passes until then | saved |"]
    lines.append("|---" * 5 + "|")
    for seed in sorted({r["seed"] for r in rows}):
        mine = [r for r in rows if r["seed"] == seed]
        cold = [r for r in mine if r["arm"] == "cold" and r["trials"] == budgets[-1]]
        warm = sorted((r for r in mine if r["arm"] == arm), key=lambda r: r["trials"])
        if not cold or not warm:
            continue
        goal = cold[0]
        then = next((r["passes"] for r in warm if r["fd"] <= goal["fd"]), None)
        cells = f"| {seed} | {goal['fd']:.2f} ± {goal['se']:.2f} | {goal['passes']:,} "
        saved = "" if then is None else percent(1 - then / goal["passes"], ".0")
        lines.append(cells + f"| {'not reached' if then is None else f'{then:,}'} | {saved} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for arm in dict.fromkeys(r["arm"] for r in rows):
        mine = [r for r in rows if r["arm"] == arm]
        budgets = sorted({r["trials"] for r in mine})
        groups = [[r for r in mine if r["trials"] == b] for b in budgets]
        x = [np.mean([r["passes"] for r in g]) / 1e3 for g in groups]
        y = [[r["fd"] for r in g] for g in groups]
        if groups:
            line = axes.plot(x, [np.mean(v) for v in y], marker="o", label=arm)[0]
            low, high = [min(v) for v in y], [max(v) for v in y]
            axes.fill_between(x, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="search, thousand network passes", ylabel="held-out FD of the best trial")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished stepsearch run")
    parser.add_argument(
        "--algorithms",
        nargs="+",
        choices=ALGORITHMS,
        default=ALGORITHMS,
        help="compared; the last one is that of --ladder and --transfer",
    )
    parser.add_argument("--ladder", type=int, nargs="+", default=None, help="rungs, in images")
    parser.add_argument("--transfer", type=Path, default=None, help="folder of an earlier run")
    parser.add_argument("--dtype", default=None, help="instead of the run's, such as bfloat16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--at", type=int, nargs="+", default=None, help="budgets to report")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, …")
    parser.add_argument("--out", type=Path, default=Path("docs/algorithms"))
    args = parser.parse_args()
    quarter = args.trials // 4
    budgets = args.at or (
        [*range(quarter // 2, args.trials, max(1, quarter // 2)), args.trials]
        if args.transfer
        else [quarter, args.trials // 2, args.trials]
    )
    try:
        base = claimed(args.run)
        if args.transfer:
            earlier_best(args.transfer, 1)  # refuses before the first image
    except UserError as error:
        parser.error(str(error))
    planned = searches(base, args)
    evaluation = planned[0].config.evaluation
    images = len(planned) * (
        budgets[-1] * evaluation.images + len(budgets) * evaluation.selection_images
    )
    passes = images * base.space.passes
    print(
        f"{len(planned)} searches, at most {passes / 1e6:.1f} million passes: "
        f"{passes * 0.004 / args.processes / 3600:.1f} hours at 4 ms a pass and process; "
        f"stops after {args.hours:g} hours",
        flush=True,
    )
    end = time.monotonic() + 3600 * args.hours
    args.out.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, multiprocessing.cpu_count() // args.processes)
    rows: list[dict] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=context) as pool:
        futures = []
        for search in planned:
            name = f"{search.arm} {search.config.search.algorithm} {search.config.model.dtype}"
            folder = f"{name} {'-'.join(map(str, args.ladder or ()))} {search.config.search.seed}"
            path = args.run / "algorithms" / "-".join(folder.split())
            job = (args.run, path, search, budgets, threads, end, args.device)
            futures.append(pool.submit(one_search, *job))
        for done, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1))
            print(f"{done} of {len(planned)} searches", flush=True)
    order = list(dict.fromkeys(search.arm for search in planned))
    rows.sort(key=lambda r: (order.index(r["arm"]), r["seed"], r["trials"]))
    text = summary(rows, budgets)
    if args.ladder:
        text += "\n\n" + ladder_table(rows, budgets[-1])
    if args.transfer:
        text += "\n\n" + transfer_table(rows, order[-1], budgets)
    head = ABOUT.format(seeds=args.seeds, study=base.name, n=evaluation.selection_images)
    args.out.with_suffix(".md").write_text(head + text + "\n")
    plot(rows, args.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
