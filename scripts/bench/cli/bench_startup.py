"""Time from typing a command to its help, the smallest of several runs.

python scripts/bench/cli/bench_startup.py
"""

import subprocess
import sys
import time

RUNS = 7


def main() -> None:
    for package in ("stepsampler", "stepsearch"):
        code = f"from {package}.cli import main; main()"
        times = []
        for _ in range(RUNS):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        print(f"{package} --help: {min(times):.2f} s, median {sorted(times)[RUNS // 2]:.2f} s")


if __name__ == "__main__":
    main()
