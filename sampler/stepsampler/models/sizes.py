"""Which images a model can make, and of which size those are that it was trained on."""

from typing import Any, ClassVar

from stepsampler.errors import UserError
from stepsampler.models.conditions import wider
from stepsampler.support.sizes import Size, sides, size_of

NO_SIZE = "the model's config does not say how large its images are (sample_size): give the size"


class Shaped:
    """The part of a model that knows shapes: of its latents and of its images.

    `net` is the U-Net or transformer, `shape` that of one latent, as `Model` has it.
    """

    patch: ClassVar[int] = 2  # sides of latents are multiples of it
    square: ClassVar[bool] = False  # can make no other images

    pipeline: Any
    net: Any
    shape: tuple[int, ...]

    @property
    def _tokens(self) -> int:
        """Patches of one image: some flow models place their timesteps by that number."""
        patch = self.net.config.get("patch_size") or 1
        return (self.shape[1] // patch) * (self.shape[2] // patch)

    @property
    def _most(self) -> int | None:
        """Entries of a latent along one side for which the network has places; None: any."""
        return None

    @property
    def _factor(self) -> int:
        """Pixels along one side of a latent's entry; 1 for models of pixels."""
        return int(getattr(self.pipeline, "vae_scale_factor", 1))

    def _trained_shape(self) -> tuple[int, int, int]:
        """That of the latents on which the model was trained, sides of 0 if unknown."""
        return self.net.config.in_channels, *trained_sides(self.net.config)

    @property
    def _multiple(self) -> int:
        """Pixels of which both sides of an image are multiples."""
        return self.patch * self._factor

    def _latent_shape(self, size: Size | None) -> tuple[int, int, int]:
        """Of images of `size` pixels; by default those the model was trained on."""
        channels, *trained = self._trained_shape()
        vae = self.pipeline.components.get("vae")
        latent = channels if vae is None else self._vae_channels(vae.config, channels)
        if channels != latent:
            name = type(self.pipeline).__name__
            raise UserError(f"the {name} cannot be sampled: {wider(channels, latent)}")
        factor, most = self._factor, self._most and self._most * self._factor
        if size is None and not all(trained):
            raise UserError(NO_SIZE)
        height, width = (side * factor for side in trained)
        if size is not None:
            width, height = sides(size)
        check_size(width, height, self._multiple, most, self.square)
        return (channels, height // factor, width // factor)

    def _vae_channels(self, config: Any, channels: int) -> int:
        """Channels that latents must have for the VAE; `channels` if it does not say."""
        return int(config.get("latent_channels", channels))

    @property
    def height(self) -> int:
        """Of the images in pixels."""
        return self.shape[-2] * self._factor

    @property
    def width(self) -> int:
        """Of the images in pixels."""
        return self.shape[-1] * self._factor

    @property
    def size(self) -> Size:
        """Of the images in pixels: a side, or WIDTHxHEIGHT."""
        return size_of(self.width, self.height)


def trained_sides(config: Any) -> tuple[int, int]:
    """Height and width of the latents on which a network was trained; 0 where it does not say."""
    side = config.sample_size
    if side is None or isinstance(side, int):
        return side or 0, side or 0
    height, width = side
    return int(height), int(width)


def check_size(width: int, height: int, multiple: int, most: int | None, square: bool) -> None:
    """Refuse images that a model cannot make, sides in pixels.

    Raises:
        UserError: names the rule, the size and the nearest ones that can be made.
    """
    rules = []
    if any(side % multiple or side < multiple for side in (width, height)):
        rules.append(f"a multiple of {multiple} pixels")
    if most and max(width, height) > most:
        rules.append(f"at most {most:,} pixels a side")
    if square and width != height:
        rules.append("that of a square, as the network makes no other images")
    if not rules:
        return
    largest = (most or width + height + multiple) // multiple  # in multiples, as the next two
    below = [min(max(1, side // multiple), largest) for side in (width, height)]
    above = [min(-(-side // multiple), largest) for side in (width, height)]
    if square:
        below, above = [min(below)] * 2, [max(above)] * 2
    near = dict.fromkeys(str(size_of(w * multiple, h * multiple)) for w, h in (below, above))
    raise UserError(
        f"size must be {' and '.join(rules)}, got {size_of(width, height)}: the nearest "
        f"{'are' if len(near) > 1 else 'is'} {' and '.join(near)}"
    )
