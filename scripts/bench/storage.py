"""What storages cost a search: time that workers wait, the parent's loop, asking for a trial.

    python scripts/bench/storage.py waiting [--storages journal postgres grpc] [--workers 4 16 64]
    python scripts/bench/storage.py costs [--trials 100 1000 10000] [--against CHECKOUT]

`waiting` lets as many processes of this machine as are asked for take part in a search as workers
do, whose measurements are sleeps of --seconds, a fifth more or less, and which begin one after the
other over the time of a trial. What else their time goes to is the storage's, but for their own
computing: random points, and a distance. When other programs
have the cores a worker's clock stands still, but not a server's: on a busy machine shares are upper
bounds, and one worker among --under-way trials of others says more. PostgreSQL is Debian's
(`apt-get install postgresql`), started for this alone; Optuna's proxy stands before it.

`costs` fills a journal with trials and gives the CPU milliseconds of one turn of the loop of
`stepsearch run`, and the CPU seconds that a worker needs beside its measurements for a trial, most
of it thinking of a point; the other build, another checkout of this repository, in turns with this
one, on a journal of the same trials.
"""

import argparse
import resource
import signal
import sys
from pathlib import Path

import torch

from cluster.builds import SERVE, serve
from cluster.costs import MEMORY, answer, costs
from cluster.waiting import STORAGES, waiting


def main(argv: list[str] | None = None) -> None:
    if SERVE in (argv if argv is not None else sys.argv):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        serve(answer)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="what", required=True)
    one = parts.add_parser("waiting")
    one.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    one.add_argument("--workers", nargs="+", type=int, default=[4, 16, 64])
    one.add_argument("--seconds", type=float, default=30.0, help="of a trial")
    one.add_argument("--each", type=int, default=4, help="trials of a worker")
    one.add_argument("--under-way", type=int, default=0, help="trials of workers elsewhere")
    two = parts.add_parser("costs")
    two.add_argument("--trials", nargs="+", type=int, default=[100, 1000, 10000])
    two.add_argument("--algorithms", nargs="+", default=["gp-local", "tpe", "random"])
    two.add_argument("--steps", type=int, default=3, help="of the schedules: the size of the box")
    two.add_argument("--turns", type=int, default=5, help="of the loop, in each round")
    two.add_argument("--asks", type=int, default=8, help="of an algorithm, in each round")
    two.add_argument("--rounds", type=int, default=3)
    two.add_argument("--against", type=Path, metavar="CHECKOUT")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.what == "waiting":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the server as well
        waiting(args.storages, args.workers, args.seconds, args.each, args.under_way)
    else:
        costs(args, __file__)


if __name__ == "__main__":
    main()
