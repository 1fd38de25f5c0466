"""Where a run is, noted with its trials: who looks at these from elsewhere sees it too."""

from dataclasses import asdict, dataclass

import optuna

STAGE = "stage"  # attribute of the study
RANKING = "polish (finalists are ranked)"  # on the selection seeds, before any is polished


@dataclass(frozen=True)
class Stage:
    """What the process that runs a study is at; `done` of `total` parts."""

    name: str  # as it is reported: "baselines, 40 images"
    done: int
    total: int
    seconds: float  # since it began
    workers: int  # processes of the run itself
    process: tuple[str, ...] = ()  # `locks.this_process`

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def note_stage(study: optuna.Study, stage: Stage) -> None:
    study.set_user_attr(STAGE, asdict(stage))


def noted_stage(study: optuna.Study) -> Stage | None:
    """None: an older version runs it, or it has only begun to load."""
    try:
        known = dict(study.user_attrs[STAGE])
        return Stage(**{**known, "process": tuple(known["process"])})
    except (LookupError, TypeError, ValueError):
        return None
