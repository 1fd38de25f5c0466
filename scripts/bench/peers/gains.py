"""The page of `bench_gains.py`: a table for each number of steps, and what it comes to."""

from stepsampler.errors import percent
from stepsearch.compare.table import with_error

DRAWN = "gains.json"
ABOUT = """# Rivals with a gain, and ours

By `python scripts/bench/bench_gains.py`; below each table is with which settings. A constant gain multiplies what each step takes of the
network's predictions; it costs no pass. Each schedule of [benchmarks.md](benchmarks.md) is here as published, and with the
gain that is best for it on selection seeds, found as its guidance scale was. Ours with gains are searches of now, which polish
what they find, and have a gain, of all steps or of each, in the polish alone or in the box already, as below each table. The median
of their seeds is the one that all are compared with.
Scores ± standard errors are of fresh seeds; lower is better. `mean` is the geometric mean of the four distances. Gains were
chosen by the first two; the searches saw the first, in some columns both, as below each table, which also says whether they saw
the FD of an [untrained network](searching.md#a-guard-against-over-fitting) too; the others were seen by none of them, though the settings of our searches of eight to
twelve passes were chosen with all four in view, on other seeds. `polished` is
the best known guided schedule with its gain after a polish on what the searches see, without any search; its passes are with
the choice among all of them. `ours over it` is by how much the median
of ours is below (-) or above (+) a row's mean, paired image by image.

Further rivals are made here, with a teacher of 50 steps of DPM++(2M) at guidance 2, whose passes count, and with their best
gain too. A table has those that were measured for it; the others have not been yet (the script can add some of them to a table later):

- **S4S-like** and **Dual-Solver-like** have the freedom of our [polish](polish.md): levels, scales and weights. They descend on
  the squared distance from the teacher's end on the same noise (LD3, S4S), or on the cross-entropy of the frozen judge of
  alignment (Dual-Solver): 40 iterations of 10 images, of 50 that the teacher made or of fresh ones. The iterate that is best by
  that loss on 30 others is taken.
- **Reuse on a 50-step grid** is DDIM that calls the network at few of the teacher's levels and reuses its answer between them.
  Which levels, dynamic programming says: those of least error beside the teacher's trajectory, as LeMiCa and DPCache choose.
- **TORS-like**: levels between which the teacher's trajectory turns equally far (curvature and torsion in the three axes in
  which it is longest), under the solver and the order that are best for them. Of TORS we know the abstract and summaries, not
  the details.
- **Best of 2 by the judge**: two images of half of the passes each; kept is the one that more probably shows what was asked. The
  judge is that of alignment, which says nothing about this row, therefore. Earlier builds named it "the first 0 guided" where
  all of its steps are unguided.
- **TaylorSeer**, from nine passes on, caches features: on all but every third step the first and the last block of the U-Net run
  alone. Its passes are the operations of the network, in those of a whole call. Of what diffusers 0.42.1 has, it is the one
  that takes a U-Net, with the names of modules and a context set by hand; by itself it hooks nothing there, nor on many
  transformers ([finding](../findings/taylorseer_hooks_nothing.sh)).
  `FirstBlockCache` ends in `IndexError: pop from empty list`, `SeaCache` in `ValueError: SeaCache found no repeated transformer
  blocks on the model`, FasterCache in an `UnboundLocalError`; `MagCache` finds no blocks to hook; pyramid attention broadcast
  runs, and skips attention, which is 6 % of this U-Net's operations."""  # noqa: E501
KINDS = {"placement": "no search", "learned": "learned", "search": "searched", "long": "many steps"}
KINDS |= {"ours": "ours of before", "now": "ours", "polish": "ours, polish alone"}
KINDS |= {"cached": "cached", "judged": "judged"}
RIVALS = ("placement", "learned", "search", "cached", "judged")


def page(found: list[dict]) -> str:
    """Markdown of all columns."""
    return "\n".join([ABOUT, *(line for rows in found for line in section(rows))])


def section(rows: dict) -> list[str]:
    """A column: its table, how ours stands in it, and with which settings."""
    return [*table(rows), "", _made(rows)]


