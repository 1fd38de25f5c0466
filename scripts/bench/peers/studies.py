"""The searches that the benchmark compares, as studies, and what all of it costs."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from peers.screening import BEST, OF_EACH, OTHER_SOLVERS, SHORTLIST, presets_of_its_kind
from stepsampler.grids import GRIDS, make_schedule
from stepsampler.schedule import Schedule
from stepsearch.config import StudyConfig
from stepsearch.engine.ladder import infeasible, passes_spent
from stepsearch.engine.result import Result
from stepsearch.engine.run import STAGES, Starts
from stepsearch.engine.stages.costs import costs
from stepsearch.engine.study import finished, open_study, schedule_of
from stepsearch.rivals.baselines import Candidate
from stepsearch.space.box import Params, SearchSpace

EXTRACTORS = ["texture", "lite0"]  # the search sees the first
LANDING = (0.0285, 0.03)  # around the model's smallest sigma: there, or below it, which is 0
SO_FAR = (2 / 3,)  # shares of our passes after which the best trial is tested too
OURS = {
    "guidance": "per-step",
    "guidance_scale": (0.2, 5.0),  # below 1 means off
    "solvers": ("dpmpp-midpoint", "unipc-bh2"),
}
UNGUIDED = ", unguided"  # the same search of twice the steps; its guidance is an idle axis
# What a searching rival searches, with which algorithm, and how many images a trial has.
RIVAL_SEARCHES: dict[str, tuple[dict, str, int]] = {
    "OYS-like": (  # Gaussian process over timesteps; its scalar guidance scale is searched too
        {"baseline": "linspace", "log_gap": (-2.0, 2.0), "guidance": "constant", "max_order": 2}
        | {"final_sigma": LANDING, "guidance_scale": (1.01, 5.0)},
        "gp",
        500,
    ),
    "USF-like": (  # evolution of placement, order, solver, corrector and analytic first step
        {"baseline": "linspace", "log_gap": (-2.0, 2.0), "guidance": "constant"}
        | {"final_sigma": LANDING, "guidance_scale": (1.01, 5.0), "order": "per-step"}
        | {"solvers": ("dpmpp-midpoint", "unipc-bh2", "deis"), "corrector": True}
        | {"analytic": (0.8, 1.0), "prediction": True},
        "nsga2",
        1000,
    ),
}
MORE = "+ more steps, of which fewer are guided"
ABLATION: dict[str, dict] = {  # each row has the axes of those above it
    "placement": {"guidance": "constant", "max_order": 2, "final_sigma": LANDING},
    "+ guidance per step": {"guidance": "per-step"},
    MORE: {},  # what a step saves that is not guided pays for another one, as in ours
    "+ solver and order per step": {
        "max_order": 3,
        "order": "per-step",
        "solvers": ("dpmpp-midpoint", "unipc-bh2", "deis"),
    },
    "+ final sigma, analytic first step": {"final_sigma": (0.02, 0.6), "analytic": (0.8, 1.0)},
    "+ Free-U": {"free_u": True},
    "+ gain": {"gain": (0.9, 1.2)},
    "+ guidance by reuse": {"reuse": 4},
    "+ fresh noise per step": {"churn": (-0.2, 0.8), "fresh_noise": "per-step"},
    "+ iterated guidance": {"repeats": 2},
}


def cold(config: StudyConfig) -> Starts:
    """The start of a search that is shown nothing but the centre of its box.

    Its guidance there is the teacher's.
    """

    def points(space: SearchSpace, best: list[Candidate]) -> list[tuple[Params, str]]:
        n, w = space.config.num_steps, config.teacher.guidance_scale
        plan = make_schedule(space.grid, n, space.noise, guidance_scale=w, model=space.model)
        return [(space.params(plan)[0], space.grid)]

    return points


def study(
    args: Namespace, name: str, n: int, space: dict, images: int, algorithm: str | None = None
) -> dict:
    """A study of n guided steps, with the default algorithm or another one."""
    search: dict = {"trials": args.trials, "finalists": args.finalists}
    return {
        "name": f"{name}-{n}".lower().replace(", ", "-"),
        "model": {"id": args.model, "dtype": args.dtype, "compile": args.compile},
        "space": {"num_steps": n, "passes": 2 * n, **space},
        "evaluation": {
            "extractor": args.extractors[0],
            "images": images,
            "rungs": [*args.ladder, images] if args.ladder else [],
            "selection_images": args.selection,
            "test_images": args.batch,  # the test is ours; a batch has a size that is compiled
            "batch_size": args.batch,
        },
        "baselines": {
            "rivals": args.rivals,
            "presets": [],
            "rungs": args.rungs,
            "guidance_scales": args.scales,
            "orders": [2],
            "solvers": ["dpmpp-midpoint"],
            "test": 1,
        },
        "teacher": {"images": args.selection, "steps": args.teacher_steps},  # as many as it judges
        "search": search if algorithm is None else {**search, "algorithm": algorithm},
    }


def fitting(passes: int) -> list[str]:
    """Presets for the bundled model's kind that have so many passes."""
    return [found.name for found in presets_of_its_kind() if found.schedule.passes == passes]


