"""The MODEL of every command: a text that names a model and its example inputs.

    zoo:NAME                   a model of the zoo
    FILE.onnx                  an ONNX file, for seeded inputs of the shapes that it declares
    FILE.pt2                   a program saved by torch.export.save, for its own example inputs
    package.module:function    what the function returns, called without arguments:
                                   module, inputs            inputs: a tuple of arguments, a dict of
                                   module, args, kwargs      keyword arguments, or one tensor
                                   module                    with an attribute `example_inputs`
                               a module itself may stand in the function's place

`package.module` is imported as Python would from the working directory. The module is captured and
measured in the mode it is returned in; a function should call `.eval()` on it.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from whet.capture import exported, zoo
from whet.capture.captured import Captured
from whet.capture.torch import capture
from whet.errors import CaptureError, WhetError
from whet.run.signature import TensorArgument

FORMS = "zoo:NAME, FILE.onnx, FILE.pt2 or package.module:function"


@dataclass(frozen=True, slots=True)
class Source:
    """A model as its author runs it: `module(*args, **kwargs)`.

    Attributes:
        name: the text that named it.
        module: the model itself.
        args: example positional arguments.
        kwargs: example keyword arguments.
        captured: its graph, where the way in already made one.
    """

    name: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object] = field(default_factory=dict)
    captured: Captured | None = None

    def capture(self) -> Captured:
        """The graph for the example inputs. Raises `CaptureError`."""
        return self.captured or capture(self.module, self.args, self.kwargs)


def load(
    text: str, *, scale: zoo.Scale = "full", sizes: Mapping[str, int] = MappingProxyType({})
) -> Source:
    """The model that `text` names.

    Args:
        text: one of the forms above.
        scale: of a zoo model.
        sizes: numbers for the sizes that an ONNX file leaves open, by name.

    Raises:
        CaptureError: there is no such model, it does not load, or it comes without inputs; or sizes
            were given for another kind of model, whose example inputs state them all.
    """
    if sizes and not text.endswith(".onnx"):
        raise CaptureError(
            f"{text} leaves no sizes open", expected="sizes for an ONNX file only",
            got=", ".join(f"{name}={size}" for name, size in sizes.items()),
            hint="its example inputs say what it is optimized for",
        )  # fmt: skip
    if text.startswith("zoo:"):
        model = zoo.load(text.removeprefix("zoo:"), scale=scale)
        return Source(text, model.module, model.inputs)
    if text.endswith(".onnx"):
        return _onnx(text, sizes)
    if text.endswith(".pt2"):
        return _saved(text)
    package, colon, name = text.partition(":")
    if (
        colon
        and name
        and all(part.isidentifier() for part in (*package.split("."), *name.split(".")))
    ):
        return _function(text, package, name)
    near = difflib.get_close_matches(text, zoo.names(), n=1)
    hint = f"zoo:{near[0]}" if near else f"there is a file {text}" if Path(text).exists() else None
    raise CaptureError(f"{text!r} names no model", expected=FORMS, hint=hint)


def _onnx(text: str, sizes: Mapping[str, int]) -> Source:
    if not Path(text).is_file():
        raise CaptureError(f"there is no file {text}", expected="an ONNX file")
    from whet.capture.onnx import load_onnx

    captured = load_onnx(Path(text), sizes=sizes)
    generator = torch.Generator().manual_seed(0)
    arguments = [a for a in captured.signature.arguments if isinstance(a, TensorArgument)]
    inputs = tuple(_example(a, generator) for a in arguments)
    return Source(text, captured.module, inputs, captured=captured)


def _example(argument: TensorArgument, generator: torch.Generator) -> Tensor:
    """Normal values; where integers or flags are asked for, ones: they index any table."""
    if argument.dtype.is_floating_point:
        values = torch.randn(argument.shape, generator=generator)
        return values.to(argument.dtype)
    return torch.ones(argument.shape, dtype=argument.dtype)


def _saved(text: str) -> Source:
    program = exported.load(Path(text))
    example = exported.example_inputs(program)
    if example is None:
        raise CaptureError(
            f"{text} carries no example inputs",
            hint="return its module and inputs from a package.module:function",
        )
    args, kwargs = example
    return Source(text, exported.module_of(program), args, kwargs)


def _function(text: str, package: str, name: str) -> Source:
    return of_result(text, result_of(text, lambda make: make()))


def result_of(text: str, call: Callable[[Callable[..., object]], object]) -> object:
    """What a `package.module:function` gives, or the module that stands in the function's place.

    Args:
        call: is given the function.

    Raises:
        CaptureError: there is no such function, or it fails; its line is shown.
    """
    package, _, name = text.partition(":")
    found: object = _imported(text, package)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            near = difflib.get_close_matches(part, known, n=3)
            raise CaptureError(
                f"{package} has no {name}", where=getattr(found, "__file__", None),
                hint="did you mean " + " or ".join(near) + "?" if near else None,
            )  # fmt: skip
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise CaptureError(f"{text} is no function", got=type(found).__name__, expected=FORMS)
    try:
        return call(cast(Callable[..., object], found))
    except WhetError:
        raise
    except Exception as fault:
        raise CaptureError(
            f"{text} failed to make a model",
            got=exported.first_line(fault),
            where=exported.fault_line(fault),
        ) from fault


def _imported(text: str, package: str) -> object:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as fault:
        if fault.name is None or not (package + ".").startswith(fault.name + "."):
            raise CaptureError(
                f"{text} needs a package that is not installed", got=fault.name
            ) from fault
        raise CaptureError(
            f"there is no Python module {package}", expected=FORMS,
            hint="run in the folder that holds it, or install the package",
        ) from fault  # fmt: skip
    except Exception as fault:
        raise CaptureError(
            f"{package} does not import",
            got=exported.first_line(fault),
            where=exported.fault_line(fault),
        ) from fault
    finally:
        sys.path.remove(str(Path.cwd()))


def of_result(text: str, result: object) -> Source:
    """The source out of what a function returned."""
    match result:
        case nn.Module() as module:
            inputs = getattr(module, "example_inputs", None)
            if inputs is None:
                raise CaptureError(
                    f"{text} gives a module without inputs",
                    expected="(module, inputs), or a module with an attribute example_inputs",
                )
            return of_result(text, (module, inputs() if callable(inputs) else inputs))
        case (nn.Module() as module, Tensor() as alone):
            return Source(text, module, (alone,))
        case (nn.Module() as module, Mapping() as kwargs):
            return Source(text, module, (), dict(kwargs))
        case (nn.Module() as module, tuple() | list() as args):
            return Source(text, module, tuple(args))
        case (nn.Module() as module, tuple() | list() as args, Mapping() as kwargs):
            return Source(text, module, tuple(args), dict(kwargs))
    got = type(result).__name__
    if isinstance(result, tuple):
        got = f"({', '.join(type(r).__name__ for r in result)})"
    raise CaptureError(
        f"{text} gives no model", got=got,
        expected="(module, inputs), (module, args, kwargs), or a module with example_inputs",
    )  # fmt: skip
