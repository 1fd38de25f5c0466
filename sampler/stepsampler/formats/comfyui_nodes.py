"""What the nodes of a ComfyUI workflow say of a schedule (ComfyUI 0.30).

From the sampling node upwards each node is read, is no part of a schedule (loaders, prompts), or
is named as what a schedule does not hold.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import exp, inf, isfinite
from typing import Any

import numpy as np

from stepsampler.errors import UserError
from stepsampler.formats import common
from stepsampler.formats.comfyui_graph import Graph, Link, Node
from stepsampler.formats.comfyui_sampling import (
    ALIASES,
    EDM_KINDS,
    SAMPLERS,
    Levels,
    manual_sigmas,
    scheduler,
)
from stepsampler.formats.common import Reading, Sampler, Target
from stepsampler.noise import EDMSchedule, FlowSchedule, Noise, NoiseSchedule
from stepsampler.schedule import Schedule

SAMPLING = ("SamplerCustomAdvanced", "SamplerCustom", "KSampler", "KSamplerAdvanced")
GUIDERS = ("CFGGuider", "BasicGuider")
SIGMAS = ("ManualSigmas", "BasicScheduler", "KarrasScheduler", "ExponentialScheduler")
SHIFTS = ("ModelSamplingSD3", "ModelSamplingAuraFlow", "ModelSamplingFlux")
KINDS = ("ModelSamplingDiscrete", "ModelSamplingContinuousEDM")  # of noise
PATCHES = (*SHIFTS, "CFGOverride", "RescaleCFG")
LOOSE = (*SIGMAS, *GUIDERS, *PATCHES, *KINDS, "KSamplerSelect", "FluxGuidance", "RandomNoise")
MOST = 10_000  # steps of a node
# Weights, words and a latent of zeros: they show another image, on the same path.
BESIDE = re.compile(
    r"(Checkpoint|UNET|CLIP|DualCLIP|TripleCLIP|QuadrupleCLIP|VAE|Diffusers|ImageOnlyCheckpoint)"
    r"Loader(Simple)?$|Lora|CLIPSetLastLayer$|CLIPTextEncode|Empty\w*Latent|TextEncode|"
    r"Conditioning(Combine|Concat|Average|ZeroOut)$"
)
# `sampling` of ModelSamplingDiscrete; else of no model of ours
PREDICTIONS = {"eps": "epsilon", "v_prediction": "v_prediction", "x0": "sample"}
FLUX_GUIDANCE = 3.5  # where a workflow gives a model with distilled guidance none
# Shift and table of a family where no node says otherwise; FLUX.1-schnell has no guidance input.
DEFAULTS = {"sd3": (3.0, 1000), "flux": (exp(1.15), 10_000)}
SCHNELL = (1.0, 1000)


def read(nodes: Graph, target: Target) -> Reading:
    """The schedule of the one sampling node, or of loose nodes as `comfyui.export` writes them.

    Raises:
        UserError: there is none or several, or its sigmas, sampler or guidance cannot be read.
    """
    return _Reader(nodes, target).read()


@dataclass
class _Reader:
    nodes: Graph
    target: Target
    lost: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)  # ids of what was taken account of

    def read(self) -> Reading:
        found = [node for node in self.nodes.values() if node.kind in SAMPLING]
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise UserError(f"the workflow has several sampling nodes, {listed}: leave one of them")
        made = self._sampled(found[0]) if found else self._loose()
        if common.per_step_guidance_of_heun(made):
            self.lost.append("guidance per step of heun, whose second call has that of the next")
        beside = sorted({node.kind for key, node in self.nodes.items() if key not in self.seen})
        notes = (f"not part of a schedule: {', '.join(beside)}",) if beside else ()
        return Reading(made, tuple(dict.fromkeys(self.lost)), notes)

    def _loose(self) -> Schedule:
        """Nodes without links: one list of sigmas, and at most one sampler and one guider."""
        of_kind: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            of_kind.setdefault(node.kind, []).append(node)
            if node.kind in KINDS and not isinstance(self.target.noise, FlowSchedule):
                self._kind(node)
            elif not (node.kind in LOOSE or BESIDE.search(node.kind)):
                self._lose(node)
        for kind, nodes in of_kind.items():
            if kind in LOOSE and kind != "CFGOverride" and len(nodes) > 1:
                raise UserError(f"there are several nodes of {kind}, {', '.join(map(str, nodes))}")
        sources = [nodes[0] for kind, nodes in of_kind.items() if kind in SIGMAS]
        if len(sources) != 1:
            kinds = ", ".join(SAMPLING)
            like = [
                str(n) for n in self.nodes.values() if re.search("sampl", n.kind, re.IGNORECASE)
            ]
            others = f"; not read: {', '.join(like)}" if like and not sources else ""
            raise UserError(
                f"the workflow has no sampling node ({kinds}) and "
                f"{len(sources) or 'no'} nodes with sigmas, of which there must be one{others}"
            )
        patches = [node for node in self.nodes.values() if node.kind in PATCHES]
        sigmas = self._sigmas(sources[0], patches)
        select = of_kind.get("KSamplerSelect")
        sampler = self._sampler(select[0], "sampler_name") if select else None
        guider = next((of_kind[kind][0] for kind in GUIDERS if kind in of_kind), None)
        distilled = of_kind.get("FluxGuidance")
        return self._made(sigmas, sampler, guider, patches, distilled[0] if distilled else None)

    def _sampled(self, node: Node) -> Schedule:
        self.seen.add(node.id)
        guider = node
        if node.kind == "SamplerCustomAdvanced":
            guider = self._from(node, "guider")
            if guider.kind not in GUIDERS:
                raise UserError(f"{guider} is not read; {' and '.join(GUIDERS)} are")
            noise = self._from(node, "noise")
            if noise.kind != "RandomNoise":
                self._lose(noise)
            self.seen.add(noise.id)
        elif self._value(node, "add_noise", True) in (False, "disable"):
            self.lost.append(f"{node}: it starts without noise")
        latent = self._upstream(node.inputs.get("latent_image"))
        if latent:
            self._start(latent)
        patches = list(self._patches(guider))
        if node.kind in ("KSampler", "KSamplerAdvanced"):
            sampler, sigmas = self._sampler(node, "sampler_name"), self._all_in_one(node, patches)
        else:
            select = self._from(node, "sampler")
            if select.kind != "KSamplerSelect":
                raise UserError(f"{select} is not read; KSamplerSelect is")
            sampler = self._sampler(select, "sampler_name")
            source = self._from(node, "sigmas")
            own = list(self._patches(source)) if "model" in source.inputs else patches
            sigmas = self._sigmas(source, own)
        distilled = None
        for name in ("positive", "conditioning", "negative"):
            found = self._conditioning(guider.inputs.get(name))
            distilled = distilled or (found if name != "negative" else None)
        return self._made(sigmas, sampler, guider, patches, distilled)

    def _made(
        self,
        sigmas: list[float],
        sampler: Sampler | None,
        guider: Node | None,
        patches: list[Node],
        distilled: Node | None,
    ) -> Schedule:
        n, target = len(sigmas) - 1, self.target
        cfg = target.guidance_scale
        if guider:
            self.seen.add(guider.id)
            cfg = 1.0 if guider.kind == "BasicGuider" else self._number(guider, "cfg")
        if distilled and not isinstance(target.noise, FlowSchedule):
            raise UserError(f"{distilled} is for a flow model; name it with --model")
        if distilled:
            self.seen.add(distilled.id)
            target = target._replace(guidance="distilled")
        if target.guidance != "distilled":
            scales = self._scales(sigmas[:-1], cfg, patches)
            return self._rescaled(common.build(sigmas, scales, sampler, target), patches)
        scale = self._number(distilled, "guidance") if distilled else FLUX_GUIDANCE
        if not guider and not distilled:
            scale = target.guidance_scale
        if guider and cfg != 1:
            self.lost.append(f"cfg {cfg:g} of {guider} beside the distilled guidance")
        for node in patches:
            if node.kind in ("CFGOverride", "RescaleCFG"):
                self._lose(node)
        return common.build(sigmas, [scale] * n, sampler, target)

    def _scales(self, sigmas: Sequence[float], cfg: float, patches: list[Node]) -> list[float]:
        """Of each step; of overrides that overlap, the one nearest the sampler wins."""
        overrides = [node for node in patches if node.kind == "CFGOverride"]
        if not overrides:
            return [cfg] * len(sigmas)
        noise, _ = self._noise(patches)
        ranges = []
        for node in overrides:
            self.seen.add(node.id)
            start, end = (self._number(node, f"{edge}_percent") for edge in ("start", "end"))
            high = inf if start <= 0 else noise.sigma(noise.last * (1 - start))
            low = 0.0 if end >= 1 else noise.sigma(noise.last * (1 - end))
            ranges.append((low, high, self._number(node, "cfg")))
        return [
            next((scale for low, high, scale in ranges if low <= sigma <= high), cfg)
            for sigma in sigmas
        ]

    def _rescaled(self, made: Schedule, patches: list[Node]) -> Schedule:
        node = next((node for node in patches if node.kind == "RescaleCFG"), None)
        if node is None:
            return made
        self.seen.add(node.id)
        if not made.model or made.model.prediction_type != "v_prediction":
            self.lost.append(f"{node}: it is for v-prediction, which the model does not have")
            return made
        phi = self._number(node, "multiplier")
        steps = [replace(s, guidance_rescale=phi * (s.guidance_scale != 1)) for s in made.steps]
        return replace(made, steps=tuple(steps))

    def _sampler(self, node: Node, name: str) -> Sampler:
        self.seen.add(node.id)
        given = self._value(node, name)
        known = ALIASES.get(given, given) if isinstance(given, str) else None
        if known not in SAMPLERS:
            listed = ", ".join((*SAMPLERS, *ALIASES))
            raise UserError(f"sampler_name must be one of {listed}, got {given!r}")
        if isinstance(self.target.noise, FlowSchedule) and not SAMPLERS[known].flow:
            raise UserError(f"{given} of a flow model takes its lambda for -log sigma: not read")
        return SAMPLERS[known]

    def _sigmas(self, node: Node, patches: list[Node]) -> list[float]:
        self.seen.add(node.id)
        if node.kind == "ManualSigmas":
            return manual_sigmas(self._value(node, "sigmas"))
        if node.kind == "BasicScheduler":
            n, denoise = self._steps(node)
            total = n if denoise >= 1 else int(n / denoise)
            return self._named(node, total, patches)[-(n + 1) :]
        if node.kind in ("KarrasScheduler", "ExponentialScheduler"):
            n, _ = self._steps(node)
            high, low = self._number(node, "sigma_max"), self._number(node, "sigma_min")
            if not high > low > 0:
                raise UserError(f"{node}: sigma_max must be above sigma_min, and that above 0")
            if node.kind == "ExponentialScheduler":
                return [*np.geomspace(high, low, n).tolist(), 0.0]
            rho = self._number(node, "rho", 7.0)
            if rho <= 0:
                raise UserError(f"{node}: rho must be above 0, got {rho:g}")
            ends = high ** (1 / rho), low ** (1 / rho)
            return [*(np.linspace(*ends, n) ** rho).tolist(), 0.0]
        raise UserError(f"the sigmas come from {node}, which is not read; {', '.join(SIGMAS)} are")

    def _all_in_one(self, node: Node, patches: list[Node]) -> list[float]:
        """Of KSampler and KSamplerAdvanced."""
        n, denoise = self._steps(node)
        if node.kind == "KSampler":
            if denoise > 0.9999:  # all of them, where BasicScheduler takes the last n + 1
                return self._named(node, n, patches)
            return self._named(node, int(n / denoise), patches)[-(n + 1) :]
        sigmas = self._named(node, n, patches)
        start, end = (int(self._number(node, f"{edge}_at_step")) for edge in ("start", "end"))
        if end < len(sigmas) - 1:
            sigmas = sigmas[: end + 1]
            if self._value(node, "return_with_leftover_noise", "disable") != "enable":
                sigmas[-1:] = [0.0]
        if start >= len(sigmas) - 1:
            raise UserError(f"{node}: start_at_step {start} leaves no step")
        return sigmas[start:]

    def _steps(self, node: Node) -> tuple[int, float]:
        n, denoise = int(self._number(node, "steps")), self._number(node, "denoise", 1.0)
        if not 1 <= n <= MOST or not 0 < denoise <= 1 or n / denoise > MOST:
            raise UserError(
                f"{node}: steps must be 1 to {MOST} and denoise above 0 and at most 1, "
                f"got {n} and {denoise:g}"
            )
        return n, denoise

    def _named(self, node: Node, n: int, patches: list[Node]) -> list[float]:
        name = self._value(node, "scheduler")
        try:
            return scheduler(str(name), n, Levels.of(*self._noise(patches)))
        except UserError as error:
            raise UserError(f"{node}: {error}") from error

    def _noise(self, patches: list[Node]) -> tuple[Noise, int]:
        """The model's levels and the length of its table, as the nearest node has them."""
        noise, model = self.target.noise, self.target.model
        if isinstance(noise, EDMSchedule):  # log-linear in its percents, whatever placement
            return replace(noise, rho=None), noise.count
        if not isinstance(noise, FlowSchedule):
            return noise, noise.count
        node = next((node for node in patches if node.kind in SHIFTS), None)
        if node is None:
            family = model.family if model else ""
            schnell = family == "flux" and self.target.guidance != "distilled"
            shift, count = SCHNELL if schnell else DEFAULTS.get(family, (0.0, 0))
        elif node.kind == "ModelSamplingFlux":
            low, high = self._number(node, "base_shift"), self._number(node, "max_shift")
            tokens = self._number(node, "width") * self._number(node, "height") / 256
            shift, count = exp(low + (high - low) * (tokens - 256) / (4096 - 256)), 10_000
        else:
            shift, count = self._number(node, "shift"), 1000
        if not 0 < shift < inf:
            place = node or "the shift of this family in ComfyUI is not known; ModelSamplingSD3"
            raise UserError(f"{place} must say a shift above 0")
        return FlowSchedule(shift), count

    def _patches(self, node: Node) -> Iterator[Node]:
        """Of the model, the nearest first; what is not read is named."""
        flow = isinstance(self.target.noise, FlowSchedule)
        walked: set[str] = set()
        at = self._upstream(node.inputs.get("model"))
        while at and at.id not in walked:
            walked.add(at.id)
            if at.kind in PATCHES:
                self.seen.add(at.id)
                yield at
            elif at.kind in KINDS and not flow:
                self._kind(at)
            elif at.kind.startswith("ModelSampling"):
                raise UserError(f"{at} is for another model; name it with --model")
            elif not BESIDE.search(at.kind):
                self._lose(at)
            if at.kind in SHIFTS and not flow:
                raise UserError(f"{at} is for a flow model; name it with --model")
            at = self._upstream(at.inputs.get("model"))

    def _kind(self, node: Node) -> None:
        """The node must say the noise that the target has."""
        self.seen.add(node.id)
        sampling, model = str(self._value(node, "sampling")), self.target.model
        noise = self.target.noise
        if isinstance(noise, EDMSchedule) != (node.kind == "ModelSamplingContinuousEDM"):
            raise UserError(f"{node} is for another model; name it with --model")
        if isinstance(noise, EDMSchedule):
            kind = model.prediction_type if model else "epsilon"
            high, low = (self._number(node, f"sigma_{end}") for end in ("max", "min"))
            ours = (kind, noise.sigma_data), noise.sigma_max, noise.sigma_min
            if (EDM_KINDS.get(sampling), high, low) != ours:
                raise UserError(
                    f"{node}: {sampling} from {high:g} to {low:g} is not the model's {kind} with "
                    f"sigma_data {noise.sigma_data:g}, {noise.sigma_max:g} to {noise.sigma_min:g}"
                )
            return
        if model and PREDICTIONS.get(sampling) != model.prediction_type:
            raise UserError(
                f"{node}: the model's prediction is {model.prediction_type}, got {sampling!r}; "
                "name another model with --model"
            )
        zero = bool(self._value(node, "zsnr", False))
        if isinstance(noise, NoiseSchedule) and zero != noise.ends_in_noise:
            word = "no zero" if zero else "zero"
            raise UserError(f"{node}: zsnr is {zero}, but the model has {word} terminal SNR")

    def _conditioning(self, link: Any) -> Node | None:
        """The nearest node with distilled guidance; others on the way are named."""
        found: Node | None = None
        queue, walked = [link], set()
        while queue:
            node = self._upstream(queue.pop(0))
            if node is None or node.id in walked:
                continue
            walked.add(node.id)
            if node.kind in ("FluxGuidance", "CLIPTextEncodeFlux"):
                self.seen.add(node.id)
                found = found or node
            elif not BESIDE.search(node.kind):
                self._lose(node)
            queue += [
                value
                for name, value in node.inputs.items()
                if isinstance(value, Link) and re.match("conditioning|positive|negative", name)
            ]
        return found

    def _start(self, latent: Node) -> None:
        self.seen.add(latent.id)
        if latent.kind == "EmptyLatentImage":
            return
        if not re.search(r"Empty\w*Latent", latent.kind):
            self.lost.append(f"{latent}: it does not start from noise alone")
        elif not isinstance(self.target.noise, FlowSchedule):
            raise UserError(f"{latent} is for a flow model; name it with --model")

    def _lose(self, node: Node) -> None:
        self.seen.add(node.id)
        self.lost.append(str(node))

    def _upstream(self, link: Any) -> Node | None:
        return self.nodes.get(link.node) if isinstance(link, Link) else None

    def _from(self, node: Node, name: str) -> Node:
        found = self._upstream(node.inputs.get(name))
        if found is None:
            raise UserError(f"{node}: nothing is connected to {name}")
        return found

    def _value(self, node: Node, name: str, default: Any = None) -> Any:
        value = node.inputs.get(name, default)
        if isinstance(value, Link):
            source = self._upstream(value) or "another node"
            raise UserError(f"{name} of {node} comes from {source}, which is not read")
        if value is None:
            raise UserError(f"{node}: {name} is missing")
        return value

    def _number(self, node: Node, name: str, default: float | None = None) -> float:
        value = self._value(node, name, default)
        with suppress(TypeError, ValueError, OverflowError):
            if not isinstance(value, bool) and isfinite(number := float(value)):
                return number
        raise UserError(f"{name} of {node} must be a number, got {value!r}")
