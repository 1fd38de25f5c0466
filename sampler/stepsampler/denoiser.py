"""Networks that predict epsilon, v, x0 or a flow, as x0-predictions with guidance."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf, lcm

import torch
from torch import Tensor

from stepsampler.errors import UserError
from stepsampler.noise import Noise
from stepsampler.schedule import FreeU, Step
from stepsampler.schedule.parts import Unconditional

# What the network is told beside x and the time, by name; each of shape (n, ...), one row an image.
Condition = Mapping[str, Tensor]
# (x as scaled by `noise.scales`; time as the network takes it; condition) -> its output
Network = Callable[[Tensor, float, Condition], Tensor]
FreeUSwitch = Callable[[FreeU], AbstractContextManager[None]]
# (the output under the negative prompt, that under the prompt, w) -> the guided output
Combine = Callable[[Tensor, Tensor, float], Tensor]

KEPT = 2**28  # bytes of answers
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def classifier_free(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    """Ho & Salimans 2022, with their w + 1 as w."""
    return uncond + w * (cond - uncond)


def direction(uncond: Tensor, cond: Tensor, w: float) -> Tensor:
    """Guidance as a direction: along the last axis it has the length of the conditional output."""
    guided = classifier_free(uncond, cond, w)
    ratio: Tensor = cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    return guided * ratio


class FirstCalls:
    """What a network answered at `time` or above, for when it is asked the very same again.

    Schedules that are compared begin with the same noise of the same seeds, most of them at the
    model's highest level. There all ask the network the same, and the answer is known bit for bit.
    Answers lie in the memory of the CPU; the longest unasked are forgotten, above `limit` bytes.
    Of schedules that differ in later steps alone (`beginning_alike`), more is known.
    """

    def __init__(self, time: float, limit: int = KEPT) -> None:
        self.time, self.limit = time, limit
        self.known_from = time  # whether it was asked before is looked for there and above
        self.saved = 0  # network passes that were not needed
        self._answers: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, network: Network, x: Tensor, time: float, condition: Condition) -> Tensor:
        """The network's output; gradients pass by what is known."""
        if time < min(self.time, self.known_from) or torch.is_grad_enabled():
            return network(x, time, condition)
        key = _digest(x, time, condition)
        known = self._answers.get(key)
        if known is None:
            answer = network(x, time, condition)
            if time < self.time:
                return answer
            self._answers[key] = answer.cpu()
            held = sum(kept.nbytes for kept in self._answers.values())
            while held > self.limit:
                held -= self._answers.popitem(last=False)[1].nbytes
            return answer
        self._answers.move_to_end(key)
        self.saved += len(x)
        return known.to(x.device)

    @contextmanager
    def beginning_alike(self, first: bool) -> Iterator[None]:
        """Inside, all answers of the first schedule are kept, and the others look for them."""
        before = self.time, self.known_from
        everywhere = -inf  # the time of EDM's small levels is below 0
        self.time, self.known_from = everywhere if first else self.time, everywhere
        try:
            yield
        finally:
            self.time, self.known_from = before


def _digest(x: Tensor, time: float, condition: Condition) -> bytes:
    found = hashlib.blake2b(repr((time, sorted(condition))).encode(), digest_size=16)
    for tensor in (x, *(condition[name] for name in sorted(condition))):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.digest()


@dataclass(frozen=True)
class GuidedDenoiser:
    """x0 = uncond + w (cond - uncond), or what the family means; w = 1 costs one pass, else two.

    Both halves go through the network as one batch of 2 n, or apart where their texts differ in
    length: padding would cost time. Where guidance is distilled, the scale is an input of the
    network, `guidance` of the condition, and every call is one pass. Arithmetic outside of the
    network is done in the dtype of `x`.

    A step that reuses guidance takes cond - uncond of the network's outputs from the last call that
    had both, since it changes slowly (as in Tortoise and Hare Guidance, arXiv 2511.04117). So the
    calls are those of one trajectory, in its order.

    Raises:
        UserError: an unknown prediction type; guidance without an unconditional side; Free-U on a
            model that has none.
    """

    network: Network
    noise: Noise
    prediction_type: str
    cond: Condition
    uncond: Condition | None
    distilled: bool = False
    free_u: FreeUSwitch | None = None
    combine: Combine = classifier_free
    first_calls: FirstCalls | None = None  # of this very network
    _difference: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTIONS:
            raise UserError(
                f"prediction_type must be one of {', '.join(PREDICTIONS)}, "
                f"got {self.prediction_type!r}"
            )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        c_in, c_skip, c_out = self.noise.scales(step.sigma, self.prediction_type)
        output = self._output(c_in * x, self.noise.network_time(step.sigma * step.time_scale), step)
        if c_skip == 0:  # the network predicts x0 itself
            return output
        return (x if c_skip == 1 else c_skip * x) + c_out * output

    def _output(self, x: Tensor, time: float, step: Step) -> Tensor:
        if step.free_u is None:
            return self._guided(x, time, step)
        if self.free_u is None:
            raise UserError("the schedule uses Free-U, which only U-Nets with skips have")
        with self.free_u(step.free_u):
            return self._guided(x, time, step)

    def _guided(self, x: Tensor, time: float, step: Step) -> Tensor:
        w, ask = step.guidance_scale, self.network
        if self.first_calls is not None and step.free_u is None:
            ask = partial(self.first_calls, self.network)
        if self.distilled:
            guidance = torch.full((len(x),), w, device=x.device)
            return ask(x, time, {**self.cond, "guidance": guidance})
        if w == 1:
            return ask(x, time, self.cond)
        if self.uncond is None:
            raise UserError(
                f"guidance_scale is {w:g}, but the model is unconditional: it must be 1"
            )
        if isinstance(step, Unconditional):
            return ask(x, time, self.uncond)
        if step.guidance_reuse:
            cond = ask(x, time, self.cond)
            uncond = cond - self._difference[0]
        elif _shapes(self.uncond) == _shapes(self.cond):
            both = {k: torch.cat([self.uncond[k], v]) for k, v in self.cond.items()}
            uncond, cond = ask(torch.cat([x, x]), time, both).chunk(2)
        else:
            uncond, cond = (ask(x, time, half) for half in (self.uncond, self.cond))
        if not step.guidance_reuse:
            self._difference[:] = [cond - uncond]
        output = self.combine(uncond, cond, w)
        return rescale(output, cond, step.guidance_rescale) if step.guidance_rescale else output


def _shapes(condition: Condition) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in condition.items()}


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Rows of a condition (n, …) under each other; texts (n, tokens, width) may differ in length.

    Shorter ones are repeated up to a common length, as in ComfyUI: what attends to a text several
    times over attends to it as to the text once.
    """
    if len({row.shape[1:] for row in rows}) > 1:
        length = lcm(*(row.shape[1] for row in rows))
        rows = [row.repeat(1, length // row.shape[1], 1) for row in rows]
    return torch.cat(list(rows))


def padded(rows: Sequence[Tensor]) -> Tensor:
    """As `stack`, with zeros at the end of shorter texts: for networks that are told of it."""
    length = max(row.shape[1] for row in rows) if rows[0].ndim > 1 else 0
    every = [
        torch.cat([row, row.new_zeros(len(row), length - row.shape[1], *row.shape[2:])], 1)
        if length
        else row
        for row in rows
    ]
    return torch.cat(every)


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Guidance without its growth of contrast (Lin et al. 2023, eq. 15 and 16), phi in [0, 1]."""
    axes = tuple(range(1, guided.ndim))
    ratio = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (phi * ratio + 1 - phi)
