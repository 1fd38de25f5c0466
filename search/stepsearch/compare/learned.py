"""A contender whose steps depend on the image: the learned predictor of AMED."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.generate import fitting, seeded_noise
from stepsampler.models import LatentModel, Model
from stepsampler.sample import execute
from stepsearch.metrics.alignment import Prompt
from stepsearch.rivals.amed.predictor import Told, load
from stepsearch.rivals.amed.student import Middle, Student, denoiser
from stepsearch.rivals.amed.training import asked

SUFFIX = ".safetensors"


class OnPredictor:
    """A predictor's file on a model, at the guidance scale of its training or another.

    No schedule can say it: each image has levels of its own. `passes` are those of the network;
    the predictor's own arithmetic is less than a thousandth of one.

    Raises:
        UserError: not such a file, or one for another kind or size of model.
    """

    prompted = captioned = True

    def __init__(
        self,
        path: Path,
        model: Model,
        digest: str,
        negative_prompt: str = "",
        guidance_scale: float | None = None,
    ) -> None:
        predictor, about = load(path)
        self.middle = Middle(model)
        assert isinstance(model, LatentModel)
        difference = about["model"].mismatch(model.spec)
        if difference:
            raise UserError(f"{path} was trained for {difference}")
        setting = predictor.setting
        if guidance_scale is not None:
            setting = replace(setting, guidance_scale=guidance_scale)
        self.student = Student(setting, model.noise)
        self.predictor, self.model = predictor.to(model.device), model
        self.negative_prompt = negative_prompt
        self.name = path.name.removesuffix(SUFFIX)
        self.steps: int | None = setting.num_steps
        self.passes: float | None = self.student.passes(model)
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
        what = f"amed {weights} {setting} {digest} {model.shape} {negative_prompt}"
        self.identity = hashlib.sha256(what.encode()).hexdigest()[:24]

    @torch.inference_mode()
    def batches(self, seeds: range, prompts: list[Prompt], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            model, watched = self.model, self.middle.watched()
            # a compiled network does not tell what is inside it
            with fitting(model, len(seeds[part])), watched, model.uncompiled():
                yield self._made(seeds[part], self.texts(seeds[part], prompts[part]))

    def _made(self, seeds: range, texts: list[str]) -> Tensor:
        model, student = self.model, self.student
        noise = seeded_noise(seeds, model.shape).to(model.device)

        def choose(k: int) -> Told:
            return asked(self.predictor, student, self.middle, k, len(noise))

        denoise = denoiser(model, texts, self.negative_prompt)
        rows = student.rows(choose)
        start = noise * student.grid[0]
        *_, latents = execute(denoise, start, rows, depth=student.depth)
        return model.decode(latents).cpu()

    def texts(self, seeds: range, prompts: list[Prompt]) -> list[str]:
        return [prompt.text for prompt in prompts]
