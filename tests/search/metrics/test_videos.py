"""How videos are measured: which frames, what becomes of their distances, and what sheets show."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import FAMILIES, sd3, wan

from stepsampler import Schedule, Step, UserError
from stepsampler.generate import generate
from stepsampler.models import from_pipeline
from stepsampler.models.pixels import stills, strips
from stepsampler.noise import FlowSchedule
from stepsearch.config import StudyConfig
from stepsearch.engine.study import finished, open_study, schedule_of
from stepsearch.metrics.alignment import check_frames, observe
from stepsearch.metrics.distance import score
from stepsearch.metrics.evaluator import Evaluator
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import dry_run, kind_of, shrunk

SIGMAS = (1.0, 0.8, 0.4)
PLAN = Schedule(tuple(Step(s, 3.0) for s in SIGMAS), 0.0, "ddim", FlowSchedule().spec("wan"))


def settings(**sections):
    data = {"name": "v", "space": {"num_steps": 3, "passes": 6}, "model": {"kind": "wan-2.2"}}
    data["baselines"] = {"presets": []}
    return StudyConfig.model_validate(data | sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of videos, and the files that stand for those of its study."""
    path = tmp_path_factory.mktemp("video")
    wan().save_pretrained(path / "model", safe_serialization=True)
    return path


def evaluator(folder, **evaluation):
    config = settings(evaluation={"extractor": "lite0", "alignment": "classes", **evaluation})
    return Evaluator(shrunk(config, "wan", folder), folder / "cache")


