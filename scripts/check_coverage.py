"""Does the standard error cover? Repeated draws on the bundled model.

    python scripts/check_coverage.py --images 250 --draws 40     # prints passes before it starts

Draws one schedule's images on seeds of their own, scores each draw with its block jackknife, and
compares with the spread and the mean of the draws: the errors should be as large as the spread, and
95 % intervals should hold the mean of FD at this n. Measurements are cached; a second run resumes.
"""

import argparse
from pathlib import Path

import numpy as np

from stepsampler.grids import make_schedule
from stepsearch.config import StudyConfig
from stepsearch.distance import score, score_infinity, score_kernel
from stepsearch.evaluate import Evaluator, seeds_of

FIRST = 60_000_000  # of no study


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--grid", default="power")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--run", type=Path, default=Path("runs/coverage"))
    args = parser.parse_args(argv)
    config = StudyConfig.model_validate(
        {"name": "coverage", "space": {"num_steps": args.steps, "passes": 2 * args.steps}}
    )
    evaluator = Evaluator(config, args.run)
    schedule = make_schedule(
        args.grid,
        args.steps,
        evaluator.model.noise,
        order=2,
        guidance_scale=args.guidance_scale,
    )
    passes = schedule.passes * args.images * args.draws
    print(f"{args.draws} draws of {args.images} images, {passes:,} passes", flush=True)
    draws = [
        evaluator.measure(schedule, seeds_of(FIRST + k * args.images, args.images)).features
        for k in range(args.draws)
    ]
    reference = evaluator.reference
    assert reference.sample is not None
    sample = reference.sample
    for name, call in (
        ("FD", lambda x: score(x, reference.search)),
        ("FD-infinity", lambda x: score_infinity(x, reference.search)),
        ("KID", lambda x: score_kernel(x, sample)),
    ):
        scores = [call(x) for x in draws]
        values = np.array([s.value for s in scores])
        inside = [abs(s.value - values.mean()) <= s.quantile * s.se for s in scores]
        print(
            f"{name:<12} mean {values.mean():.4g}, spread {values.std(ddof=1):.3g}, "
            f"mean error {np.mean([s.se for s in scores]):.3g}, "
            f"{np.mean(inside):.0%} of the intervals hold the mean"
            + (" (marked conservative)" if scores[0].conservative else "")
        )


if __name__ == "__main__":
    main()
