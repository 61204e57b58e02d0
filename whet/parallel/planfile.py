"""The plan file: a strategy as versioned text, without code.

    whet parallel plan 1
    model, machine      fingerprints: what it was made for
    batch, microbatches, schedule, chunks
    stages              places, devices, mesh, style, zero, recompute, shares
    source              how the model was called, in what dtype; the machine as it was named
    blocks              by structural hash: parameter names of its first occurrence, and the
                        sharding of each; only what is cut is listed; then the choice of every
                        node in program order, and of every leaf, from which a run is made
    predicted           seconds, bytes of memory, source, how far off such figures were
    proof               whether it is equal to the step of one process, and what was compared
    found               how
    rewrites            rules by which the model's graph was rewritten first, how each was proven,
                        and its places, as a line of a certificate; the model's fingerprint is
                        that of the rewritten graph

Shardings are keyed by the name of a parameter and by the structure of its block, so that they hold
when something else in the model changes. A plan that is read for another model or machine is
refused, and the refusal says what changed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from whet.errors import WhetError
from whet.ir.graph import Node
from whet.machine import Mesh
from whet.parallel.blocks import Layer, Model
from whet.parallel.choice import Choice
from whet.parallel.library import Library
from whet.parallel.search import Found
from whet.parallel.strategy import STYLES, Part, Recipe, Strategy

VERSION = 1
# How far simulated seconds were from real ones, relatively and in the mean, and of what; by whether
# the machine is processes of a host (`whet bench --suite parallel --part real` and `published`).
HELD = {True: (0.08, "60 runs on a host"), False: (0.13, "30 published runs")}
Data = dict[str, Any]


class PlanFileError(WhetError):
    """A plan that cannot be read, or that is for something else."""


def fingerprint(model: Model) -> Data:
    """What identifies a model: its blocks by structure, in order, and its batch."""
    text = ",".join(model.layers[n].digest for n in model.order)
    return {
        "digest": hashlib.blake2b(text.encode(), digest_size=12).hexdigest(),
        "blocks": [model.layers[n].digest for n in model.order],
        "batch": model.batch,
    }


def data(
    library: Library, found: Found, source: Mapping[str, str] | None = None,
    proof: Mapping[str, Any] | None = None, rewrites: Sequence[Mapping[str, Any]] = (),
) -> Data:  # fmt: skip
    """A search's result as plain data.

    Args:
        source: `model` and `dtype` as the user gave them, `machine`, and "forward" as `pass` where
            it is inference.
        proof: `equal`, and what was compared or why nothing was.
        rewrites: what the graph was rewritten by.
    """
    model, strategy = library.model, found.best
    return {
        "whet parallel plan": VERSION,
        **({"source": dict(source)} if source else {}),
        "model": fingerprint(model),
        "machine": {
            "name": library.cluster.name,
            "fingerprint": library.cluster.fingerprint(),
            "devices": library.cluster.size,
        },
        "microbatches": strategy.microbatches,
        "schedule": strategy.schedule,
        "chunks": strategy.chunks,
        "stages": [_part(p) for p in strategy.parts],
        "blocks": _blocks(library, strategy),
        "predicted": {
            "seconds": found.simulated.seconds,
            "memory": max(found.simulated.memory),
            "source": "simulated",
            "confidence": dict(zip(("error", "of"), HELD[library.cluster.here], strict=True)),
            "bound": found.bound,
        },
        **({"proof": dict(proof)} if proof else {}),
        "found": {"by": strategy.origin, "tried": found.tried, "solved": found.solved},
        **({"rewrites": [dict(r) for r in rewrites]} if rewrites else {}),
    }


def _part(p: Part) -> Data:
    return {
        "blocks": [p.first, p.last],
        "devices": _ranges(p.devices),
        "mesh": dict(p.recipe.axes),
        "pinned": sorted(p.recipe.pinned),
        "style": p.recipe.style,
        "zero": p.zero,
        "recompute": p.recompute,
        "offload": sorted(p.offload),
        "shares": list(p.shares),
    }


def _ranges(devices: tuple[int, ...]) -> list[list[int]]:
    """[[first, last], …], both included."""
    found: list[list[int]] = []
    for d in devices:
        if found and found[-1][1] == d - 1:
            found[-1][1] = d
        else:
            found.append([d, d])
    return found


def _blocks(library: Library, strategy: Strategy) -> Data:
    found: Data = {}
    for p in strategy.parts:
        mesh = Mesh(p.recipe.axes, p.devices)
        for place in range(p.first, p.last):
            number = library.model.order[place]
            layer = library.model.layers[number]
            key = f"{layer.digest} {p.recipe}"
            if key in found:
                continue
            solved = library.solved(number, p.recipe, mesh, strategy.microbatches)
            found[key] = {
                "parameters": {
                    q.name: {a: f"dim {d}" + (f"/{i}" if i > 1 else "") for d, i, a in cuts}
                    for q in layer.parameters
                    if q in solved.choices and (cuts := solved.choices[q].result.cuts)
                },
                "seconds": solved.seconds,
                "choices": _runs([_spelled(solved.choices.get(n)) for n in row(layer)]),
            }
    return found


def row(layer: Layer) -> tuple[Node, ...]:
    """The nodes of a block in program order, then what they read of it that is a leaf."""
    leaves = dict.fromkeys(a for n in layer.nodes for a in n.operands if a.is_leaf)
    return (*layer.nodes, *leaves)


def _spelled(choice: Choice | None) -> str:
    """`data: n, tensor: k/128`, in full: what each axis of the mesh cuts."""
    if choice is None:
        return "?"
    return ", ".join(f"{m}: {a}" + (f"/{i}" if i != 1 else "") for m, a, i in choice.cuts) or "-"


def _runs(texts: list[str]) -> list[str]:
    """Equal neighbours as one, with their number."""
    return [
        text if (n := len(list(same))) == 1 else f"{n} * {text}"
        for text, same in itertools.groupby(texts)
    ]


def _unrun(texts: Iterable[str]) -> list[str]:
    found: list[str] = []
    for text in texts:
        count, star, rest = str(text).partition(" * ")
        found += [rest] * int(count) if star else [str(text)]
    return found


def choices(found: Data, library: Library, part: Part, place: int) -> dict[Node, Choice] | None:
    """The choices of a block as a plan says them, on its first occurrence; None if it does not.

    Raises:
        PlanFileError: a choice that the block does not have.
    """
    number = library.model.order[place]
    layer = library.model.layers[number]
    said = found.get("blocks", {}).get(f"{layer.digest} {part.recipe}", {}).get("choices")
    if said is None:
        return None
    texts, nodes = _unrun(said), row(layer)
    if len(texts) != len(nodes):
        raise PlanFileError(
            "a plan's block has other nodes", expected=len(nodes), got=len(texts), where=place
        )
    listed = library.choices(number, part.recipe, int(found["microbatches"]))
    made: dict[Node, Choice] = {}
    for n, text in zip(nodes, texts, strict=True):
        if text == "?":
            continue
        choice = next((c for c in listed.of(n) if _spelled(c) == text), None)
        if choice is None:
            raise PlanFileError(
                "a plan cuts a node in a way that it cannot be cut",
                expected=" or ".join(dict.fromkeys(_spelled(c) for c in listed.of(n)[:6])),
                got=text, where=n,
            )  # fmt: skip
        made[n] = choice
    return made


def write(found: Data) -> str:
    """A plan's data as YAML."""
    text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=100)
    assert isinstance(text, str)
    return text


