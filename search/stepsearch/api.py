"""What the commands do, as functions for scripts and notebooks: run, evaluate, compare, report.

Each imports what is heavy when it is called, so that `import stepsearch` is quick.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from stepsampler.errors import UserError, note
from stepsampler.schedule import Schedule
from stepsampler.support.options import DEFAULTS, ModelOptions
from stepsearch.paths import RUNS

if TYPE_CHECKING:
    from stepsearch.compare.evaluating import Evaluated
    from stepsearch.config import StudyConfig
    from stepsearch.metrics.protocol import Progress
    from stepsearch.report.sources import Source

Given = str | Path


@dataclass(frozen=True, eq=False)
class Results:
    """What was measured of a run, of contenders, or of several runs.

    It is what a page shows: `rows` for a table, `data` for all of it, `save` for the page itself.
    """

    source: "Source"
    evaluated: "Evaluated | None" = None  # by what, of contenders: it makes the page's pictures

    @property
    def verdict(self) -> str:
        """What was found, in a few sentences; or why there is nothing to say yet."""
        card = self.data["cards"]["verdict"]
        return str(card.get("sentence", card.get("why_not")))

    @property
    def schedule(self) -> Schedule | None:
        """To use: what a run exports, or its best so far; the first contender's."""
        return self.source.schedule

    @property
    def data(self) -> dict[str, Any]:
        """What `--json` prints: the cards of the page by their names."""
        from stepsearch.report.plain import of_source

        return of_source(self.source)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A flat line for each schedule of the test, as `pandas.DataFrame` takes them.

        name, kind, steps, passes, images, alignment and its `_se`, and of each metric the value
        under its name, `_se` its standard error, `_minus` and `_minus_se` the paired difference to
        the found or the first one. What is not known is None.
        """
        found = []
        for c in self.source.contenders:
            row: dict[str, Any] = {"name": c.name, "kind": c.kind, "steps": c.steps}
            row |= {"passes": c.passes, "images": c.n}
            share = c.alignment
            row |= {"alignment": share and share.value, "alignment_se": share and share.se}
            for metric in self.source.metrics:
                score, less = c.scores.get(metric), c.minus.get(metric)
                row |= {metric: score and score.value, f"{metric}_se": score and score.se}
                row |= {f"{metric}_minus": less and less.value}
                row |= {f"{metric}_minus_se": less and less.se}
            found.append(row)
        return found

    def to_frame(self) -> Any:
        """`rows` as a `pandas.DataFrame`."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def save(self, path: Given) -> Path:
        """Write the page (.html), or of an evaluation its result file (.json).

        Raises:
            UserError: another kind of file.
        """
        from stepsearch.compare.table import save
        from stepsearch.report.command import write_comparison
        from stepsearch.report.page import write_page

        out, known = Path(path), self.evaluated
        if out.suffix == ".html" and known:
            batch, seeds = known.asked.batch_size, known.result.seeds
            write_comparison(known.data, known.contenders, seeds, known.prompts, batch, out)
        elif out.suffix == ".html":
            write_page(self.source, out)
        elif out.suffix == ".json" and known:
            save(known.data, out)
        else:
            more = ", or .json of an evaluation"
            raise UserError(f"{out}: results are saved as .html{more}")
        return out

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, na_rep="", escape=True))


def run(
    study: "StudyConfig | Given",
    folder: Given | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    devices: Sequence[str] | str = ("cpu",),
    tracking: str = "none",
    storage: str | None = None,
    allow_code: bool = False,
    quiet: bool = True,
) -> Results:
    """Search, select and test, as `stepsearch run`; goes on where an earlier call stopped.

    `study` is a study file or what `stepsearch.config.load_config` makes of one; `settings` replace
    its values, as {"search.trials": 20}. `folder` is by default `runs/` with the study's name.
    One device works in this process; several are processes of their own, for which a script must
    keep its own calls under `if __name__ == "__main__":`. `allow_code` lets the functions run that
    the study names as its model or metric.

    Raises:
        UserError: the study is wrong, something is missing, or the folder is another study's.
    """
    from stepsampler.models import check_gpus
    from stepsearch.config.code import check_code, code
    from stepsearch.config.places import in_keys
    from stepsearch.engine.claim import check_use, trials_in
    from stepsearch.engine.store.addresses import tracking_store
    from stepsearch.engine.store.locks import only_run
    from stepsearch.report.session import run_session
    from stepsearch.report.sources import of_run

    config, tracking = _config(study, settings or {}), tracking_store(tracking)
    devices = [devices] if isinstance(devices, str) else list(devices)
    if not devices:
        raise UserError("devices must name at least one, such as cpu or cuda:0, got none")
    check_gpus(devices)
    place = RUNS / config.name if folder is None else Path(folder)
    with code(allow_code), only_run(place), trials_in(storage, place), in_keys():
        check_code(config)
        check_use(config, storage)
        show: Any = "nothing" if quiet else "all"
        run_session(config, place, devices, tracking, False, storage, show, at_home=True)
    return Results(of_run(place))