def test_frames_are_the_middles_of_equal_parts():
    def places(total, count):
        return stills(torch.arange(total)[None], count)[0].tolist()

    assert places(81, 1) == [40]
    assert [places(total, 1)[0] for total in range(1, 9)] == [n // 2 for n in range(1, 9)]
    assert places(9, 3) == [1, 4, 7]
    assert places(5, 5) == [0, 1, 2, 3, 4]
    assert places(8, 4) == [1, 3, 5, 7]


def test_sheets_show_the_first_middle_and_last_frame():
    videos = torch.arange(2 * 5).reshape(2, 5, 1, 1, 1).expand(2, 5, 3, 2, 4)
    found = strips(videos)
    assert found.shape == (2, 3, 2, 12)
    assert found[:, 0, 0, ::4].tolist() == [[0, 2, 4], [5, 7, 9]]
    assert strips(videos[:, :1]).shape == (2, 3, 2, 4)
    assert torch.equal(strips(videos[:, 0]), videos[:, 0])


def test_each_frame_is_measured_and_the_distance_is_the_mean_of_theirs(folder):
    measured = evaluator(folder, video_frames=3)
    found = measured.measure(PLAN, range(6))
    texts = [measured.prompt(seed).text for seed in range(6)]
    (made,) = generate(measured.model, PLAN, texts, range(6))
    videos = made.videos
    assert videos.shape == (6, 5, 3, 32, 32)
    project = measured.reference.project
    alone = [project(measured.extractor(videos[:, k]).numpy()) for k in (0, 2, 4)]
    np.testing.assert_allclose(found.features, np.stack(alone, 1), atol=1e-3)
    reference = measured.reference.search
    values = [score(x, reference) for x in alone]
    whole = score(found.features, reference)
    assert whole.value == pytest.approx(np.mean([s.value for s in values]), rel=1e-4)
    # of one video all frames are left out together
    expected = np.mean([s.left_out for s in values], axis=0)
    assert whole.left_out == pytest.approx(expected, rel=1e-3)
    assert Image.open(found.sheet).width == 6 * (3 * 32 + 2)
    assert measured.images(PLAN, range(2)).shape == (2, 3, 32, 96)
    again = evaluator(folder, video_frames=3).measure(PLAN, range(6))
    assert np.array_equal(again.features, found.features), "recalled"


def test_without_a_word_the_middle_frame_is_measured(folder):
    plain = evaluator(folder)
    found = plain.measure(PLAN, range(4))
    texts = [plain.prompt(seed).text for seed in range(4)]
    (made,) = generate(plain.model, PLAN, texts, range(4))
    expected = plain.reference.project(plain.extractor(made.videos[:, 2]).numpy())
    np.testing.assert_allclose(found.features, expected, atol=1e-3)
    assert plain.notes[0] == "an image is the middle frame of its video"
    three = evaluator(folder, video_frames=3)
    assert three.identity != plain.identity
    assert "of each video 3 frames are measured" in three.notes[0]


def test_each_frame_of_each_guidance_scale_is_a_version(folder):
    scaled = evaluator(folder, video_frames=2, guidance_scales=[2.0, 4.0])
    found = scaled.measure(PLAN, range(4))
    assert found.features.shape[:2] == (4, 4)
    alone = evaluator(folder, video_frames=2).measure(
        Schedule(tuple(Step(s, 4.0) for s in SIGMAS), 0.0, "ddim", PLAN.model), range(4)
    )
    np.testing.assert_allclose(found.features[:, 2:], alone.features, atol=1e-4)


def test_alignment_is_the_mean_over_the_frames():
    videos = torch.arange(12, dtype=torch.uint8).reshape(2, 6, 1, 1, 1).expand(2, 6, 3, 2, 2)
    asked = []

    def judge(images, prompts):
        asked.extend(prompts)
        return images[:, 0, 0, 0].numpy().astype(np.float32)

    (features,), (aligned,), _ = observe([videos], [lambda x: x[:, 0, 0].float()], [judge], "ab", 3)
    assert features.shape == (2, 3, 2)
    assert aligned.tolist() == [3.0, 9.0]  # frames 1, 3 and 5
    assert asked == list("aaabbb")


def test_more_frames_than_there_are_are_refused_before_the_first_image(folder, tmp_path):
    model = from_pipeline(wan(), 32, frames=5)
    check_frames(model, 5)
    with pytest.raises(UserError, match=r"video_frames is 6, but a video has 5 frames: give \[mod"):
        check_frames(model, 6)
    with pytest.raises(UserError, match="video_frames is 2, but the model makes pictures"):
        check_frames(from_pipeline(sd3(), 32), 2)
    with pytest.raises(ValueError, match='mean over 3 frames does not go with over = "worst"'):
        settings(evaluation={"video_frames": 3, "over": "worst"})
    study = {
        "space": {"num_steps": 3, "passes": 6},
        "model": {"id": str(folder / "model"), "frames": 5, "size": 32},
        "evaluation": {"video_frames": 9},
    }
    said = missing(StudyConfig.model_validate({"name": "v", **study}))
    assert any("evaluation.video_frames is 9, but a video has 5 frames" in each for each in said)


def test_a_dry_run_of_two_networks_searches_where_one_takes_over(tmp_path):
    space = {"num_steps": 3, "passes": 6, "boundary": [0.3, 0.95]}
    config = settings(space=space, evaluation={"video_frames": 3})
    result = dry_run(config, "wan-2.2", tmp_path)
    assert result.trials == 3
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["provenance"]["metric"].endswith(", mean over 3 frames")
    assert Image.open(tmp_path / "run" / "grid.png").width > 8 * 3 * 32
    trials = finished(open_study(tmp_path / "run", config))
    assert all(0.3 <= trial.params["boundary"] <= 0.95 for trial in trials)
    assert [schedule_of(t).boundary for t in trials] == [t.params["boundary"] for t in trials]


@pytest.mark.parametrize("kind", ["wan", "wan-2.2", "wan-2.2-5b"])
def test_a_folder_says_which_of_them_it_is(kind, tmp_path):
    FAMILIES[kind]().save_pretrained(tmp_path)
    assert kind_of(settings(model={"id": str(tmp_path)})) == kind
