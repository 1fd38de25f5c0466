"""A search or an evaluation may look through several extractors at once."""

import json

import numpy as np
import pytest
import torch
from evaluating import command, pictures

from stepsampler import UserError
from stepsampler.grids import make_schedule
from stepsampler.noise import NoiseSchedule
from stepsearch.config import StudyConfig
from stepsearch.engine.run import run_study
from stepsearch.engine.tracking import NoTracking
from stepsearch.engine.workers import InThisProcess
from stepsearch.metrics.distance import frechet_distance, score
from stepsearch.metrics.evaluator import Evaluator, objective_name
from stepsearch.metrics.features import each, is_bundled, load_extractor
from stepsearch.metrics.reference import load_reference
from stepsearch.rehearsal.check import missing
from stepsearch.report.summary import as_data, table

BOTH = "texture+lite0"
SD = NoiseSchedule.scaled_linear()


def settings(**evaluation):
    sizes = {"batch_size": 4, "images": 8, "selection_images": 8, "test_images": 8}
    return StudyConfig.model_validate(
        {
            "name": "both",
            "space": {"num_steps": 2, "passes": 4},
            "evaluation": {**sizes, "extractor": BOTH, **evaluation},
            "baselines": {"rungs": [8], "guidance_scales": [2.0], "rivals": [], "test": 1},
            "teacher": {"steps": 3, "images": 8},
            "search": {"trials": 2, "finalists": 1, "alignment_drop": 1.0},
        }
    )


def test_each_has_its_own_statistics(tmp_path):
    """Features stand side by side."""
    both = load_extractor("texture+lite0")
    reference = load_reference("fashion-mnist", both, 32, tmp_path)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.manual_seed(0)).byte()
    found = reference.project(both(images).numpy())
    own = []
    for name in ("texture", "lite0"):
        extractor = load_extractor(name)
        alone = load_reference("fashion-mnist", extractor, 32, tmp_path)
        own.append(alone.project(extractor(images).numpy()))
        assert alone.fingerprint != reference.fingerprint
        assert alone.digest in reference.digest
    np.testing.assert_allclose(found, np.hstack(own), rtol=1e-4, atol=1e-4)
    assert reference.metric == "fdgm_texture128_lite0128"
    assert (reference.search.n, reference.test.n) == (20000, 10000)
    other = load_reference("fashion-mnist", load_extractor("lite0+texture"), 32, tmp_path)
    assert other.fingerprint != reference.fingerprint
    with pytest.raises(UserError, match=r"must be of different ones, got 'texture\+texture'"):
        load_extractor("texture+texture")
    with pytest.raises(UserError, match=r"extractor must be one of .*got 'texture\+vgg'"):
        load_extractor("lite0+texture+vgg")


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("texture-whole+lite0", ["texture-whole", "lite0"]),
        ("clip:models/a+b+texture-whole", ["clip:models/a+b", "texture-whole"]),
        ("inception:weights+more", ["inception:weights+more"]),
        ("dinov2:a/x+clip_ft", ["dinov2:a/x+clip_ft"]),
        ("clip:sd+clip-l+inception", ["clip:sd+clip-l", "inception"]),
        ("inception+clip:a/b", ["inception", "clip:a/b"]),
        ("texture+vgg", ["texture+vgg"]),
    ],
)
def test_a_plus_in_the_name_of_a_folder_joins_nothing(spec, names):
    assert each(spec) == names


def test_references_that_serve_only_one_of_them_are_refused(tmp_path):
    """Before the first image; `check` finds them too."""
    one = tmp_path / "texture.safetensors"
    load_reference("fashion-mnist", load_extractor("texture"), 32, tmp_path).save(one)
    alone = rf"reference {one}: such a file is of one extractor, for texture\+lite0 give a folder"
    with pytest.raises(UserError, match=alone):
        load_reference(str(one), load_extractor(BOTH), 32, tmp_path)

    def found(**evaluation):
        said = missing(settings(**evaluation))
        return [sentence for sentence in said if "no such folder" not in sentence]

    assert not found()
    assert "such a file is of one extractor" in found(reference=str(one))[0]
    assert found(extractor="texture+clip:a/b") == [
        "reference 'fashion-mnist': not bundled for clip:a/b"
    ]
    assert found(extractor="lite0+lite0") == ["extractor 'lite0+lite0': must be of different ones"]
    assert is_bundled("fashion-mnist", "texture-whole+lite0")
    assert not is_bundled("fashion-mnist", "texture+inception")


def test_a_study_measures_under_all_of_them(tmp_path):
    """Also over guidance scales, and where images are not finite; nobody recalls another's."""
    plan = make_schedule("power", 2, SD, guidance_scale=2.0)
    over = {"guidance_scales": (1.5, 3.0), "over": "worst"}
    both = Evaluator(settings(**over), tmp_path)
    found = both.measure(plan, range(8))
    assert found.features.shape == (8, 2, 256)
    alone = Evaluator(settings(**over, extractor="texture"), tmp_path).measure(plan, range(8))
    assert alone.features.shape == (8, 2, 128)
    np.testing.assert_array_equal(found.features[:, :, :128], alone.features)
    reference = both.reference.search
    versions = [frechet_distance(found.features[:, k], reference) for k in range(2)]
    assert score(found.features, reference).value == pytest.approx(max(versions))
    texture, lite0 = reference.split(found.features)
    assert texture[1].over == lite0[1].over == "worst"
    with torch.no_grad():
        next(both.model.net.parameters()).fill_(torch.nan)
    broken = both.measure(plan, range(8, 16))
    assert broken.features.shape == (8, 2, 256)
    assert not broken.finite


def test_a_run_says_what_each_of_them_finds(tmp_path):
    config = settings()
    workers = InThisProcess(config, tmp_path)
    result = run_study(config, tmp_path, workers, NoTracking(), lambda *news: None)
    name = objective_name(config.evaluation, result.subject.reference, 8)
    assert name == "fdgm_texture128_lite0128_8"
    data = json.loads(json.dumps(as_data(result, config)))
    for row in data["test"]:
        product = row["fd_texture128"]["fd"] * row["fd_lite0128"]["fd"]
        assert row["fd"] == pytest.approx(np.sqrt(product))
    headers = [column.header for column in table(result, config).columns]
    assert {"texture128", "lite0128"} <= set(headers)


def test_evaluate_has_their_geometric_mean(tmp_path, monkeypatch, capsys):
    real, made = pictures(tmp_path / "real", 24), pictures(tmp_path / "made", 24, seed=1)
    options = [made, "--reference", real, "--images", 20, "--cache", tmp_path / "cache"]
    for name in (BOTH, "texture", "lite0"):
        options += ["--extractor", name]
    code, _, errors = command(monkeypatch, capsys, *options, "-o", tmp_path / "r.json")
    assert code == 0, errors
    (row,) = json.loads((tmp_path / "r.json").read_text())["contenders"]
    joint, *own = (s["value"] for name, s in row["scores"].items() if name.startswith("fd"))
    assert joint == pytest.approx(np.sqrt(np.prod(own)))
