"""The page of `bench_second.py`: that of gains, and what each gain does to what is known."""

from peers.gains import table

ABOUT = """# The same on a second model

By `python scripts/bench/bench_second.py`; below each table is with which settings. The model is the exact posterior mean over a
thousand coloured letters in 32 × 32 pixels, smoothed: it has no weights and no errors, so that what a schedule gains on it is
the solver's, not the network's. The searches had it as a study has yours (`model = "module:function"`). FD of `letters`, a
classifier of such letters, is what they saw and what guidance scales and gains were chosen by; the two other rulers were seen
by nobody, and `mean` is the geometric mean of the three. Alignment is what another classifier reads. Scores ± standard errors
are of fresh seeds; lower is better. `ours over it` is by how much the median of our searches is below (-) or above (+) a row's
mean, paired image by image. Below each table is what a constant gain does to the FD of `letters` on selection seeds."""  # noqa: E501


def page(found: list[dict]) -> str:
    """Markdown of all columns."""
    return "\n".join([ABOUT, *(line for rows in found for line in [*table(rows), *_more(rows)])])


def _more(rows: dict) -> list[str]:
    real, known, (first, last) = rows["real"], rows["settings"], rows["seeds"]
    each = ", ".join(f"{real[key]:.1f}" for key in real if key not in ("mean", "se"))
    curves = rows["curves"]
    gains = list(next(iter(curves.values())))
    lines = [
        "",
        f"As many draws of the distribution itself, what a perfect sampler gives: {each}; mean "
        f"{real['mean']:.2f} ± {real['se']:.2f}.",
        "",
        f"n = {rows['n']:,}, seeds {first:,} to {last:,}; scales of guidance on "
        f"{known['selection'][0]} images, the best two and gains on {known['selection'][1]}; our "
        f"searches have {known['trials']} trials of at most {known['trial_images']} images, and "
        f"polish {known['polish']} finalists, with gains, for {known['iterations']} iterations.",
        "",
        f"| gain | {' | '.join(f'{float(gain):g}' for gain in gains)} |",
        "|---|" + "---|" * len(gains),
    ]
    for name, values in curves.items():
        least = min(values.values())
        shown = [f"**{v:.1f}**" if v == least else f"{v:.1f}" for v in values.values()]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines
