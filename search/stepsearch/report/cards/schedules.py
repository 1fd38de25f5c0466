"""Where the steps lie and how strongly each is guided, beside the best known schedules."""

from stepsampler.schedule import Schedule
from stepsearch.report.cards import Card, Data, NotYet
from stepsearch.report.charts import Axis, Series, lines
from stepsearch.report.sources import Source

MOST = 4  # curves; more hide one another


def data(source: Source) -> Data:
    """`schedules`: sigma, guidance, gain and order of each step."""
    shown = [
        (c.name, c.kind, c.schedule)
        for c in source.contenders
        if c.schedule is not None and c.kind != "teacher"
    ]
    if not shown and source.schedule is not None:
        shown = [("the best so far", "found", source.schedule)]
    if not shown:
        raise NotYet(
            "No schedule is known: "
            + (
                "images without their schedules were compared."
                if source.evaluation
                else "no trial is measured yet, or an older version wrote the run; the same "
                "stepsearch run writes its result again."
            )
        )
    return {"schedules": [plain(*entry) for entry in shown[:MOST]], "left_out": len(shown) - MOST}


def plain(name: str, kind: str, plan: Schedule) -> Data:
    """The numbers of its curves."""
    steps = [
        {
            "sigma": step.sigma,
            "guidance_scale": step.guidance_scale,
            "gain": step.gain,
            "order": step.order,
            "passes": plan.passes_of(step),
        }
        for step in plan.steps
    ]
    return {
        "name": name,
        "kind": kind,
        "solver": plan.solver,
        "final_sigma": plan.final_sigma,
        "passes": plan.passes,
        "steps": steps,
    }


def charts(data: Data) -> dict[str, str]:
    """Sigma against step on a log axis, and guidance against step; gains where there are any.

    A last sigma of 0 has no place on it: the line then ends at the last step."""
    sigma, guidance, gain = [], [], []
    for entry in data["schedules"]:
        levels = [step["sigma"] for step in entry["steps"]]
        levels += [entry["final_sigma"]] if entry["final_sigma"] > 0 else []
        scales = [step["guidance_scale"] for step in entry["steps"]]
        sigma.append(Series(entry["name"], range(1, len(levels) + 1), levels))
        guidance.append(Series(entry["name"], range(1, len(scales) + 1), scales))
        gains = [step["gain"] for step in entry["steps"]]
        gain.append(Series(entry["name"], range(1, len(gains) + 1), gains))
    step = Axis("step", whole=True)
    drawn = {
        "sigma": lines("sigma", sigma, step, Axis("sigma (noise level)", log=True)),
        "guidance": lines("guidance", guidance, step, Axis("guidance scale", low=0.0)),
    }
    if any(value != 1 for series in gain for value in series.y):
        drawn["gain"] = lines("gain", gain, step, Axis("gain"))
    return drawn


CARD = Card("The schedule", "schedules in result.json or the journal", data, charts)
