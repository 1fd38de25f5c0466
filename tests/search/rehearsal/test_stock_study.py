"""Studies of pipelines that sample themselves."""

import json

import pytest

from stepsampler import UserError
from stepsampler.grids import from_sigmas
from stepsampler.models.stock import StockModel
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.rehearsal.dryrun import dry_run, kind_of, shrunk
from stepsearch.rehearsal.miniatures import EVERY


def settings(**sections):
    return StudyConfig.model_validate(
        {"name": "s", "space": {"num_steps": 3, "passes": 6}, **sections}
    )


def test_the_tiny_model_is_of_the_studys_class_or_else_one_with_such_noise(tmp_path):
    for kind in ("ovis-image", "kandinsky3"):
        folder = tmp_path / kind
        EVERY[kind]().save_pretrained(folder)
        config = settings(model={"id": str(folder)})
        assert kind_of(config) == kind
        index = json.loads((folder / "model_index.json").read_text())
        for cls, other in (
            ("AllegroPipeline", "bria" if kind == "ovis-image" else "latte"),
            ("StableDiffusionInpaintPipeline", None),
            ("FoxPipeline", None),
        ):
            (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": cls}))
            if other:
                assert kind_of(config) == other
            else:
                with pytest.raises(UserError, match=cls):
                    kind_of(config)


def test_a_dry_run_on_a_pipeline_that_samples_itself(tmp_path):
    config = settings(model={"kind": "ltx"}, baselines={"presets": []})
    assert dry_run(config, "ltx", tmp_path).trials == 3


def test_a_study_refuses_a_pipeline_that_takes_other_passes(tmp_path, monkeypatch):
    config = shrunk(settings(model={"kind": "bria"}), "bria", tmp_path)
    EVERY["bria"]().save_pretrained(tmp_path / "model")
    evaluator = Evaluator(config, tmp_path / "cache")
    call = StockModel.call
    monkeypatch.setattr(StockModel, "call", lambda *given: (call(*given)[0], call(*given)[1] + 1))
    schedule = from_sigmas([1.0, 0.5], 0.0, [3.0, 1.0], 1, "ddim", evaluator.model.spec)
    with pytest.raises(UserError, match="BriaPipeline takes 4 network passes where the sch"):
        evaluator.measure(schedule, range(2))