def _config(study: "StudyConfig | Given", settings: Mapping[str, Any]) -> "StudyConfig":
    from pydantic import ValidationError

    from stepsearch.config import StudyConfig, in_words, load_config

    given: dict[str, dict[str, Any]] = {}
    for place, value in settings.items():
        section, _, key = place.partition(".")
        if not key:
            raise UserError(f"settings must be named section.key, got {place!r}")
        given.setdefault(section, {})[key] = value
    if not isinstance(study, StudyConfig):
        return load_config(study, given)
    known = study.model_dump()
    for section, values in given.items():
        before = known.get(section, {})
        known[section] = {**before, **values} if isinstance(before, dict) else values
    try:
        return StudyConfig.model_validate(known) if given else study
    except ValidationError as error:
        raise UserError(f"settings: {in_words(error)}") from error


class Options(TypedDict, total=False):
    """Of an evaluation, as the command has them; their defaults are those of `Asked`."""

    stock: Sequence[int] | int
    negative_prompt: str
    scheduler: str | None
    timestep_spacing: str | None
    guidance_scale: float | None
    extractor: Sequence[str] | str
    reference: str
    fit: str
    exif: str
    prompts: str
    clip_score: str | None
    clip_long_prompts: str
    distance: Sequence[str] | str
    images: int
    seeds: str
    first_seed: int | None
    batch_size: int
    device: str
    cache: Given
    earlier: Sequence[Given] | Given


def evaluate(
    *what: Schedule | Given, model: ModelOptions | str = DEFAULTS, **options: Unpack[Options]
) -> Results:
    """Score schedules, presets, files of images or, by `stock=[20]`, the model's own way.

    All get the same seeds, and differences to the first one are paired.

    Raises:
        UserError: something is missing, does not fit, or does not compare.
    """
    from dataclasses import fields

    from stepsearch.compare.evaluating import Asked
    from stepsearch.compare.evaluating import evaluate as measured
    from stepsearch.report.sources import of_evaluation

    given: dict[str, Any] = dict(options)
    known = {f.name for f in fields(Asked)} - {"what", "model"}
    if unknown := sorted(set(given) - known):
        raise UserError(f"unknown option {unknown[0]!r}: it must be of {', '.join(sorted(known))}")
    for name in ("extractor", "distance", "stock"):  # one, or several
        if isinstance(given.get(name), str | int):
            given[name] = [given[name]]
    if "cache" in given:
        given["cache"] = Path(given["cache"])
    earlier = given.get("earlier", ())
    several = [earlier] if isinstance(earlier, str | Path) else earlier
    given["earlier"] = [Path(path) for path in several]
    asked = Asked(
        [w if isinstance(w, Schedule) else Path(w) for w in what],
        model=ModelOptions(model) if isinstance(model, str) else model,
        **given,
    )

    @contextmanager
    def silent() -> "Iterator[Progress]":
        yield lambda done, total: None

    found = measured(asked, note, silent)
    return Results(of_evaluation(found.data, "comparison"), found)


def compare(
    *what: Schedule | Given, model: ModelOptions | str = DEFAULTS, **options: Unpack[Options]
) -> Results:
    """`evaluate` of at least two contenders.

    Raises:
        UserError: as `evaluate` does, or there are fewer.
    """
    stock = options.get("stock", ())
    count = len(what) + (1 if isinstance(stock, int) else len(stock))
    earlier = options.get("earlier", ())
    count += 1 if isinstance(earlier, str | Path) else len(earlier)
    if count < 2:
        raise UserError(f"a comparison needs at least two contenders, got {count}")
    return evaluate(*what, model=model, **options)


def report(what: Given, out: Given | None = None) -> Results:
    """What there is of a run, by its folder or study file, or of a result of `evaluate` (JSON).

    With `out` its page is written there.

    Raises:
        UserError: nothing of the kind is there.
    """
    from stepsearch.report.sources import open_source

    found = Results(open_source(Path(what)))
    if out is not None:
        found.save(out)
    return found
