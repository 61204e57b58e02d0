"""What a user has decided already; the search does the rest.

    Pins := stages tensor data microbatches zero chunks          any of them: numbers
            recompute=true|false schedule=NAME style=NAME
            offload=none|optimizer|activations|activations,optimizer
            replicas=even|uneven cuts=B,B…                       the blocks where stages begin
            (pattern → Sharding of a parameter)*

A parameter is pinned by its name, `*` and `?` as in file names: `*.up.weight=0:tensor` cuts dim 0
of every such weight along "tensor", `*.router.weight=whole` cuts it nowhere. Blocks of equal
structure are one problem, so a pin of one of them holds for all.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import SearchError
from whet.ir.graph import Node
from whet.parallel.blocks import Layer, Model
from whet.parallel.limits import SIMULATED, Limits
from whet.parallel.placed import OFFLOADS, SCHEDULES
from whet.parallel.strategy import STYLES, Strategy

NUMBERS = ("stages", "tensor", "data", "microbatches", "zero", "chunks")
WORDS = {
    "recompute": ("true", "false"),
    "schedule": SCHEDULES,
    "offload": ("none", *sorted(OFFLOADS), ",".join(sorted(OFFLOADS))),
    "style": STYLES,
    "replicas": ("even", "uneven"),
}
NAMES = (*NUMBERS, *WORDS, "cuts")
Cuts = tuple[tuple[int, str], ...]  # (dim, mesh axis)


@dataclass(frozen=True, slots=True)
class Pins:
    """Fields of a strategy that are given.

    Attributes:
        fields: of `NAMES`.
        parameters: (pattern, cuts) of parameters.
    """

    fields: Mapping[str, int | bool | str] = field(default_factory=dict)
    parameters: tuple[tuple[str, Cuts], ...] = ()

    @classmethod
    def of(cls, texts: Sequence[str]) -> Pins:
        """Pins as a user writes them.

        Raises:
            SearchError: one that is none, or two that contradict each other.
        """
        fields: dict[str, int | bool | str] = {}
        parameters = []
        for text in texts:
            name, equal, value = text.partition("=")
            if not equal or not name or not value:
                raise SearchError("a pin is NAME=VALUE", expected=", ".join(NAMES), got=text)
            if name in NAMES:
                given = _value(name, value)
                if fields.setdefault(name, given) != given:
                    raise SearchError(
                        "two pins contradict each other", expected=f"one value for {name}",
                        got=f"{fields[name]} and {given}", hint="leave one of them out",
                    )  # fmt: skip
            elif any(c in name for c in ".*?["):
                parameters.append((name, _cuts(text, value)))
            else:
                raise SearchError(
                    "no such pin", expected=", ".join(NAMES) + ", or a parameter's name",
                    got=name, hint="parameters are pinned as *.weight=0:tensor or *.weight=whole",
                )  # fmt: skip
        return cls(fields, tuple(parameters))

    def __bool__(self) -> bool:
        return bool(self.fields or self.parameters)

    def get(self, name: str) -> int | bool | str | None:
        """The value of a field, if it is given."""
        return self.fields.get(name)

    @property
    def cuts(self) -> tuple[int, ...] | None:
        """The blocks where stages begin, but for the first; None if they are not given."""
        text = self.fields.get("cuts")
        return None if text is None else tuple(map(int, str(text).split(",")))

    def options(self, name: str, values: Sequence[int]) -> list[int]:
        """Some values, or the given one alone, even if it is not among them."""
        given = self.fields.get(name)
        return list(values) if given is None else [int(given)]

    def hold(self, s: Strategy) -> bool:
        """Whether a strategy is as it has to be."""
        if not self.fields:
            return True
        now: dict[str, object] = {
            "stages": {s.groups}, "chunks": {s.chunks}, "microbatches": {s.microbatches},
            "schedule": {s.schedule if s.groups > 1 else self.fields.get("schedule")},
            "tensor": {p.recipe.size("tensor") for p in s.parts},
            "data": {p.recipe.size("data") for p in s.parts},
            "zero": {p.zero for p in s.parts}, "recompute": {p.recompute for p in s.parts},
            "offload": {",".join(sorted(p.offload)) for p in s.parts},
            "style": {p.recipe.style for p in s.parts},
            "replicas": {"uneven" if any(p.shares for p in s.parts) else "even"},
            "cuts": {",".join(str(p.first) for p in s.parts[1:])},
        }  # fmt: skip
        return all(now[k] == {v} for k, v in self.fields.items())

    def checked(self, model: Model, devices: int, limits: Limits = SIMULATED) -> Pins:
        """Itself.

        Args:
            limits: what a strategy may use.

        Raises:
            SearchError: no strategy can satisfy them, whatever it costs.
        """
        for name in NUMBERS:
            if name != "zero" and (value := self.get(name)) is not None and int(value) < 1:
                raise SearchError(f"{name} is at least 1", got=value)
        self._within(limits)
        stages, data = (self.get(k) for k in ("stages", "data"))
        micro = self.get("microbatches")
        degrees = {k: int(v) for k in ("stages", "tensor", "data") if (v := self.get(k))}
        product = 1
        for value in degrees.values():
            product *= value
        if devices % product or (len(degrees) == 3 and product != devices):
            raise SearchError(
                "the pinned degrees do not fit the machine",
                expected=f"a product that divides {devices} devices"
                if len(degrees) < 3 else f"a product of {devices} devices",
                got=" x ".join(f"{k} {v}" for k, v in degrees.items()) + f" = {product}",
                hint="pin fewer of them, or name a machine of that size",
            )  # fmt: skip
        cuts = self.cuts
        if cuts is not None and (
            list(cuts) != sorted({*cuts}) or cuts[0] < 1 or cuts[-1] >= len(model.order)
        ):
            raise SearchError(
                "stages begin at blocks of the model, in order",
                expected=f"numbers that rise, from 1 to {len(model.order) - 1}",
                got=self.get("cuts"),
            )  # fmt: skip
        if stages is not None and int(stages) > len(model.order):
            raise SearchError(
                "a stage has a block at least", expected=f"at most {len(model.order)} stages",
                got=stages,
            )  # fmt: skip
        parts = int(data or 1) * int(micro or 1)
        if model.batch % parts:
            raise SearchError(
                "the batch does not divide", expected=f"samples in multiples of {parts}",
                got=f"a batch of {model.batch}", hint="another --batch, or other pins",
            )  # fmt: skip
        if self.get("schedule") == "interleaved" and stages and micro and int(micro) % int(stages):
            raise SearchError(
                "an interleaved schedule takes microbatches by the length of the pipeline",
                expected=f"a multiple of {stages} microbatches", got=micro,
            )  # fmt: skip
        names = [n for place in model.places for n in place]
        for pattern, _ in self.parameters:
            if not fnmatch.filter(names, pattern):
                raise SearchError(
                    "no parameter has such a name", expected="a pattern of " + ", ".join(names[:4]),
                    got=pattern, hint="`whet parallelize --plan FILE` lists what each block has",
                )  # fmt: skip
        return self

    def _within(self, limits: Limits) -> None:
        away = frozenset(filter(None, str(self.get("offload") or "").split(",")))
        micro = limits.microbatches
        beyond = {
            "schedule": self.get("schedule") not in (None, *limits.schedules),
            "offload": not away <= limits.offloads,
            "replicas": self.get("replicas") == "uneven" and not limits.uneven,
            "microbatches": micro is not None and int(self.get("microbatches") or 1) > micro,
        }
        for name, over in beyond.items():
            if over:
                raise SearchError(
                    f"--pin {name}={self.get(name)} is simulated only",
                    expected="what whet run executes", got="; ".join(limits.left_out()),
                    hint="--no-runnable also searches what is simulated only",
                )  # fmt: skip

    def of_layer(self, model: Model, number: int) -> dict[Node, Cuts]:
        """The pinned parameters of a distinct block, where any of its occurrences is named so."""
        if not self.parameters:
            return {}
        layer: Layer = model.layers[number]
        found: dict[Node, Cuts] = {}
        places = [k for k, n in enumerate(model.order) if n == number]
        for i, node in enumerate(layer.parameters):
            names = {model.places[k][i] for k in places if i < len(model.places[k])}
            for pattern, cuts in self.parameters:
                if fnmatch.filter(names, pattern):
                    found[node] = cuts
        return found


NONE = Pins()


def _value(name: str, value: str) -> int | bool | str:
    if name in NUMBERS:
        if not value.isdigit():
            raise SearchError(f"{name} is a number", expected=f"{name}=N", got=value)
        number = int(value)
        if name == "zero" and number > 3:
            raise SearchError("no such ZeRO", expected="0, 1, 2 or 3", got=value)
        return number
    if name == "cuts":
        if not all(part.isdigit() for part in value.split(",")):
            raise SearchError("cuts are numbers of blocks", expected="cuts=4,8", got=value)
        return value
    if value not in WORDS[name]:
        raise SearchError(f"no such {name}", expected=", ".join(WORDS[name]), got=value)
    if name == "recompute":
        return value == "true"
    if name == "offload" and value == "none":
        return ""
    return value


def _cuts(text: str, value: str) -> Cuts:
    if value == "whole":
        return ()
    found = []
    for part in value.split(","):
        dim, colon, axis = part.partition(":")
        if not colon or not dim.isdigit() or axis not in ("data", "tensor"):
            raise SearchError(
                "a parameter's pin is a dim and an axis", expected="DIM:tensor, or whole", got=text
            )
        found.append((int(dim), axis))
    return tuple(found)
