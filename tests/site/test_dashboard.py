"""optuna-dashboard itself on a journal as ours: values, constraints and pictures are there."""

import json
import sys
from io import BytesIO

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from stepsearch.engine.store.dashboard import attach, list_constraints


@pytest.fixture
def ask(tmp_path):
    """Asks the dashboard of a folder with a trial that breaks its constraint."""
    path = str(tmp_path / "journal.log")
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(path)))
    study.set_metric_names(["FD"])
    Image.new("RGB", (640, 64), "red").save(tmp_path / "sheet.png")
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.set_constraint("alignment", 0.25)
    list_constraints(trial)
    attach(trial, tmp_path / "sheet.png", tmp_path, "images")
    study.tell(trial, 3.5)
    attach(study, tmp_path / "sheet.png", tmp_path, "grid")

    store = FileSystemArtifactStore(base_path=tmp_path / "artifacts")
    app = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(path)), artifact_store=store)

    def answer(path, query=""):
        request = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query}
        request |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
        request |= {"wsgi.input": BytesIO(), "wsgi.errors": sys.stderr}
        return b"".join(app(request, lambda *_: None))

    return answer


def test_it_shows_values_constraints_and_pictures(ask):
    (summary,) = json.loads(ask("/api/studies"))["study_summaries"]
    study = json.loads(ask(f"/api/studies/{summary['study_id']}", "after=0"))
    (trial,) = study["trials"]
    assert (trial["values"], study["objective_names"]) == ([3.5], ["FD"])
    assert trial["constraints"] == [0.25]
    (own,), (end,) = trial["artifacts"], study["artifacts"]
    assert (own["filename"], own["mimetype"]) == ("images.webp", "image/webp")
    assert end["filename"] == "grid.webp"
    for place in (
        f"/artifacts/{summary['study_id']}/{trial['trial_id']}/{own['artifact_id']}",
        f"/artifacts/{summary['study_id']}/{end['artifact_id']}",
    ):
        with Image.open(BytesIO(ask(place))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (640, 64))