def table(rows: dict) -> list[str]:
    """A column without its settings."""
    head = f"## {rows['steps']} guided steps, {rows['passes']} passes"
    return ["", head, "", *_table(rows), "", _said(rows)]


def _table(rows: dict) -> list[str]:
    keys = [key for key in rows["contenders"][0]["scores"] if key != "alignment"]
    heads = " | ".join(f"`{key}`" for key in keys)
    lines = [
        f"| schedule | kind | passes | {heads} | mean | ours over it | alignment | search passes |",
        "|---|---|---|" + "---|" * (len(keys) + 4),
    ]
    for row in sorted(rows["contenders"], key=lambda row: row["mean"][0]):
        name = f"**{row['name']}**" if row["headline"] else row["name"]
        cells = [name, KINDS[row["kind"]], f"{row['passes']:g}"]
        cells += [with_error(*_pair(row["scores"][key])) for key in keys]
        cells += [with_error(*row["mean"]), "" if row["headline"] else _percent(*row["over"])]
        cells += [percent(row["scores"]["alignment"]["value"]), f"{row['search_passes']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _said(rows: dict) -> str:
    """How the median of ours stands to the best of each kind."""
    every = rows["contenders"]
    ours = next(row for row in every if row["headline"])
    rivals = [row for row in every if row["kind"] in RIVALS]
    groups = {
        "the best rival as published": [row for row in rivals if ", gain " not in row["name"]],
        "the best rival with its gain": rivals,
        "ours of before": [row for row in every if row["kind"] == "ours"],
        "the best of many steps as published": [
            row for row in every if row["kind"] == "long" and ", gain " not in row["name"]
        ],
        "the best of many steps with its gain": [row for row in every if row["kind"] == "long"],
    }
    said = []
    for name, group in groups.items():
        if group:
            best = min(group, key=lambda row: row["mean"][0])
            said.append(f"{_percent(*best['over'])} over {name} ({best['name']})")
    return f"Ours, {ours['name'].partition(', ')[2]}, in the mean: {'; '.join(said)}."


def _made(rows: dict) -> str:
    """What made the numbers."""
    known, (first, last) = rows["settings"], rows["seeds"]
    guard = known.get("guard", "")  # earlier columns had none
    # earlier polishes went by gradients in float32
    way = (
        "" if "way" in known else ", by gradients; [those of now](polish.md) came after this table"
    )
    seen = f"{known['sees']} alone" if "sees" in known else "the first two"
    seen += f" and {guard}" if guard else ""
    own = "one gain of all steps is" if known.get("gain") == "one" else "gains of each step are"
    own += f" in the {known.get('gains_in', 'box')}"  # that of earlier columns had them
    return (
        f"n = {rows['n']:,}, seeds {first:,} to {last:,}, tests in {known['dtype']}; gains "
        f"{', '.join(f'{gain:g}' for gain in known['gains'])} on {known['selection'][0]} images, "
        f"the best two on {known['selection'][1]}; our searches have {known['trials']} trials of "
        f"at most {known['trial_images']} images and polish {known['polish']} of the finalists, "
        f"{own}; a polish has {known['iterations']} iterations{way}; "
        f"they see {seen}{_free(known)}."
        f"{''.join(map(_added, rows.get('added', ())))}"
    )


def _free(known: dict) -> str:
    """What searches of now have beside; earlier ones had neither."""
    if "patterns" not in known:
        return ""
    number = known["patterns"]
    patterns = f", begin with {number} [patterns of guidance](searching.md#patterns-of-guidance)"
    dtype = f", go in {known['search_dtype']}" if "search_dtype" in known else ""
    lost = f" and may lose {percent(known['drop'])} of the teacher's alignment"
    return f"{patterns if number else ''}{dtype}{lost}"


def _added(told: dict) -> str:
    """What was measured later, perhaps in another dtype, beside ours again."""
    names = "; ".join(told["rows"])
    return (
        f" Later, in {told['dtype']}: {names}. There ours has a mean of "
        f"{with_error(*told['ours'])}, and `ours over it` of these rows is of that."
    )


def _pair(score: dict) -> tuple[float, float]:
    return score["value"], score["standard_error"]


def _percent(value: float, se: float) -> str:
    return f"{percent(value, '+.1')} ± {percent(se)}"
