"""The calling convention of a program: how arguments become flat inputs, and results a pytree.

signature := argument leaf …, result leaf …
argument  := tensor of a type | fixed value        in the order of the flattened (args, kwargs)
result    := result k | argument k | fixed value   in the order of the flattened return value
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """A tensor that the program was made for."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"

    def misfit(self, value: object) -> str | None:
        """Why `value` cannot be passed here, or None."""
        if not isinstance(value, Tensor):
            return f"expected a tensor, got {type(value).__name__}"
        if type(value) is not Tensor and type(value) is not nn.Parameter:
            return f"expected a plain tensor, got a {type(value).__name__}"
        if value.layout is not torch.strided:
            return f"expected a dense tensor, got {_short(value.layout)}"
        if value.dim() != len(self.shape):
            return f"expected rank {len(self.shape)}, got rank {value.dim()}"
        if value.dtype != self.dtype:
            return f"expected {_short(self.dtype)}, got {_short(value.dtype)}"
        if value.device.type != self.device:
            return f"expected device {self.device}, got {value.device.type}"
        if value.shape != self.shape:
            return f"expected shape {list(self.shape)}, got {list(value.shape)}"
        return None

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.dtype)}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class FixedArgument:
    """A value that is no tensor and was part of what was captured."""

    name: str
    value: object

    def misfit(self, value: object) -> str | None:
        """Why `value` cannot be passed here, or None."""
        same = type(value) is type(self.value) and value == self.value
        return None if same else f"was captured as {self.value!r}, got {value!r}"

    def __str__(self) -> str:
        return f"{self.name}: {self.value!r}"


Argument = TensorArgument | FixedArgument


@dataclass(frozen=True, slots=True)
class Signature:
    """See the module's docstring.

    Attributes:
        arguments: leaves of the flattened `(args, kwargs)`.
        results: for each leaf of the return value: ("result", k), ("argument", k) or ("value", v).
        in_spec, out_spec: the pytrees' structure.
    """

    arguments: tuple[Argument, ...]
    results: tuple[tuple[str, Any], ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    _plain: tuple[TensorArgument, ...] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        tensors = tuple(a for a in self.arguments if isinstance(a, TensorArgument))
        stars = pytree.tree_unflatten([0] * len(self.arguments), self.in_spec)
        flat = stars == ((0,) * len(tensors), {}) and len(tensors) == len(self.arguments)
        object.__setattr__(self, "_plain", tensors if flat else None)

    @property
    def form(self) -> int | None:
        """How results are returned where that is simple, of arguments that are plain tensors.

        0: as a list, 1: as a tuple, 2: the only one itself; None where it takes more than that.
        """
        if self._plain is None or [k for k, _ in self.results] != ["result"] * len(self.results):
            return None
        if [v for _, v in self.results] != list(range(len(self.results))):
            return None
        shown = pytree.tree_unflatten(list(range(len(self.results))), self.out_spec)
        flat = list(range(len(self.results)))
        forms: tuple[object, ...] = (flat, tuple(flat), 0)
        kind = (type(shown), shown)
        return next((k for k, form in enumerate(forms) if (type(form), form) == kind), None)

    def fits(self, args: tuple[object, ...]) -> bool:
        """Whether these positional arguments are at first sight what the program is for.

        A short way past `flatten` and `misfit` for calls with tensors alone; False leaves it open.
        """
        known = self._plain
        if known is None or len(args) != len(known):
            return False
        for argument, value in zip(known, args, strict=True):
            if not (
                type(value) is Tensor
                and value.shape == argument.shape
                and value.dtype is argument.dtype
                and value.layout is torch.strided
                and value.device.type == argument.device
            ):
                return False
        return True

    def flatten(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> list[object] | None:
        """Leaves of a call's arguments, or None where their structure is another one."""
        leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
        return leaves if spec == self.in_spec else None

    def rearranged(
        self,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        forward: inspect.Signature,
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """The same call written as the captured one was: by position or by name, defaults or not.

        Args:
            forward: the original's; calls that it does not take come back as they are.
        """
        try:
            given = forward.bind(*args, **kwargs)
        except TypeError:  # the original says it better
            return args, dict(kwargs)
        given.apply_defaults()
        values = given.arguments
        captured_args, captured_kwargs = pytree.tree_unflatten(
            [a.name for a in self.arguments], self.in_spec
        )
        names = [
            p.name for p in forward.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ][: len(captured_args)]  # fmt: skip
        asked = [*names, *captured_kwargs]
        fixed = all(_default(forward.parameters[k], v) for k, v in values.items() if k not in asked)
        if len(names) < len(captured_args) or not fixed or not set(asked) <= set(values):
            return args, dict(kwargs)
        return tuple(values[n] for n in names), {n: values[n] for n in captured_kwargs}

    def misfit(self, leaves: Sequence[object]) -> str | None:
        """Why these leaves are not what the program was made for, or None."""
        for argument, value in zip(self.arguments, leaves, strict=True):
            reason = argument.misfit(value)
            if reason is not None:
                return f"{argument.name}: {reason}"
        return None

    def inputs(self, leaves: Sequence[object]) -> list[Tensor]:
        """The tensors among the leaves: the program's inputs."""
        pairs = zip(self.arguments, leaves, strict=True)
        return [v for a, v in pairs if isinstance(a, TensorArgument) and isinstance(v, Tensor)]

    def unflatten(self, results: Sequence[Tensor], leaves: Sequence[object]) -> Any:
        """The return value from the program's results and the call's leaves."""
        sources: dict[str, Sequence[object]] = {"result": results, "argument": leaves}
        flat = [v if kind == "value" else sources[kind][v] for kind, v in self.results]
        return pytree.tree_unflatten(flat, self.out_spec)

    def __str__(self) -> str:
        return ", ".join(map(str, self.arguments))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Signature.from_json` takes it back."""
        arguments: list[dict[str, Any]] = []
        for a in self.arguments:
            if isinstance(a, TensorArgument):
                row = {"name": a.name, "shape": list(a.shape), "dtype": _short(a.dtype)}
                arguments.append(row | {"device": a.device})
            else:
                arguments.append({"name": a.name, "value": a.value})
        return {
            "arguments": arguments,
            "results": [list(r) for r in self.results],
            "in_spec": pytree.treespec_dumps(self.in_spec),
            "out_spec": pytree.treespec_dumps(self.out_spec),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The signature of `to_json`. Raises KeyError or TypeError for anything else."""
        arguments: list[Argument] = []
        for row in data["arguments"]:
            if "dtype" in row:
                dtype = getattr(torch, row["dtype"])
                shape = tuple(row["shape"])
                arguments.append(TensorArgument(row["name"], shape, dtype, row["device"]))
            else:
                arguments.append(FixedArgument(row["name"], row["value"]))
        return cls(
            tuple(arguments),
            tuple((kind, value) for kind, value in data["results"]),
            pytree.treespec_loads(data["in_spec"]),
            pytree.treespec_loads(data["out_spec"]),
        )


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _default(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an argument is what the parameter would be without it."""
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return not value
    default = parameter.default
    plain = isinstance(value, bool | int | float | str) and type(value) is type(default)
    return value is default or (plain and bool(value == default))


def described(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """A call's arguments for a message: types of tensors, other values as they are."""

    def one(value: object) -> str:
        if isinstance(value, Tensor):
            return f"{_short(value.dtype)}{list(value.shape)}"
        text = repr(pytree.tree_map_only(Tensor, one, value))
        return text if len(text) <= 60 else f"{text[:57]}..."

    return f"({', '.join([*map(one, args), *(f'{k}={one(v)}' for k, v in kwargs.items())])})"
