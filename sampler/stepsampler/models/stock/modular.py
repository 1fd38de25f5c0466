"""Modular pipelines of diffusers: blocks in place of a call's body, a guider and a scheduler."""

from typing import Any

from stepsampler.models.stock import StockModel
from stepsampler.models.stock.known import NOT, OTHER
from stepsampler.support.sizes import Size

OUTPUTS = ("images", "videos")


class ModularModel(StockModel):
    """A modular pipeline whose components are loaded."""

    @staticmethod
    def _why_not(pipeline: Any) -> str | None:
        name = type(pipeline).__name__
        stock = name.replace("Modular", "")
        if stock in NOT:
            return NOT[stock]
        if name == "ModularPipeline" or OTHER.search(stock):
            return "it is no pipeline from texts to pictures or videos"
        schedulers = [part for part in pipeline.component_names if "scheduler" in part]
        if schedulers != ["scheduler"]:
            return f"it has {len(schedulers) or 'no'} scheduler{'s' if schedulers else ''}"
        known = pipeline.blocks.input_names
        for needed in ("prompt", "generator", "num_inference_steps"):
            if needed not in known:
                return f"its blocks take no {needed}"
        if _output(pipeline) is None:
            return "its blocks make neither images nor videos"
        return None

    def _read_size(self, size: Size | None) -> tuple[int, int]:
        width, height = (getattr(self.pipeline, f"default_{s}", None) for s in ("width", "height"))
        if size is None and isinstance(width, int) and isinstance(height, int):
            return width, height
        return super()._read_size(size)

    def options(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A negative prompt always: blocks take none for one text, not for each."""
        found: dict[str, Any] = super().options(*args, **kwargs)
        zeros = self.pipeline.config.get("force_zeros_for_empty_prompt")
        if "negative_prompt" in self._inputs and not zeros:
            found.setdefault("negative_prompt", [""] * len(found["prompt"]))
        return found

    def _made(self, options: dict[str, Any]) -> Any:
        return self.pipeline(**options, output=_output(self.pipeline))


def _output(pipeline: Any) -> str | None:
    made = {each.name for each in pipeline.blocks.outputs}
    return next((name for name in OUTPUTS if name in made), None)
