"""Whether images show what was asked, by classes and by CLIP."""

import numpy as np
import pytest
import torch

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.config.measuring import EvaluationConfig
from stepsearch.metrics.alignment import ClipAlignment, Prompt, load_alignment, observe
from stepsearch.metrics.pretrained import ClipScore
from stepsearch.rehearsal.check import missing
from stepsearch.rehearsal.dryrun import dry_run
from stepsearch.rehearsal.miniatures.texts import save_clip

IMAGES = torch.randint(0, 256, (5, 3, 40, 40), generator=torch.manual_seed(0)).byte()
PROMPTS = [Prompt(text) for text in ("a fox", "two blue circles", "a bag", "nothing", "a shoe")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)  # has cosines above 0
    save_clip(folder)
    return folder


def test_clip_gives_each_image_a_hundredth_of_its_score(clip):
    """Whatever the batches are."""
    expected = ClipScore(str(clip))(IMAGES, [prompt.text for prompt in PROMPTS])
    assert len(set(expected.round(3))) > 1
    views = ClipAlignment(str(clip), PROMPTS).views  # it is asked once
    _, (found,), _ = observe(IMAGES.split([2, 2, 1]), [lambda x: x.float()], views, PROMPTS)
    np.testing.assert_allclose(100 * found, expected, atol=1e-4)
    assert ((found >= 0) & (found <= 1)).all()


def test_the_judge_of_classes_is_more_certain_of_what_it_finds():
    judge = load_alignment("classes", [Prompt("a bag", 8)])
    prompts = [[Prompt("", label)] * len(IMAGES) for label in range(10)]
    found = np.array([judge(IMAGES, asked) for asked in prompts])
    certain = np.array([judge.certainty(IMAGES, asked) for asked in prompts])
    np.testing.assert_allclose(certain.sum(0), 1, rtol=1e-5)
    assert (certain.argmax(0) == found.argmax(0)).all()
    assert ((certain > 0) & (certain < 1)).all()


def test_prompts_without_classes_are_judged_by_clip_alone(clip):
    assert load_alignment("classes", PROMPTS) is None
    assert load_alignment(f"clip:{clip}", PROMPTS).digest == ClipScore(str(clip)).digest
    with pytest.raises(UserError, match="alignment 'clip:x': the prompts are numbers"):
        load_alignment("clip:x", [Prompt("0"), Prompt("12")])
    with pytest.raises(UserError, match="clip model .*absent.* cannot be loaded"):
        load_alignment(f"clip:{clip}/absent", PROMPTS)


@pytest.mark.parametrize("spec", ["clip", "clip:", "judge", ""])
def test_unknown_judges_are_refused(spec):
    with pytest.raises(ValueError, match='must be "classes" or "clip:MODEL", got'):
        EvaluationConfig(alignment=spec)


def study(**evaluation):
    return StudyConfig.model_validate(
        {
            "name": "captions",
            "model": {"id": "absent/model", "kind": "stable-diffusion"},
            "space": {"num_steps": 2, "passes": 4, "guidance": "constant"},
            "evaluation": {"reference": "absent", "prompts": "absent.txt", **evaluation},
            "search": {"objectives": ["fd", "alignment"], "trials": 3},
        }
    )


def test_a_study_of_captions_has_alignment_with_clip(tmp_path):
    """Of the teacher, of every trial and row; it can be an objective."""
    config = study(alignment="clip:absent/clip")
    assert sum("alignment 'clip:absent/clip': no such folder" in s for s in missing(config)) == 1
    result = dry_run(config, "stable-diffusion", tmp_path)
    assert 0 <= result.teacher.measurement.alignment <= 1
    values = [row.measurement.alignment for row in result.test]
    assert np.isfinite(values).all()
    assert not set(np.concatenate([row.measurement.aligned for row in result.test])) <= {0.0, 1.0}


def test_without_it_the_objective_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match='evaluation.alignment = "clip:MODEL" judges any'):
        dry_run(study(), "stable-diffusion", tmp_path)
