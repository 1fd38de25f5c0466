"""What optuna-dashboard shows beside values: constraints, and pictures as Optuna's artifacts.

The pictures lie in `artifacts` of a run's folder, small. Of trials in a database there are none:
each machine's stay there, where a dashboard would not find them.
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial
from PIL import Image

FOLDER = "artifacts"
WIDEST = 1280  # pixels of a side
QUALITY = 85
# Where optuna-dashboard 0.21 looks for constraints: a list, as Optuna wrote it before version 5. Of
# those by name, of `Trial.set_constraint`, it knows nothing.
LISTED = "constraints"


def list_constraints(trial: optuna.Trial) -> None:
    """Note the constraints of a trial under way a second time, without their names."""
    known = trial.storage.get_trial(trial._trial_id).constraints
    if known:
        trial.storage.set_trial_system_attr(trial._trial_id, LISTED, list(known.values()))


def unlisted(trial: FrozenTrial) -> FrozenTrial:
    """The trial with each constraint once, for algorithms that model every one of them."""
    if LISTED not in trial.system_attrs:
        return trial
    trial = copy.copy(trial)
    trial.system_attrs = {k: v for k, v in trial.system_attrs.items() if k != LISTED}
    return trial


def attach(to: optuna.Trial | optuna.Study, picture: Path, folder: Path, name: str) -> None:
    """Attach a picture to a trial under way, or to a study, where one of that name is replaced.

    A copy of at most `WIDEST` pixels a side goes into the folder of the run.
    """
    storage = to.storage if isinstance(to, optuna.Trial) else to._storage
    if not isinstance(storage, JournalStorage):
        return
    base = folder / FOLDER
    base.mkdir(exist_ok=True)
    store = FileSystemArtifactStore(base_path=base)
    with TemporaryDirectory() as place:
        file = Path(place) / f"{name}.webp"
        with Image.open(picture) as whole:
            small = whole.convert("RGB")
        small.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
        small.save(file, "WEBP", quality=QUALITY)
        known = get_all_artifact_meta(to, storage=storage)
        before = next((meta for meta in known if meta.filename == file.name), None)
        if before is None:
            upload_artifact(
                artifact_store=store, file_path=str(file), study_or_trial=to, mimetype="image/webp"
            )
        else:
            with file.open("rb") as content:
                store.write(before.artifact_id, content)