def ours(args: Namespace, n: int, seed: int = 0) -> StudyConfig:
    """Our search as it is called: a study of that budget."""
    space = {**OURS, "max_steps": min(2 * n, n + 2)}
    found = study(args, "ours", n, space, args.images)
    found["search"]["seed"] = seed
    found["baselines"]["presets"] = fitting(2 * n)
    return StudyConfig.model_validate(found)


def screening(args: Namespace, n: int) -> StudyConfig:
    """The baselines of our search, under a second solver too."""
    found = ours(args, n).model_dump()
    found["name"] = f"screening-{n}"
    found["baselines"]["solvers"] = ["dpmpp-midpoint", "unipc-bh2"]
    return StudyConfig.model_validate(found)


def chosen(result: Result, kind: str) -> tuple[Candidate, dict[str, int]]:
    """What the search chose, and its passes.

    Ours as it is exported. A rival, or a row of the ablation, is what the search itself found:
    baselines do not help it; and a rival pays for its trials and their selection alone.
    """
    if kind == "ours":
        return result.winner, result.passes
    own = [row.candidate for row in result.selection if row.candidate.kind == "found"]
    passes = result.passes
    if not own:
        return result.winner, passes
    if kind == "search":
        images = sum(len(r.measurement.features) for r in result.selection if r.candidate in own)
        passes = {"trials": passes["trials"], "selection": images * own[0].schedule.passes}
    return own[0], passes


def so_far(folder: Path, config: StudyConfig, passes: dict[str, int]) -> dict[float, Schedule]:
    """Our best trial once shares of the search's passes were spent, if a trial had ended by then.

    All that comes before the trials is counted, and nothing of the selection.
    """
    trials = open_study(folder, config).get_trials(deepcopy=False)
    whole = {t.number for t in finished(open_study(folder, config))}
    total = sum(passes.values())
    spent = total - passes["trials"] - passes["selection"]
    found: dict[float, Schedule] = {}
    best = None
    for trial in trials:
        spent += passes_spent([trial], config.evaluation)
        if trial.number in whole and not infeasible(trial):
            best = min(best or trial, trial, key=lambda t: t.value)
        found |= {share: schedule_of(best) for share in SO_FAR if best and spent <= share * total}
    return found


