"""The main job, stage after stage. Every stage resumes from its cache, the search from its journal.

A kill at any moment loses no more than what was under way; the same call goes on from there.
"""

from collections.abc import Callable
from pathlib import Path

from stepsearch.config import StudyConfig
from stepsearch.config.places import as_keys
from stepsearch.engine.claim import alignment_floor, check_identity, claim_folder
from stepsearch.engine.ladder import passes_spent
from stepsearch.engine.result import Result
from stepsearch.engine.stages.baselines import known_schedules, place_rivals, screen
from stepsearch.engine.stages.held_out import test_chosen
from stepsearch.engine.stages.patterns import try_patterns
from stepsearch.engine.stages.polishing import (
    gains_beside,
    may_begin,
    part_of_looks,
    polish_best,
    with_gains,
)
from stepsearch.engine.stages.search import make_box, search
from stepsearch.engine.stages.selection import finalists, found, select
from stepsearch.engine.stages.statistics import make_statistics
from stepsearch.engine.stages.teacher import measure_teacher
from stepsearch.engine.stages.tools import Report, Tools
from stepsearch.engine.stopping import stopped
from stepsearch.engine.store.journal import JOURNAL, mend
from stepsearch.engine.study import (
    failed,
    finished,
    open_study,
    pruned,
    read_study,
    usable,
)
from stepsearch.engine.tracking import Tracker
from stepsearch.engine.transfer import STARTED, earlier_best
from stepsearch.engine.workers import Workers
from stepsearch.metrics.evaluator import SEARCH, SELECTION
from stepsearch.rivals.baselines import Candidate
from stepsearch.space.box import Params, SearchSpace
from stepsearch.space.starts import first_points
from stepsearch.space.statistics import passes_of_own

# What a search pays for
STAGES = (
    *("statistics", "rivals", "baselines", "teacher", "patterns", "trials", "polish", "selection"),
)
Starts = Callable[[SearchSpace, list[Candidate]], list[tuple[Params, str]]]


def run_study(
    config: StudyConfig,
    folder: Path,
    workers: Workers,
    tracker: Tracker,
    report: Report,
    starts: Starts = first_points,
    storage: str | None = None,
) -> Result:
    """Run a study in `folder`, or resume it. `starts` gives the points that the search sees first.

    Its trials are in the folder's journal, or in the database `storage`. Statistics that the run
    makes are where `config.naming_own(folder)` names them, for the workers as well.

    Raises:
        UserError: something is missing or does not fit, or the first five trials failed.
    """
    if storage is None and (folder / JOURNAL).exists():
        mend(folder)  # refuses before the first image, too
    known, origin = read_study(folder, config, storage), config.search.start_from
    if origin and known.user_attrs.get(STARTED) != origin:
        earlier_best(Path(origin), 1)  # refuses before the first image
    claim_folder(folder, config, known)
    make_statistics(config, workers, report)
    report("loading", 0, 1, "")
    subject = workers.describe()
    check_identity(folder, subject.identity, known)
    report("loading", 1, 1, "")
    for note in subject.notes:
        report("loading", 1, 1, as_keys(note))
    tracker.start(config, folder)
    tools, options = Tools(config, subject, workers, tracker, report), config.evaluation

    placed = place_rivals(tools)
    screened = screen(tools, known_schedules(tools, placed))
    teacher, taught = measure_teacher(tools, SEARCH, options.images)
    alignment = teacher.measurement.alignment
    keeping = screened.keeping(teacher.measurement.aligned, config.search.alignment_drop)
    teacher, again = measure_teacher(tools, SELECTION, options.selection_images)

    study = open_study(folder, config, storage=storage)
    box = make_box(tools, screened.best, placed.placements)
    floor = alignment - config.search.alignment_drop
    tried, looked = try_patterns(tools, box, screened.best, alignment)
    search(tools, folder, study, box, starts(box, screened.best), floor)

    chosen = finalists(usable(study), config.search, alignment_floor(folder), alignment)
    candidates = [*(found(trial) for trial in chosen), *tried]
    candidates = with_gains(candidates, gains_beside(config))
    aligned = teacher.measurement.aligned
    part = part_of_looks(tools, study) if config.search.polish else None
    begun = [c for c in keeping if may_begin(c, config.space, subject.noise)]
    begun = begun[: config.search.polish]
    polished, turned = polish_best(tools, candidates, begun, aligned, part)
    entrants = [*candidates, *polished]
    selection, selected = select(tools, entrants, screened.best, aligned, begun)
    test, winner = test_chosen(tools, selection, aligned)

    ended = pruned(study)
    every = study.get_trials(deepcopy=False)  # failed ones cost as much
    searched = tools.versions * passes_spent(every, options)
    own = passes_of_own(config, subject.guidance)
    passes = (
        own,
        placed.passes,
        screened.passes,
        taught + again,
        looked,
        searched,
        turned,
        selected,
    )
    return Result(
        subject,
        teacher,
        screened.all,
        selection,
        test,
        winner,
        len(finished(study)) + len(ended),
        len(ended),
        len(failed(study)),
        dict(zip(STAGES, passes, strict=True)),
        stopped(study, config.search.patience),
    )
