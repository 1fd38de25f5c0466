"""The learned predictor of AMED, and the file that holds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import silu

from stepsampler.errors import UserError
from stepsampler.schedule import SOLVERS, WITH_CORRECTOR, WITHOUT_FORMS
from stepsampler.schedule.reading import model_from
from stepsampler.support.checks import keys, one_of, parse, shown
from stepsampler.support.files import meant
from stepsearch.paths import write_whole

FORMAT = "stepsearch.amed/1"
HIDDEN, CODE, EMBEDDING = 128, 4, 8  # widths: of the encoder, its output, and a level's embedding
LONGEST = 10_000.0  # of the embedding, in units of sigma
STUDENTS = tuple(name for name in SOLVERS if name not in (*WITH_CORRECTOR, *WITHOUT_FORMS))
MOST = 1000  # calls, and steps that a teacher inserts
WIDEST = 2**16  # of a bottleneck; of SDXL's latents, 128 x 128, the middle has 1,024
FARTHEST = 0.5  # of gain and time_scale from 1


class Told(NamedTuple):
    """What a predictor says of an interval, each of shape (n,)."""

    r: Tensor  # where the step is inserted, a share of the way in log sigma, in (0, 1)
    gain: Tensor  # of the step from there, `scale_dir`
    time_scale: Tensor  # the network is told sigma times this there


@dataclass(frozen=True)
class Setting:
    """What a predictor was trained for; by default the authors' for Stable Diffusion.

    `calls` is the paper's number of function evaluations, before guidance doubles the passes.
    `scale_dir` and `scale_time` bound gain and time_scale to 1 plus or minus so much; 0 is no such
    output. `between` is the paper's M. `bottleneck` is how many numbers the U-Net's middle has, a
    mean over its channels; 0 where that is still to be found.

    Raises:
        UserError: names the field, the rule and the value.
    """

    calls: int
    guidance_scale: float
    bottleneck: int
    order: int = 2
    solver: str = "dpmpp-midpoint"
    prediction: str = "noise"
    scale_dir: float = 0.0
    scale_time: float = 0.2
    between: int = 2

    def __post_init__(self) -> None:
        one_of("solver", self.solver, STUDENTS)
        one_of("prediction", self.prediction, ("data", "noise"))
        for name, low, high in (
            ("calls", 1, MOST),
            ("bottleneck", 0, WIDEST),
            ("order", 1, SOLVERS[self.solver]),
            ("between", 1, MOST),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise UserError(f"{name} must be {low} to {high:,}, got {shown(value)}")
        for name in ("guidance_scale", "scale_dir", "scale_time"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not (isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a finite number >= 0, got {shown(value)}")
            if name != "guidance_scale" and value > FARTHEST:
                raise UserError(f"{name} must be at most {FARTHEST}, got {value:g}")

    @property
    def afs(self) -> bool:
        """Whether the first step is analytic: with an odd number of calls it must be."""
        return self.calls % 2 == 1

    @property
    def num_steps(self) -> int:
        """Of the student, an analytic one included."""
        return self.calls + self.afs

    @property
    def intervals(self) -> int:
        """Of the grid, into each of which a step is inserted."""
        return self.num_steps // 2


class Predictor(nn.Module):
    """Middle of the U-Net and two levels -> `Told` (Zhou et al. 2024, arXiv 2312.00094).

    Layers and their names are those of the authors' `AMED_predictor`: 64 numbers of the U-Net's
    middle make 8,900 parameters.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        both = 2 * EMBEDDING + CODE
        self.map_layer0 = nn.Linear(EMBEDDING, EMBEDDING)
        self.enc_layer0 = nn.Linear(setting.bottleneck, HIDDEN)
        self.enc_layer1 = nn.Linear(HIDDEN, CODE)
        self.fc_r = nn.Linear(both, 1)
        self.fc_scale_dir = nn.Linear(both, 1) if setting.scale_dir else None
        self.fc_scale_time = nn.Linear(both, 1) if setting.scale_time else None
        for name, layer in self.named_children():
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)
            if name == "map_layer0":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")

    def forward(self, middle: Tensor, sigma: float, sigma_next: float) -> Told:
        """`middle` has the shape (n, bottleneck); zeros where no network was called."""
        levels = [silu(self.map_layer0(embedding(s).to(middle))) for s in (sigma, sigma_next)]
        levels = [level.expand(len(middle), -1) for level in levels]
        code = self.enc_layer1(silu(self.enc_layer0(middle)))
        seen = torch.cat([code, *levels], 1)

        def within(layer: nn.Module | None, bound: float) -> Tensor:
            if layer is None:
                return seen.new_ones(len(seen))
            return 1 + bound * (2 * torch.sigmoid(layer(seen)[:, 0]) - 1)

        return Told(
            torch.sigmoid(self.fc_r(seen)[:, 0]),
            within(self.fc_scale_dir, self.setting.scale_dir),
            within(self.fc_scale_time, self.setting.scale_time),
        )


def embedding(sigma: float) -> Tensor:
    """Sines and cosines of a level, (1, EMBEDDING)."""
    half = EMBEDDING // 2
    frequencies = LONGEST ** -(torch.arange(half) / (half - 1))
    return torch.cat([(sigma * frequencies).sin(), (sigma * frequencies).cos()])[None]


def save(predictor: Predictor, path: Path, about: Mapping[str, Any]) -> None:
    """Weights, and in the file's metadata the setting and `about`, as JSON."""
    data = {"setting": asdict(predictor.setting), **about}
    metadata = {"format": FORMAT, "amed": json.dumps(data)}
    tensors = {k: v.contiguous() for k, v in predictor.state_dict().items()}
    write_whole(path, lambda p: save_file(tensors, p, metadata))


def load(path: Path) -> tuple[Predictor, dict[str, Any]]:
    """A predictor, and what else its file says: `model` as a `ModelSpec`.

    Raises:
        UserError: not such a file; names it and the reason.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file{meant(path)}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is no predictor of AMED: its metadata has no format {FORMAT!r}; "
            "`stepsearch amed` makes one"
        )
    try:
        about = parse(metadata["amed"])
        if not isinstance(about, dict):
            raise UserError("it says no setting")
        setting = Setting(**keys(about.pop("setting"), Setting, "setting"))
        about["model"] = model_from(about["model"])
        predictor = Predictor(setting)
        expected, got = (
            {k: tuple(v.shape) for k, v in known.items()}
            for known in (predictor.state_dict(), tensors)
        )
        for name in sorted(expected.keys() | got.keys()):
            if expected.get(name) != got.get(name):
                shapes = f"{expected.get(name, 'that of no weight')}, got {got.get(name, 'none')}"
                raise UserError(f"the shape of {name} must be {shapes}")
        if not all(values.isfinite().all() for values in tensors.values()):
            raise UserError("its weights are not finite")
        predictor.load_state_dict(tensors)
    except KeyError as error:
        raise UserError(f"{path} is a damaged predictor of AMED: no {error}") from error
    except (UserError, TypeError) as error:
        raise UserError(f"{path} is a damaged predictor of AMED: {error}") from error
    return predictor.eval(), about
