"""What generated C stands on: `vector.c`, and the functions of the table that it does not spell.

    v_NAME(vf, …) -> vf      of lanes: from vector.c; otherwise the table's C, a lane at a time
    s_NAME(float, …) -> float   a lane of it

A function that is added to the table needs no line here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from whet.ir.functions import FUNCTIONS, Function


def vector_name(fn: str) -> str:
    """What a function is called over lanes."""
    return f"v_{fn}"


def scalar_name(fn: str) -> str:
    """What a function is called over floats."""
    return f"s_{fn}"


@functools.cache
def prelude() -> str:
    """`vector.c`."""
    return Path(__file__).with_name("vector.c").read_text(encoding="utf-8")


@functools.cache
def spelled_out() -> frozenset[str]:
    """Functions that `vector.c` defines."""
    return frozenset(re.findall(r"^(?:FN|OUT) v[fi] v_(\w+)\(", prelude(), re.MULTILINE))


def definitions(functions: Iterable[str]) -> str:
    """C of the functions that `vector.c` does not define, and of all of them as scalars."""
    return "\n".join(line for fn in sorted(functions) for line in _definition(FUNCTIONS[fn]))


def _definition(f: Function) -> list[str]:
    names = [f"x{k}" for k in range(f.arity)]
    floats, lanes = (", ".join(f"{t} {n}" for n in names) for t in ("float", "vf"))
    given, each = ("int", "vi") if f.kind == "bool" else ("float", "vf")
    v, s = vector_name(f.name), scalar_name(f.name)
    if f.name in spelled_out():
        splats = ", ".join(f"splat({n})" for n in names)
        value = f"{'-' if f.kind == 'bool' else ''}{v}({splats})[0]"
        return [f"FN {given} {s}({floats}) {{ return {value}; }}"]
    text = f.c.format(*(f"((double){n})" for n in names))
    each_lane = ", ".join(f"{n}[l]" for n in names)
    truth = "-" if f.kind == "bool" else ""
    return [
        f"FN {given} {s}({floats}) {{ return {text}; }}",
        f"FN {each} {v}({lanes}) {{ {each} r; LANES r[l] = {truth}{s}({each_lane}); return r; }}",
    ]
