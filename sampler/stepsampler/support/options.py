"""What a model is loaded with: every option once, with its help, its rules and where it counts.

The commands make their options from it (`cli.options.with_model`), a study's `[model]` its keys,
`models.open_model` takes it as it is. A new option is a field here, and the code that heeds it.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from stepsampler.errors import UserError
from stepsampler.support.sizes import Size, sides, size_of

Dtype = Literal["float32", "float16", "bfloat16"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
LongPrompts = Literal["cut", "chunk"]
# Whether the manifest of a batch names it: always; where it is not as by default; or never, as the
# digest of the weights or the shape of the images tells it.
Named = Literal["always", "if set", "never"]


def facts(
    help: str = "",
    *,
    flag: str | None = None,
    least: int | None = None,
    of_weights: bool = False,
    of_schedule: bool = False,
    named: Named = "if set",
) -> dict[str, Any]:
    """What there is to know of an option; without `help` no command has it.

    `flag` is its name on the command line, by default that of the field, `least` its lowest value.
    `of_weights`: it says something of weights that a dry run does not load. `of_schedule`: the
    levels of a schedule for the model depend on it, or whether the model can be loaded.
    """
    return locals()


@dataclass(frozen=True)
class ModelOptions:
    """A model, and how it is loaded.

    Raises:
        UserError: names the option, the rule and the value.
    """

    id: str = field(
        default="tiny",
        metadata=facts(
            "tiny, tiny-second, a folder, a hub id or a .safetensors checkpoint.",
            flag="--model",
            of_schedule=True,
            named="never",
        ),
    )
    config: str | None = field(
        default=None,
        metadata=facts(
            "Folder or hub id with the configs of a checkpoint file.",
            of_weights=True,
            of_schedule=True,
            named="always",
        ),
    )
    variant: str | None = field(
        default=None,
        metadata=facts(
            "Which weights of a folder or hub id, such as fp16.",
            of_weights=True,
            of_schedule=True,
            named="never",
        ),
    )
    prediction_type: Prediction | None = field(
        default=None,
        metadata=facts(
            "epsilon, v_prediction or sample; overrules what checkpoint and config say.",
            of_weights=True,
            of_schedule=True,
            named="never",
        ),
    )
    zero_snr: bool | None = field(
        default=None,
        metadata=facts(
            "Zero terminal SNR or not; overrules what checkpoint and config say.",
            of_weights=True,
            of_schedule=True,
            named="never",
        ),
    )
    vae: str | None = field(
        default=None,
        metadata=facts(
            "Folder, hub id or .safetensors file of another VAE.",
            of_weights=True,
            named="always",
        ),
    )
    loras: tuple[str, ...] = field(
        default=(),
        metadata=facts(
            "FILE or FILE:WEIGHT; may be given several times.",
            flag="--lora",
            of_weights=True,
            named="always",
        ),
    )
    textual_inversions: tuple[str, ...] = field(
        default=(),
        metadata=facts(
            "FILE with a new word; may be given several times.",
            flag="--textual-inversion",
            of_weights=True,
            named="always",
        ),
    )
    statistics: tuple[str, ...] = field(
        default=(),
        metadata=facts(
            "FILE or folder with statistics, for dpm-v3; may be given several times.",
            of_weights=True,
        ),
    )
    npnet: str | None = field(
        default=None,
        metadata=facts(
            "FILE of the network that a schedule with learned golden noise names.",
            of_weights=True,
            named="never",  # by the schedule, and a schedule is by its digest
        ),
    )
    clip_skip: int | None = field(
        default=None,
        metadata=facts(
            "Layers of CLIP to leave out, as diffusers counts: A1111's number less 1.", least=1
        ),
    )
    long_prompts: LongPrompts = field(
        default="cut", metadata=facts("cut, or chunk: all of a prompt, in parts of CLIP's length.")
    )
    size: Size | None = field(
        default=None,
        metadata=facts(
            "Of the images in pixels: 512, or 768x1024, width x height.",
            of_schedule=True,
            named="never",
        ),
    )
    dtype: Dtype = field(
        default="float32",
        metadata=facts("float32, float16 or bfloat16.", of_schedule=True, named="never"),
    )
    frames: int | None = field(
        default=None,
        metadata=facts("Of a video; by default the pipeline's own number.", least=1),
    )
    # The pipeline samples itself also where our own loop could
    stock: bool = field(default=False, metadata=facts())
    # By torch: needs a compiler, pays off after some 10,000 passes
    compile: bool = field(default=False, metadata=facts())

    def __post_init__(self) -> None:
        if self.size is not None:  # one way to write each
            name = self.called(next(f for f in fields(ModelOptions) if f.name == "size"))
            object.__setattr__(self, "size", size_of(*sides(self.size, name)))
        for known in fields(ModelOptions):
            value = getattr(self, known.name)
            if value is None:
                continue
            choices = choices_of(known)
            if choices and value not in choices:
                raise UserError(
                    f"{self.called(known)} must be one of {', '.join(choices)}, got {value!r}"
                )
            least = known.metadata["least"]
            if least is not None and value < least:
                raise UserError(f"{self.called(known)} must be at least {least}, got {value}")

    @staticmethod
    def called(known: "Field[Any]") -> str:
        """The name of a field in a sentence about it."""
        return flag_of(known)

    @property
    def additions(self) -> dict[str, Any]:
        """What the weights are loaded with, by the names of the fields: what is not as by default.

        Neither the model itself nor its number format, size and compiling.
        """
        apart = ("id", "dtype", "size", "compile")
        return {f.name: getattr(self, f.name) for f in self._set() if f.name not in apart}

    @property
    def flags(self) -> list[str]:
        """The names on the command line of what is not as by default."""
        return self.flags_beside(DEFAULTS)

    def flags_beside(self, usual: "ModelOptions") -> list[str]:
        """The same of what is not as in `usual`."""
        known = fields(ModelOptions)
        return [flag_of(f) for f in known if getattr(self, f.name) != getattr(usual, f.name)]

    @property
    def named(self) -> dict[str, Any]:
        """What the manifest of a batch names, as plain JSON values."""
        chosen = {f.name for f in self._set()}
        return {
            key_of(f): _plain(getattr(self, f.name))
            for f in fields(ModelOptions)
            if f.metadata["named"] == "always"
            or (f.metadata["named"] == "if set" and f.name in chosen)
        }

    @property
    def told(self) -> dict[str, Any]:
        """All that a command can say, as plain JSON values."""
        return {key_of(f): _plain(getattr(self, f.name)) for f in commands()}

    def _set(self) -> "list[Field[Any]]":
        return [f for f in fields(ModelOptions) if getattr(self, f.name) != f.default]


def commands(of_schedule: bool = False) -> "list[Field[Any]]":
    """The fields that commands have as options, or those about schedules alone."""
    known = [f for f in fields(ModelOptions) if f.metadata["help"]]
    return [f for f in known if f.metadata["of_schedule"] or not of_schedule]


def of_weights() -> dict[str, Any]:
    """The defaults of what is said of weights."""
    return {f.name: f.default for f in fields(ModelOptions) if f.metadata["of_weights"]}


def flag_of(known: "Field[Any]") -> str:
    """--textual-inversion"""
    return known.metadata["flag"] or f"--{known.name.replace('_', '-')}"


def key_of(known: "Field[Any]") -> str:
    """textual_inversion: the flag as a key."""
    return flag_of(known).removeprefix("--").replace("-", "_")


def choices_of(known: "Field[Any]") -> tuple[str, ...]:
    """The values of a field that has only a few; else none."""
    kinds = (known.type, *get_args(known.type))
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


DEFAULTS = ModelOptions()
