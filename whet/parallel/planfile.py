"""The plan file: a strategy as versioned text, without code.

    whet parallel plan 1
    model, machine      fingerprints: what it was made for
    batch, microbatches, schedule, chunks
    stages              places, devices, mesh, style, zero, recompute, shares
    blocks              by structural hash: parameter names of its first occurrence, and the
                        sharding of each; only what is cut is listed
    predicted           seconds, bytes of memory, source
    found               how

Shardings are keyed by the name of a parameter and by the structure of its block, so that they hold
when something else in the model changes. A plan that is read for another model or machine is
refused, and the refusal says what changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import yaml

from whet.errors import WhetError
from whet.machine import Mesh
from whet.parallel.blocks import Model
from whet.parallel.library import Library
from whet.parallel.search import Found
from whet.parallel.strategy import STYLES, Part, Recipe, Strategy

VERSION = 1
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


def data(library: Library, found: Found) -> Data:
    """A search's result as plain data."""
    model, strategy = library.model, found.best
    return {
        "whet parallel plan": VERSION,
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
            "bound": found.bound,
        },
        "found": {"by": strategy.origin, "tried": found.tried, "solved": found.solved},
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
            }
    return found


def write(library: Library, found: Found) -> str:
    """The plan as YAML."""
    text = yaml.safe_dump(data(library, found), sort_keys=False, default_flow_style=None, width=100)
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
    """A plan's data.

    Raises:
        PlanFileError: it is no plan of this version.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise PlanFileError("this is no YAML", got=str(fault).splitlines()[0]) from fault
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
