"""`[evaluation]` and `[search]` of a study: what is measured, and who looks for it."""

import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stepsampler.support.options import LongPrompts
from stepsearch.config.code import named
from stepsearch.config.parts import SEEDS, Section

CLASSES, CLIP = "classes", "clip:"  # what may judge alignment; CLIP is followed by its model
NONE = "none"  # prompts: there are none


class EvaluationConfig(Section):
    """What is measured. Image k of a seed range has seed first + k and prompt k of the list."""

    # What makes features of images: texture, lite0, squeezenet, untrained, inception, clip:MODEL,
    # dinov2:MODEL, or several as in texture+lite0.
    extractor: str = "texture"
    # "module:function", with --allow-code: of images, uint8 (n, 3, height, width), and their texts
    # n numbers. Their mean, the lower the better, takes the place of FD, which becomes a ruler.
    metric: str | None = None
    reference: str = "fashion-mnist"  # bundled statistics, or a folder of images
    exif: Literal["apply", "ignore"] = "apply"  # whether these are turned as their EXIF says
    prompts: str = "fashion-mnist"  # bundled prompts, a text or caption file, or "none"
    # What says whether images show their prompts: the judge of the bundled classes, or clip:MODEL.
    alignment: str = CLASSES
    clip_long_prompts: LongPrompts = "cut"  # of alignment by CLIP
    # Extractors that the test shows beside the study's own, and that nothing is chosen by.
    rulers: tuple[str, ...] = ("squeezenet", "patches")
    negative_prompt: str = ""  # of every image
    # Images a network call. "auto": as many as are fastest on each worker.
    batch_size: int | Literal["auto"] = 50
    images: int = Field(300, ge=8, le=SEEDS)  # per trial
    rungs: tuple[int, ...] = ()  # images after which a trial may end, such as 60, 125 and `images`
    selection_images: int = Field(600, ge=8, le=SEEDS)  # per finalist
    test_images: int = Field(1000, ge=8, le=SEEDS)  # per schedule of the final table
    # Every schedule is measured at each of these means of its guidance; its distance is the mean of
    # theirs, or the worst. Empty: as it is.
    guidance_scales: tuple[float, ...] = ()
    over: Literal["mean", "worst"] = "mean"  # of guidance_scales: what is made of the distances
    # Of a video so many frames are measured, the middles of equal parts; 1: the middle one. The
    # distance is the mean of those of the frames at each place.
    video_frames: int = Field(1, ge=1)

    @field_validator("metric")
    @classmethod
    def _of_code(cls, spec: str | None) -> str | None:
        return None if spec is None else named(spec)

    @property
    def batch(self) -> int:
        """A job has whole batches of so many images, but the last."""
        return self.batch_size if isinstance(self.batch_size, int) else 50

    @property
    def word(self) -> str:
        """What tables and axes call the number that a search goes by."""
        if self.metric is not None:
            return self.metric.partition(":")[2]
        return "distance" if "patches" in self.extractor else "FD"

    @field_validator("batch_size", mode="before")
    @classmethod
    def _at_least_one(cls, size: object) -> object:
        if size != "auto" and (type(size) is not int or size < 1):
            raise ValueError(f'must be at least 1, or "auto", got {json.dumps(size)}')
        return size

    @field_validator("alignment")
    @classmethod
    def _judged(cls, spec: str) -> str:
        if spec != CLASSES and (not spec.startswith(CLIP) or spec == CLIP):
            raise ValueError(f'must be "classes" or "clip:MODEL", got {json.dumps(spec)}')
        return spec

    @model_validator(mode="after")
    def _guided(self) -> "EvaluationConfig":
        scales = self.guidance_scales
        if len(set(scales)) < len(scales) or not all(w > 1 for w in scales):
            raise ValueError(f"guidance_scales must differ and be above 1, got {list(scales)}")
        return self

    @model_validator(mode="after")
    def _framed(self) -> "EvaluationConfig":
        if self.video_frames > 1 and self.over == "worst":
            raise ValueError(
                f"video_frames: the mean over {self.video_frames} frames does not go with over = "
                '"worst"'
            )
        return self

    @model_validator(mode="after")
    def _rising(self) -> "EvaluationConfig":
        rungs = list(self.rungs)
        if rungs and (rungs != sorted(set(rungs)) or rungs[0] < 8 or rungs[-1] != self.images):
            raise ValueError(
                f"rungs must rise from at least 8 to images = {self.images}, got {rungs}"
            )
        return self


def fewer(search: "SearchConfig") -> dict[str, int]:
    """What of patterns and polish takes part where all else is as small as can be."""
    patterns, polish = min(search.patterns, 1), min(search.polish, 2)
    return {"patterns": patterns, "polish": polish, "polish_iterations": 1}


class SearchConfig(Section):
    """Who looks for the best point of the box, and how long."""

    # Gaussian processes, tree-structured Parzen estimators, evolution, or chance
    algorithm: Literal["gp-local", "gp", "tpe", "cmaes", "gp-cmaes", "nsga2", "random"] = "gp-local"
    trials: int = Field(60, ge=1)  # points of the box that are measured
    minutes: float | None = Field(None, gt=0)  # stop asking for new trials after this long
    seed: int = Field(0, ge=0)  # of the algorithm
    finalists: int = Field(8, ge=1)  # trials that are scored again on the selection seeds
    start_from: str | None = None  # folder of a finished run whose best trials come first
    patience: int | None = Field(None, ge=1)  # trials without a gain beyond the noise; then stop
    # Both: a Pareto front of trials. Else alignment is a floor under the one objective.
    objectives: tuple[Literal["fd", "alignment"], ...] = ("fd",)
    alignment_drop: float = Field(0.01, ge=0, le=1)  # share that may be lost to the teacher's
    patterns: int = Field(0, ge=0)  # of which steps are guided, the best of all; finalists, too
    polish: int = Field(0, ge=0)  # of the finalists, made better before the selection
    polish_iterations: int = Field(2, ge=1)  # of each: looks at what its numbers do
    polish_gain: bool = False  # may turn a gain of all steps, too, which the box has not

    @property
    def both(self) -> bool:
        """Whether alignment is an objective beside FD."""
        return len(self.objectives) > 1

    @model_validator(mode="after")
    def _one_or_both(self) -> "SearchConfig":
        if self.objectives not in (("fd",), ("fd", "alignment")):
            raise ValueError(
                'objectives must be ["fd"] or ["fd", "alignment"], '
                f"got {json.dumps(self.objectives)}"
            )
        if self.both and self.algorithm.endswith("cmaes"):
            raise ValueError(
                f"algorithm: {self.algorithm} has one objective; gp-local, gp, tpe, nsga2 and "
                "random take both"
            )
        if self.both and self.patience is not None:
            raise ValueError("patience is for one objective, not for a front")
        if self.both and self.polish:
            raise ValueError("polish is for one objective, not for a front")
        if self.both and self.patterns:
            raise ValueError("patterns are for one objective, not for a front")
        if self.polish_gain and not self.polish:
            raise ValueError("polish_gain is of a polish, and polish is 0")
        if self.polish > self.finalists + self.patterns:
            also = " + patterns" if self.patterns else ""
            also += f" = {self.finalists + self.patterns}"
            raise ValueError(f"polish must be at most finalists{also}, got {self.polish}")
        return self
