"""The nodes of a ComfyUI workflow: as posted to its server (API), or as its page saves it.

A page's file has the values of a node's widgets in a list without names, muted and bypassed nodes,
reroutes and subgraphs; what comes out here has names and links alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stepsampler.errors import UserError

SWITCH = "ComfySwitchNode"
SEED = ("seed", "control_after_generate")
# Names of the widgets, in the page's order, of the nodes whose values are read (ComfyUI 0.30).
WIDGETS: Mapping[str, tuple[str, ...]] = {
    "ManualSigmas": ("sigmas",),
    "KSamplerSelect": ("sampler_name",),
    "CFGGuider": ("cfg",),
    "CFGOverride": ("cfg", "start_percent", "end_percent"),
    "RandomNoise": ("noise_seed", "control_after_generate"),
    "KSampler": (*SEED, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise",
        "noise_seed",
        "control_after_generate",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "start_at_step",
        "end_at_step",
        "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "control_after_generate", "cfg"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "ModelSamplingDiscrete": ("sampling", "zsnr"),
    "ModelSamplingContinuousEDM": ("sampling", "sigma_max", "sigma_min"),
    "ModelSamplingSD3": ("shift",),
    "ModelSamplingAuraFlow": ("shift",),
    "ModelSamplingFlux": ("max_shift", "base_shift", "width", "height"),
    "RescaleCFG": ("multiplier",),
    "FluxGuidance": ("guidance",),
    SWITCH: ("switch",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
}
CIRCLE = "the workflow's links go round in a circle"
MUTED, BYPASSED = 2, 4  # modes of a page's node
INPUT, OUTPUT = -10, -20  # nodes of a subgraph that stand for its slots


class Link(NamedTuple):
    """An output of another node."""

    node: str
    slot: int


@dataclass(frozen=True)
class Node:
    """A node; `inputs` has values, and a Link where one comes from another node."""

    id: str
    kind: str
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node {self.id} ({self.kind})"


Graph = dict[str, Node]


def graph(data: Any) -> Graph:
    """The nodes of either kind of workflow by their id, without those that do not run.

    Raises:
        UserError: neither kind.
    """
    data = _unwrapped(data)
    if not isinstance(data, dict):
        raise UserError(f"expected a workflow, a JSON object, got {type(data).__name__}")
    if isinstance(data.get("nodes"), list):
        return _page(data)
    nodes = {}
    for key, node in data.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise UserError(f"node {key} has no class_type: the file is no workflow of ComfyUI")
        given = node.get("inputs", {})
        if not isinstance(given, dict):
            raise UserError(f"node {key}: inputs must be an object, got {given!r}")
        inputs = {name: _value(value) for name, value in given.items()}
        nodes[str(key)] = Node(str(key), node["class_type"], inputs)
    return _valued(nodes)


def _unwrapped(data: Any) -> Any:
    """As posted to the server, or as its history has one run."""
    if isinstance(data, dict) and len(data) == 1:
        (run,) = data.values()
        if isinstance(run, dict) and isinstance(run.get("prompt"), list) and "outputs" in run:
            data = {"prompt": next((p for p in run["prompt"] if isinstance(p, dict)), None)}
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        return data["prompt"]
    return data


def _value(value: Any) -> Any:
    """A link is [id, slot] in the API's form."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return Link(str(value[0]), value[1])
    return value


@dataclass
class _Raw:
    """A page's node, with its place among subgraphs in its id."""

    id: str
    data: Mapping[str, Any]
    sources: list[Link | None]  # of its inputs, by slot
    promoted: dict[str, Any] = field(default_factory=dict)  # widgets, set outside its subgraph


def _page(data: Mapping[str, Any]) -> Graph:
    definitions = data.get("definitions") or {}
    subgraphs = {g["id"]: g for g in definitions.get("subgraphs", [])}
    raw: dict[str, _Raw] = {}
    exits: dict[Link, Link | None] = {}  # output of a subgraph -> what is inside
    _flatten(data, "", [], subgraphs, raw, exits, ())
    nodes: Graph = {}
    for node in raw.values():
        if node.data.get("mode", 0) in (MUTED, BYPASSED) or node.data["type"] == "Reroute":
            continue
        inputs = _widgets(node.data) | node.promoted
        for slot, source in zip(_slots(node.data), node.sources, strict=False):
            link = _resolve(source, raw, exits)
            if link:
                inputs[str(slot["name"])] = link
        nodes[node.id] = Node(node.id, str(node.data["type"]), inputs)
    return _valued(nodes)