def read(text: str, model: Model, machine: str | None = None) -> Strategy:
    """The strategy that a plan says.

    Args:
        model: what it shall be applied to.
        machine: fingerprint of the machine, if that has to agree.

    Raises:
        PlanFileError: it cannot be read, or is for another model or machine; says what changed.
    """
    found = load(text)
    changed = stale(found, model, machine)
    if changed:
        raise PlanFileError(
            "the plan is for something else", expected="the model and machine it was made for",
            got="; ".join(changed), hint="search again: whet parallelize",
        )  # fmt: skip
    try:
        parts = tuple(
            Part(
                int(p["blocks"][0]),
                int(p["blocks"][1]),
                tuple(d for a, b in p["devices"] for d in range(a, b + 1)),
                Recipe(tuple(p["mesh"].items()), frozenset(p["pinned"]), _style(p["style"])),
                int(p["zero"]), bool(p["recompute"]), frozenset(p["offload"]), tuple(p["shares"]),
            )
            for p in found["stages"]
        )  # fmt: skip
        return Strategy(
            parts, int(found["microbatches"]), str(found["schedule"]), int(found["chunks"]), "plan"
        )
    except (KeyError, TypeError, ValueError) as fault:
        raise PlanFileError("a plan is not complete", got=repr(fault)) from fault


def _style(text: str) -> str:
    if text not in STYLES:
        raise ValueError(f"no style is called {text}")
    return text


def load(text: str) -> Data:
    """A plan's data; also out of what `whet parallelize --json` wrote.

    Raises:
        PlanFileError: it is no plan of this version.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise PlanFileError("this is no YAML", got=str(fault).splitlines()[0]) from fault
    if isinstance(found, dict) and isinstance(found.get("plan"), dict):
        found = found["plan"]
    if not isinstance(found, dict) or found.get("whet parallel plan") != VERSION:
        raise PlanFileError(
            "this is not a plan that can be read here",
            expected=f"whet parallel plan: {VERSION}",
            got=found.get("whet parallel plan") if isinstance(found, dict) else type(found),
        )  # fmt: skip
    return found


def stale(found: Data, model: Model, machine: str | None = None) -> list[str]:
    """What has changed since a plan was made; nothing if it still holds."""
    now, then = fingerprint(model), found.get("model", {})
    changed = []
    if now["batch"] != then.get("batch"):
        changed.append(f"the batch was {then.get('batch')}, now {now['batch']}")
    before, after = list(then.get("blocks", [])), now["blocks"]
    if len(before) != len(after):
        changed.append(f"the model had {len(before)} blocks, now {len(after)}")
    differ = [k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if differ:
        changed.append("blocks " + ", ".join(map(str, differ[:8])) + " have another structure")
    at = found.get("machine", {})
    if machine is not None and at.get("fingerprint") != machine:
        changed.append(f"the machine was {at.get('name')} {at.get('fingerprint')}, now {machine}")
    return changed


def differences(a: Data, b: Data, where: str = "") -> list[str]:
    """How one plan differs from another, one line for each place."""
    rows: list[str] = []
    for key in dict.fromkeys([*a, *b]):
        at = f"{where}{key}"
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            rows += differences(dict(x), dict(y), at + ".")
        elif isinstance(x, list) and isinstance(y, list) and key == "stages":
            for k in range(max(len(x), len(y))):
                left = x[k] if k < len(x) else {}
                right = y[k] if k < len(y) else {}
                rows += differences(left, right, f"{at}[{k}].")
        elif x != y:
            rows.append(f"{at}: {x} -> {y}")
    return rows
