"""The model that MLflow keeps of a schedule: prompts and seeds in, pictures out.

MLflow copies this file as it is ("models from code") and runs it when the model is loaded, so it
imports nothing of the search; `stepsampler` is copied beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class FoundSchedule(PythonModel):  # type: ignore[misc]
    """Makes the picture of each prompt and seed under one schedule, on a GPU where there is one.

    Its settings, which `mlflow.pyfunc.load_model(…, model_config={…})` replaces: `device`, such as
    "cuda:0", and `batch_size`.
    """

    def load_context(self, context: Any) -> None:
        """Load the schedule and the diffusion model that it is for.

        Raises:
            UserError: the diffusion model is not here, or another one than the schedule is for.
        """
        import torch

        from stepsampler import models
        from stepsampler.schedule import load
        from stepsampler.support.options import ModelOptions

        told = context.model_config
        device = told["device"] or ("cuda:0" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.negative_prompt = int(told["batch_size"]), told["negative_prompt"]
        options: dict[str, Any]
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in told["model"].items()}
        self.schedule = load(Path(context.artifacts["schedule"]))
        self.model = models.open_model(ModelOptions(**options), device)
        self.model.check(self.schedule)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """A frame with the columns `prompt` and `seed` becomes one with `image`: PNG files, bytes.

        Of a video it is an animated PNG. A picture depends on its own prompt and seed alone.
        """
        images = list(self._images(list(model_input["prompt"]), list(model_input["seed"])))
        return pd.DataFrame({"image": images}, index=model_input.index)

    def _images(self, prompts: list[str], seeds: list[int]) -> Iterator[bytes]:
        from stepsampler.generate import generate
        from stepsampler.support.pictures import save_png

        batches = generate(
            self.model,
            self.schedule,
            prompts,
            [int(seed) for seed in seeds],
            negative_prompts=self.negative_prompt,
            batch_size=self.batch_size,
        )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            for batch in batches:
                for image in batch.made:
                    save_png(image, path)
                    yield path.read_bytes()


mlflow.models.set_model(FoundSchedule())
