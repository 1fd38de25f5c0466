"""The searches that the benchmark compares, as studies, and what all of it costs."""

from argparse import Namespace

from peers.screening import OTHER_SOLVERS
from stepsampler.grids import GRIDS
from stepsearch.config import StudyConfig
from stepsearch.run import Run

EXTRACTORS = ("texture", "lite0")  # the search sees the first
EXACTLY_0 = (0.02, 0.021)  # a box of final sigmas that are all below the model's smallest
OURS = {"guidance": "per-step", "guidance_scale": (0.6, 5.0)}
# What a searching rival searches, with which algorithm, and how many images a trial has.
RIVAL_SEARCHES: dict[str, tuple[dict, str, int]] = {
    "OYS-like": (  # Gaussian process over timesteps; its scalar guidance scale is searched too
        {"baseline": "linspace", "log_gap": (-2.0, 2.0), "guidance": "constant", "max_order": 2}
        | {"final_sigma": EXACTLY_0, "guidance_scale": (1.01, 5.0)},
        "gp",
        300,
    ),
    "USF-like": (  # evolution of placement, order, solver, corrector and analytic first step
        {"baseline": "linspace", "log_gap": (-2.0, 2.0), "guidance": "constant"}
        | {"final_sigma": EXACTLY_0, "guidance_scale": (1.01, 5.0), "order": "per-step"}
        | {"solvers": ("dpmpp-midpoint", "unipc-bh2", "deis"), "corrector": True}
        | {"analytic": (0.8, 1.0)},
        "nsga2",
        1000,
    ),
}
ABLATION: dict[str, dict] = {  # each row has the axes of those above it
    "placement": {"guidance": "constant", "max_order": 2, "final_sigma": EXACTLY_0},
    "+ guidance per step": {"guidance": "per-step"},
    "+ solver and order per step": {
        "max_order": 3,
        "order": "per-step",
        "solvers": ("dpmpp-midpoint", "unipc-bh2", "deis"),
    },
    "+ final sigma, analytic first step": {"final_sigma": (0.02, 0.6), "analytic": (0.8, 1.0)},
    "+ Free-U": {"free_u": True},
}


class Cold(Run):
    """A search that starts from nothing but its algorithm, as the rivals' do."""

    def first_points(self, *_: object) -> list:
        return []


def study(
    args: Namespace, name: str, n: int, space: dict, images: int, algorithm: str | None = None
) -> dict:
    """A study of n guided steps, with the default algorithm or another one."""
    search = {"trials": args.trials, "finalists": args.finalists}
    return {
        "name": f"{name}-{n}".lower(),
        "model": {"dtype": args.dtype},
        "space": {"num_steps": n, "passes": 2 * n, **space},
        "evaluation": {
            "extractor": EXTRACTORS[0],
            "images": images,
            "selection_images": args.selection,
            "test_images": 8,  # the test is ours
            "batch_size": args.batch,
        },
        "baselines": {
            "rivals": args.rivals,
            "rungs": args.rungs,
            "guidance_scales": args.scales,
            "orders": [2],
            "solvers": ["dpmpp-midpoint", "unipc-bh2"],
            "test": 1,
        },
        "teacher": {"images": args.images, "steps": args.teacher_steps},
        "search": search if algorithm is None else {**search, "algorithm": algorithm},
    }


def ours(args: Namespace, n: int) -> StudyConfig:
    """Our search as it is called: a study of that budget."""
    space = {**OURS, "max_steps": min(2 * n, n + 2)}
    return StudyConfig.model_validate(study(args, "ours", n, space, args.images))


def rival(args: Namespace, name: str, n: int) -> StudyConfig:
    """As many images as three of our searches have, and no baselines to start from."""
    space, algorithm, images = RIVAL_SEARCHES[name]
    images = min(images, args.rival_images)
    found = study(args, name, n, space, images, algorithm)
    found["search"]["trials"] = max(1, 3 * args.trials * args.images // images)
    few = {"rivals": [], "rungs": [8], "solvers": ["dpmpp-midpoint"]}
    found["baselines"] |= {**few, "guidance_scales": args.scales[:1]}
    return StudyConfig.model_validate(found)


def ablation(args: Namespace, n: int) -> dict[str, StudyConfig]:
    """A study for each row, all of the same budget."""
    studies, space = {}, {"guidance_scale": OURS["guidance_scale"]}
    for k, (name, axes) in enumerate(ABLATION.items()):
        space = {**space, **axes}
        found = study(args, f"ablation-{k}", n, space, args.images)
        found["baselines"] |= {"rivals": [], "solvers": ["dpmpp-midpoint"]}
        studies[name] = StudyConfig.model_validate(found)
    return studies


def estimate(args: Namespace) -> int:
    """Network passes of the whole, were nothing in the cache; no less than what it will be."""
    first, last = args.rungs
    places = len(GRIDS) + len(args.rivals)
    screening = places * (2 * (len(args.scales) + 1) * first + 3 * (last - first))
    screening += 3 * 3 * len(OTHER_SOLVERS) * last
    search = args.trials * args.images + (args.finalists + 4) * args.selection
    total = 0
    for n in args.ablation_steps if args.ablation else args.steps:
        if args.ablation:
            baselines = len(GRIDS) * (len(args.scales) + 1) * last
            total += 2 * n * len(ABLATION) * (search + baselines + args.images_test)
            continue
        total += 2 * n * (screening + search + (args.test + 2) * args.images_test)
        if n in args.searching:
            images = 3 * args.trials * args.images + (args.finalists + 4) * args.selection
            total += 2 * n * len(RIVAL_SEARCHES) * (images + args.images_test)
    if not args.ablation:
        for steps in args.long:
            images = (len(args.scales) + 1) * last * 20 // (20 + steps) + args.images_test
            total += 2 * steps * images
    return total