def rival(args: Namespace, name: str, n: int, passes: int) -> StudyConfig:
    """A search whose trials have `--times` as many passes, and no baselines to start from."""
    space, algorithm, images = RIVAL_SEARCHES[name.removesuffix(UNGUIDED)]
    images = min(images, args.rival_images)
    if name.endswith(UNGUIDED):
        space = {**space, "num_steps": 2 * n}
    found = study(args, name, n, space, images, algorithm)
    found["search"]["trials"] = max(1, int(args.times * passes) // (images * 2 * n))
    found["baselines"] |= {"rivals": [], "rungs": args.rungs[:1]}  # not its own: for its floor
    found["evaluation"]["rungs"] = []  # no paper has the ladder,
    found["search"]["alignment_drop"] = 1.0  # nor a floor
    return StudyConfig.model_validate(found)


def ablation(args: Namespace, n: int, seed: int = 0) -> dict[str, StudyConfig]:
    """A study for each row, all of the same budget.

    With `--axes` our box, `MORE`, and each of these axes alone beside it.
    """
    studies, space = {}, {"guidance_scale": OURS["guidance_scale"]}
    for k, (name, axes) in enumerate(ABLATION.items()):
        if name == MORE:
            axes = {"max_steps": min(2 * n, n + 2)}
        if args.axes and MORE in studies and name not in args.axes:
            continue
        made = {**space, **axes}
        if not args.axes or MORE not in studies:
            space = made
        found = study(args, f"ablation-{k}", n, made, args.images)
        found["baselines"]["rivals"] = []
        found["search"]["seed"] = seed
        studies[name] = StudyConfig.model_validate(found)
    return {k: v for k, v in studies.items() if not args.axes or k in (MORE, *args.axes)}


def bound(config: StudyConfig, stages: Sequence[str] = STAGES) -> int:
    """Network passes of a study's stages at most; without its own test."""
    return sum(costs(config).passes[stage] for stage in stages)


def estimate(args: Namespace) -> int:
    """Network passes of the whole, were nothing in the cache; no less than what it will be.

    The studies share the images of their baselines, and all of them those of the teacher.
    """
    own = ("trials", "selection")  # of what a study has to make alone
    total = 0
    if args.ablation:
        for n in args.ablation_steps:
            studies = list(ablation(args, n).values())
            total += bound(studies[0], ("rivals", "baselines", "teacher"))
            for config in studies:
                total += args.seeds * (bound(config, own) + 2 * n * args.images_test)
        return total
    long = 2 * sum(args.long) * args.images_test
    if args.transfer:
        rows = sum(3 * 2 * n for n in args.steps)
        return len(args.elsewhere) * (rows * args.images_test + long)
    for n in args.steps:
        search = bound(ours(args, n))
        if args.add:
            names = args.rival_searches if n in args.searching else []
            total += len(args.also) * search
            total += sum(bound(rival(args, name, n, search)) for name in names)
            rows = 2 * args.test + len(SO_FAR) + len(args.also) + len(names) + 3
            total += 2 * n * rows * args.images_test
            continue
        kinds = 1 + len(args.also)  # of extractors under which rivals are chosen
        total += kinds * search + (args.seeds - 1) * bound(ours(args, n), own)
        rows = args.seeds + len(args.also) + len(SO_FAR) + kinds * (args.test + 1)
        if n in args.searching:
            rows += len(args.rival_searches)
            for name in args.rival_searches:
                total += bound(rival(args, name, n, search))
        total += 2 * n * (kinds * screened(args, n) + rows * args.images_test)
    shortest = 2 * min(args.long, default=0)
    return total + shortest * 2 * len(args.scales) * args.long_images + long


def screened(args: Namespace, n: int) -> int:
    """Images of the screening at most, without those that our search made of its baselines."""
    first, last = args.rungs
    config = screening(args, n)
    scales = len(args.scales) + 1
    places = len(GRIDS) + len(args.rivals)
    others = 2 * BEST * len(OTHER_SOLVERS) + BEST * (len(args.scales) - 1)
    more = range(1, config.space.most_steps - n + 1)
    others += BEST * len(args.scales) * sum(2 * m + 1 for m in more)  # intervals
    presets = scales * len(config.baselines.presets) + len(fitting(4 * n))
    images = first * (places * scales * (len(config.baselines.solvers) - 1) + presets + others)
    images += (last - first) * (places * scales + presets + others)
    return images + (SHORTLIST + 2 * OF_EACH) * args.selection
