"""The options of `bench_peers.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from peers.studies import ABLATION, EXTRACTORS, MORE, RIVAL_SEARCHES, UNGUIDED
from stepsearch.config.parts import RIVALS

STEPS = (3, 5, 8, 4, 6, 10)  # the most telling ones first
SEARCHING = (5, 8)  # numbers of steps at which the searching rivals take part
BATCH = 50


def parse(
    argv: Sequence[str] | None, about: str
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its errors, and what was asked for."""
    parser = argparse.ArgumentParser(description=about)
    add = parser.add_argument
    add("--steps", type=int, nargs="+", default=list(STEPS))
    add("--searching", type=int, nargs="*", default=list(SEARCHING), help="steps of OYS, USF")
    add("--add", action="store_true", help="only OYS, USF and what --also asks for, to the table")
    add("--times", type=float, default=3.0, help="our passes that the trials of OYS, USF have")
    add("--ablation", action="store_true", help="the ablation instead, at --ablation-steps")
    add("--ablation-steps", type=int, nargs="+", default=[5])
    late = list(ABLATION)[list(ABLATION).index(MORE) + 1 :]
    add("--axes", nargs="*", choices=late, default=[], help="only these, each alone beside ours")
    add("--transfer", action="store_true", help="test what was chosen elsewhere instead")
    add("--seeds", type=int, default=1, help="searches of ours, or of each row of the ablation")
    add("--rivals", nargs="*", default=list(RIVALS))
    every = [name + form for name in RIVAL_SEARCHES for form in ("", UNGUIDED)]
    add("--rival-searches", nargs="*", choices=every, default=list(RIVAL_SEARCHES))
    add("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0], help="guidance scales")
    add("--rungs", type=int, nargs=2, default=[100, 500], help="images of the screening")
    add("--trials", type=int, default=100, help="of our search")
    add("--images", type=int, default=300, help="of a trial of ours")
    add("--ladder", type=int, nargs="*", default=[], help="its rungs before that")
    add("--rival-images", type=int, default=1000, help="of a trial of a rival's, at most")
    add("--finalists", type=int, default=8)
    add("--selection", type=int, default=1000, help="images that choose among the finalists")
    add("--teacher-steps", type=int, default=50, help="of the searches' teacher")
    add("--test", type=int, default=5, help="screened schedules that are tested")
    add("--images-test", type=int, default=5000)
    add("--long", type=int, nargs="*", default=[20, 100], help="steps of rows that cost more")
    add("--long-images", type=int, default=2000, help="that choose the guidance of these")
    add("--batch", type=int, default=BATCH)
    add("--model", default="tiny")
    add("--second", default="tiny-second", help="the other weights of --transfer")
    add("--extractors", nargs=2, default=EXTRACTORS, help="the searches see the first alone")
    add("--also", nargs="*", default=[], help="extractors that further searches of ours see")
    add("--device", default="cpu", help="cpu, cuda:0, …")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--compile", action="store_true", help="the network, by torch")
    add("--processes", type=int, default=2)
    add("--hours", type=float, default=float("inf"), help="then stop; a further call goes on")
    add("--run", type=Path, default=Path("runs/peers"))
    add("--docs", type=Path, default=Path("docs"))
    add("--dry-run", action="store_true", help="print passes and hours, and end")
    args = parser.parse_args(argv)
    args.held_out = False
    args.elsewhere = {
        "held-out prompts": {"held_out": True},
        f"the weights of {args.second}": {"model": args.second},
    }
    return parser, args
