"""The tables of `compare_methods.py` in markdown, and what they say in sentences."""

from stepsampler.errors import percent
from stepsearch.compare.table import with_error

BEATEN = "(loses)"
ABOUT = """# Published methods for few steps, on the bundled model

By `python scripts/compare_methods.py`: FD of images of fresh seeds, ± its standard error, each method at the guidance
scale w that is best on selection seeds by the geometric mean of both FDs, of those in brackets. A call of the network is
the papers' NFE, and two passes under guidance. Raw [golden noise](golden-noise.md) has two calls more, learned is of the
bundled network, whose training is not counted here; AMED, learned, is no schedule and has neither. Differences are to
UniPC, paired, with their 95 % interval: above 0 the method loses to it. Lower is better. `found with` says what learning,
estimating or searching took in network passes, one backwards as two, and then what choosing the scale took. Differences in
bfloat16 need not be those in float32, so that tables of different dtypes do not compare.

AMED and NeuralSolver-like weights are learned at w 2 by our own code, for as short as each table says: their authors
train longer. The weights of NeuralSolver-like start from DPM++(2M), and those of a step are of all predictions so far.
DPM-Solver-v3 has statistics of each scale, and is tried at UniPC's best two alone. Ours is our search as it is called,
under both extractors at once, with a guidance scale of each step and, where that is better, fewer passes."""  # noqa: E501


def page(found: dict, every: list[int], names: list[str]) -> str:
    """Of the numbers of calls that are measured, and which of `every` and of `names` are not."""
    lines = [ABOUT]
    for rows in found["calls"]:
        lines += ["", f"## {rows['calls']} calls", "", *column(rows, names)]
    measured = {rows["calls"] for rows in found["calls"]}
    for calls in (n for n in every if n not in measured):
        lines += ["", f"## {calls} calls", "", "Not measured."]
    return "\n".join([*lines, ""])


def column(rows: dict, names: list[str]) -> list[str]:
    """What is said of one number of calls."""
    keys = [key for key in rows["contenders"][0]["scores"] if key != "alignment"]
    heads = [f"`{key}` | minus UniPC" for key in keys]
    lines = [
        f"| method | w | passes | {' | '.join(heads)} | alignment | found with |",
        "|---|---|---|" + "---|---|" * len(keys) + "---|---|",
    ]
    for row in rows["contenders"]:
        w = "its own"
        if "tried" in row:
            tried = ", ".join(f"{scale:g}" for scale in row["tried"])
            w = f"{row['guidance_scale']:g} ({tried})"
        cells = [row["name"], w, f"{row['passes']:g}"]
        for key in keys:
            score = row["scores"][key]
            cells += [with_error(score["value"], score["standard_error"])]
            cells += [difference(rows, row["name"], key)]
        cells.append(percent(row["scores"]["alignment"]["value"]))
        taken = [row[key]["passes"] for key in ("learning", "choosing") if key in row]
        cells.append(" + ".join(f"{passes:,}" for passes in taken))
        lines.append(f"| {' | '.join(cells)} |")
    missing = [name for name in names if all(row["name"] != name for row in rows["contenders"])]
    said = [*verdicts(rows, keys), *edges(rows)]
    said += [f"Not measured here: {'; '.join(missing)}."] if missing else []
    said.append(provenance(rows))
    return lines + [line for sentence in said for line in ("", sentence)]


def verdicts(rows: dict, keys: list[str]) -> list[str]:
    """Which methods lose to UniPC under which FD, and which under none."""
    said, losers = [], set[str]()
    for key in keys:
        beaten = [
            row["name"]
            for row in rows["contenders"]
            if difference(rows, row["name"], key).endswith(BEATEN)
        ]
        losers |= set(beaten)
        said.append(f"Under `{key}` these lose to UniPC: {'; '.join(beaten) or 'none'}.")
    others = [row["name"] for row in rows["contenders"][1:] if row["name"] not in losers]
    said.append(f"Under neither these lose to it: {'; '.join(others) or 'none'}.")
    return said


def difference(rows: dict, name: str, metric: str) -> str:
    for entry in rows["differences"]:
        if (entry["contender"], entry["metric"]) == (name, metric):
            low, high = entry["interval_95"]
            verdict = f" {BEATEN}" if low > 0 else ""
            return f"{entry['difference']:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}"
    return ""


def edges(rows: dict) -> list[str]:
    """Of which methods the best scale is the first or the last of the grid."""
    scales = sorted(rows["settings"]["scales"])
    found = [
        row["name"]
        for row in rows["contenders"]
        if row.get("guidance_scale") in (scales[0], scales[-1])
    ]
    return [f"At an edge of the scales, beyond which may be better: {'; '.join(found)}."][
        : len(found)
    ]


def provenance(rows: dict) -> str:
    """Command, images, seeds, versions, and what all of it took."""
    known, versions = rows["settings"], rows["versions"]
    first, last = rows["seeds"]
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    few, many = known["selection"]
    compiled = ", compiled" if known["compile"] else ""
    scales = ", ".join(f"{w:g}" for w in sorted(known["scales"]))
    return (
        f"`{rows['command']}`: {rows['n']:,} images of the seeds {first:,} to {last:,}, in "
        f"{known['dtype']}{compiled}; scales {scales}, from 2 on to the better neighbour by {few} "
        f"images, and the best two of them by {many}; AMED learned from {known['trajectories']} "
        f"trajectories, NeuralSolver-like weights in {known['iterations']} iterations of "
        f"{known['part']} of {known['taught']}, statistics of DPM-Solver-v3 come from "
        f"{known['samples']} (those of w 2 are the bundled ones); our search has "
        f"{known['trials']} trials of at most {known['trial_images']} images. Learning and "
        f"searching are in float32. With the test {rows['spent']['passes']:,} passes, "
        f"{rows['spent']['seconds'] / 60:.0f} CPU minutes. "
        f"{with_versions}."
    )