def _valued(nodes: Graph) -> Graph:
    """With the values of primitives, and past switches, which only hand something on."""

    def valued(value: Any) -> Any:
        for _ in range(len(nodes) + 1):
            node = nodes.get(value.node) if isinstance(value, Link) else None
            if node and node.kind.startswith("Primitive"):
                value = node.inputs.get("value")
            elif node and node.kind == SWITCH:
                on = valued(node.inputs.get("switch"))
                value = node.inputs.get("on_true" if on else "on_false")
            else:
                return value
        raise UserError(CIRCLE)

    return {
        key: Node(key, node.kind, {name: valued(value) for name, value in node.inputs.items()})
        for key, node in nodes.items()
        if not node.kind.startswith("Primitive") and node.kind != SWITCH
    }


def _flatten(
    scope: Mapping[str, Any],
    prefix: str,
    entries: Sequence[Link | None],
    subgraphs: Mapping[str, Any],
    raw: dict[str, _Raw],
    exits: dict[Link, Link | None],
    within: tuple[str, ...],
) -> None:
    """Put the nodes of a graph, and of the subgraphs in it, into `raw`; ids as in an API export.

    `entries` are the sources of the subgraph's own inputs.
    """
    links = {}
    for entry in scope.get("links", []):
        key, origin, slot, target, to = _link(entry)
        at = entries[slot] if origin == INPUT and 0 <= slot < len(entries) else None
        links[key] = at if origin == INPUT else Link(f"{prefix}{origin}", slot)
        if target == OUTPUT:
            exits[Link(prefix.removesuffix(":"), to)] = links[key]
    for node in scope.get("nodes", []):
        key = f"{prefix}{node['id']}"
        sources = [
            links.get(slot["link"]) if slot.get("link") is not None else None
            for slot in _slots(node)
        ]
        inside = subgraphs.get(node["type"])
        if inside is None or node.get("mode", 0) in (MUTED, BYPASSED):
            raw[key] = _Raw(key, node, sources)
            continue
        if node["type"] in within:
            raise UserError(f"the workflow's subgraph {inside.get('name')!r} is inside itself")
        names = [slot["name"] for slot in _slots(node)]
        by_name = dict(zip(names, sources, strict=True))
        given = [by_name.get(slot["name"]) for slot in inside.get("inputs", [])]
        _flatten(inside, f"{key}:", given, subgraphs, raw, exits, (*within, node["type"]))
        shown = (node.get("properties") or {}).get("proxyWidgets") or []
        for (inner, name), value in zip(shown, node.get("widgets_values") or [], strict=False):
            if f"{key}:{inner}" in raw and value is not None:
                raw[f"{key}:{inner}"].promoted[str(name)] = value


def _link(entry: Any) -> tuple[Any, Any, int, Any, int]:
    """Id, origin, its slot, target, its slot: of a list, or of an object."""
    if isinstance(entry, dict):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        key, origin, slot, target, to = (entry[name] for name in names)
    else:
        key, origin, slot, target, to = entry[:5]
    return key, origin, int(slot), target, int(to)


def _slots(node: Mapping[str, Any]) -> list[Any]:
    return list(node.get("inputs") or [])


def _widgets(node: Mapping[str, Any]) -> dict[str, Any]:
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    names = WIDGETS.get(node["type"])
    if names is None:  # a primitive's value is its first widget
        return {"value": values[0]} if values else {}
    if "control_after_generate" in names and len(values) == len(names) - 1:
        names = tuple(name for name in names if name != "control_after_generate")
    return dict(zip(names, values, strict=False))


def _resolve(
    source: Link | None, raw: Mapping[str, _Raw], exits: Mapping[Link, Link | None]
) -> Link | None:
    """The node that really gives what comes in, past reroutes, bypassed nodes and subgraphs."""
    for _ in range(len(raw) + len(exits) + 1):
        if source is None:
            return None
        if source in exits:
            source = exits[source]
            continue
        node = raw.get(source.node)
        if node is None or node.data.get("mode", 0) == MUTED:
            return None
        if node.data["type"] == "Reroute":
            source = node.sources[0] if node.sources else None
        elif node.data.get("mode", 0) == BYPASSED:
            source = _through(node, source.slot)
        else:
            return source
    raise UserError(CIRCLE)


def _through(node: _Raw, slot: int) -> Link | None:
    """What a bypassed node lets through: an input of the same type, that of the slot first."""
    outputs, slots = node.data.get("outputs") or [], _slots(node.data)
    kind = outputs[slot].get("type") if 0 <= slot < len(outputs) else None
    order = sorted(range(len(slots)), key=lambda i: i != slot)
    return next((node.sources[i] for i in order if slots[i].get("type") == kind), None)
