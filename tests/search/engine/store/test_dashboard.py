"""What optuna-dashboard reads: constraints as a list, pictures as artifacts of Optuna's own."""

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from PIL import Image
from running import settings

from stepsearch.engine.algorithms import make_algorithm, shown
from stepsearch.engine.store.dashboard import attach, list_constraints, unlisted
from stepsearch.engine.study import open_study


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path, settings())


def picture(folder, size=(3000, 600), color="red"):
    Image.new("RGB", size, color).save(folder / "sheet.png")
    return folder / "sheet.png"


def test_the_picture_of_a_trial_is_a_small_copy_that_optuna_finds(study, tmp_path):
    trial = study.ask()
    attach(trial, picture(tmp_path), tmp_path, "images")
    study.tell(trial, 1.0)
    (frozen,) = study.trials
    (meta,) = get_all_artifact_meta(frozen, storage=study._storage)
    assert (meta.filename, meta.mimetype) == ("images.webp", "image/webp")
    store = FileSystemArtifactStore(base_path=tmp_path / "artifacts")
    out = tmp_path / "out.webp"
    download_artifact(artifact_store=store, artifact_id=meta.artifact_id, file_path=str(out))
    with Image.open(out) as small:
        assert (small.format, small.size) == ("WEBP", (1280, 256))


def test_the_picture_of_a_study_is_replaced_when_its_run_ends_again(study, tmp_path):
    for color in ("red", "blue"):
        attach(study, picture(tmp_path, (40, 8), color), tmp_path, "grid")
    (meta,) = get_all_artifact_meta(study)
    with Image.open(tmp_path / "artifacts" / meta.artifact_id) as small:
        red, _, blue = small.convert("RGB").getpixel((5, 5))
    assert blue > 200 > 50 > red


def test_trials_that_are_not_in_the_folder_have_none(tmp_path):
    study = optuna.create_study()
    attach(study.ask(), picture(tmp_path), tmp_path, "images")
    assert not (tmp_path / "artifacts").exists()


def test_constraints_are_listed_and_an_algorithm_sees_each_once(study):
    trial = study.ask()
    trial.set_constraint("alignment", 0.25)
    trial.set_constraint("guided", 0.0)
    list_constraints(trial)
    study.tell(trial, 1.0)
    (frozen,) = study.trials
    assert frozen.system_attrs["constraints"] == [0.25, 0.0]  # what optuna-dashboard reads
    assert unlisted(frozen).constraints == {"alignment": 0.25, "guided": 0.0}
    assert len(frozen.constraints) == 4  # Optuna counts both ways to write one
    (seen,) = shown(study.trials)
    assert seen.constraints == {"alignment": 0.25, "guided": 0.0}


def test_a_search_is_the_same_with_the_list_and_without(tmp_path):
    def points(listed):
        study = optuna.create_study(sampler=make_algorithm("gp", 1))
        for _ in range(14):
            trial = study.ask()
            x, y = (trial.suggest_float(name, 0, 1) for name in "xy")
            trial.set_constraint("alignment", 0.3 - x)
            if listed:
                list_constraints(trial)
            study.tell(trial, 1.1 + (x - 0.2) ** 2 + y)
        return [trial.params for trial in study.trials]

    assert points(True) == points(False)
