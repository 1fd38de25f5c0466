"""All that needs a GPU, in eight minutes on one card, as one table."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from gpu.bench import Bench
from gpu.table import ROWS, as_data, line_of, page_of, run_rows

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"


def main(argv: list[str] | None = None) -> int:
    """0: nothing failed or missed what is wanted; 1: something did; 2: it cannot be run so."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU; concludes nothing")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", default="", help="names of rows, with commas between")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    parser.add_argument("--write-table", action="store_true", help="docs/gpu.md")
    args = parser.parse_args(argv)
    if args.list:
        for name, row in ROWS.items():
            print(f"{name:<12} {row.seconds:>4.0f} s  {row.what}; wanted {row.wanted}")
        return 0
    names = [name for name in args.only.split(",") if name] or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        return refused(f"--only: there is no row {unknown[0]!r}; --list names them")
    if args.write_table and (args.dry or args.only):
        return refused("--write-table is for a whole check on a GPU, not for --dry or --only")
    if not args.dry and not torch.cuda.is_available():
        return refused("torch finds no CUDA device here; --dry runs the same code on the CPU")
    device = torch.device("cpu" if args.dry else args.device)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder), args.dry)
        results = run_rows(bench, names, lambda result: print(line_of(result), flush=True))
    data = as_data(bench, results)
    print(", ".join(f"{name} {value}" for name, value in data["device"].items()))
    if args.dry:
        print("a dry run: tiny models on a CPU, whose times conclude nothing")
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    if args.write_table:
        DOCS.write_text(page_of(data), encoding="utf-8")
        print(f"wrote {DOCS}")
    return int(any(result.verdict in ("MISS", "failed") for result in results))


def refused(sentence: str) -> int:
    print(f"gpu_check: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
