"""Studies of pipelines that sample themselves."""

import json

import diffusers
import pytest

from stepsampler import UserError
from stepsampler.grids import from_sigmas
from stepsampler.models.stock import StockModel
from stepsearch.config import StudyConfig
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.rehearsal.check import _missing_model, _unfit
from stepsearch.rehearsal.dryrun import as_modular, dry_run, kind_of, shrunk
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


@pytest.mark.parametrize("kind", ["ltx", "ltx2"])
def test_a_dry_run_on_a_pipeline_of_videos(kind, tmp_path):
    config = settings(model={"kind": kind}, baselines={"presets": []})
    assert dry_run(config, kind, tmp_path).trials == 3


def test_a_study_of_a_modular_pipeline_rehearses_on_a_modular_one(tmp_path):
    folder = tmp_path / "own"
    pipeline = as_modular(EVERY["z-image"](), diffusers.ZImageModularPipeline)
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    reference = {"reference": str(tmp_path / "dry" / "reference"), "extractor": "lite0"}
    model = {"id": str(folder), "size": 32}
    config = settings(model=model, baselines={"presets": []}, evaluation=reference)
    assert (kind_of(config), _missing_model(config.model), _unfit(config)) == (
        "z-image",
        None,
        None,
    )
    assert dry_run(config, "z-image", tmp_path / "dry").trials == 3
    assert (tmp_path / "dry" / "model" / "modular_model_index.json").is_file()
    file = folder / "transformer" / "config.json"
    said = {"quantization_config": {"quant_method": "torchao"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    assert "transformer: its weights are quantised (torchao)" in _missing_model(config.model)


def test_a_modular_pipeline_without_a_tiny_one_has_one_with_such_noise(tmp_path):
    """Of FLUX.3 the scheduler is made with the pipeline and lies in no folder."""
    folder = tmp_path / "model"
    diffusers.Flux3ModularPipeline().save_config(folder)
    index = json.loads((folder / "modular_model_index.json").read_text())
    for entry in index.values():
        if isinstance(entry, list):
            entry[2] |= {"pretrained_model_name_or_path": str(tmp_path), "subfolder": ""}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    assert kind_of(settings(model={"id": str(folder)})) == "bria"


def test_a_study_refuses_a_pipeline_that_takes_other_passes(tmp_path, monkeypatch):
    config = shrunk(settings(model={"kind": "bria"}), "bria", tmp_path)
    EVERY["bria"]().save_pretrained(tmp_path / "model")
    evaluator = Evaluator(config, tmp_path / "cache")
    call = StockModel.call
    monkeypatch.setattr(StockModel, "call", lambda *given: (call(*given)[0], call(*given)[1] + 1))
    schedule = from_sigmas([1.0, 0.5], 0.0, [3.0, 1.0], 1, "ddim", evaluator.model.spec)
    with pytest.raises(UserError, match="BriaPipeline takes 4 network passes where the sch"):
        evaluator.measure(schedule, range(2))
