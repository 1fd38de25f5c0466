"""Hundreds of runs in trouble: killed, frozen, moved, without disk, database or MLflow.

    python scripts/chaos.py --rounds 100 --seed 0
    python scripts/chaos.py --only 17 --seed 0 --keep   # that round again, its folder stays

Each round is a run of the package with a formula in the place of a model (scripts/trouble/stub.py),
one to four troubles at random moments, and the same command again until it has ended. Then the
budget must be met once, no trial lost, doubled or left, the exported file whole and that of an
undisturbed run with the same trials, and MLflow equal to the storage. No wait is longer than
minutes. A line a round; the exit code is 1 if anything did not hold.

PostgreSQL is tried where it is installed, a full disk where this user may mount one (in a namespace
of their own: `unshare -rm python scripts/chaos.py`), else these rounds leave that out and say so.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from trouble import stub  # noqa: E402
from trouble.rounds import Servers, play  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one round of those")
    parser.add_argument("--plan", nargs="+", help="these rounds, see scripts/trouble/rounds.py")
    parser.add_argument("--keep", action="store_true", help="folders of all rounds")
    parser.add_argument("--folder", type=Path, help="for the rounds; default a temporary one")
    args = parser.parse_args()
    above = args.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    above.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the servers too
    stub.set_up()
    faults = 0
    count = len(args.plan) if args.plan else args.rounds
    wanted = range(count) if args.only is None else [args.only]
    with Servers(above / "servers") as servers:
        for number in wanted:
            place = above / f"seed{args.seed}-round{number}"
            shutil.rmtree(place, ignore_errors=True)
            began = time.monotonic()
            plan = args.plan[number] if args.plan else None
            said, whole = play(place, f"{args.seed}/{number}", servers, plan)
            faults += not whole
            print(f"round {number}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
            if whole and not args.keep:
                shutil.rmtree(place, ignore_errors=True)
    print(
        f"{len(wanted)} rounds of seed {args.seed}, {faults} with a fault"
        + (f", kept in {above}" if faults else "")
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
