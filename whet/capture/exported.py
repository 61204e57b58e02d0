"""torch.export: the one place that knows its private corners.

export(module, args, kwargs)   the program as the user's calls, composite ones whole
functional(program, kept)      the same without mutation, and decomposed as far as `kept` asks
load(path)                     a saved program
joint(module, inputs, loss, kept)      a training step through AOTAutograd; on meta tensors too
user_line(node)                where in the user's code a call stands

Private names of torch: `_functorch.aot_autograd.aot_export_module`, `_subclasses.fake_tensor`,
`utils._pytree`, `_ops.OpOverload`. Tested on torch 2.13.
"""

from __future__ import annotations

import contextlib
import copy
import io
import linecache
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from whet.errors import CaptureError

# Calls that write to running statistics without saying so in their schema: the places of the
# statistics and of the flag that decides it.
_SILENT_WRITES = {"aten.batch_norm.default": (3, 5), "aten.instance_norm.default": (3, 5)}
_ORIGIN = "exported_from"
_FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]+(?:\n\s+(?P<code>[^\n]+))?'
)
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])


def export(
    module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> ExportedProgram:
    """The module as torch sees it through these example inputs.

    Raises:
        CaptureError: it does not trace; the user's line is shown.
    """
    with quiet(), whole_attention():
        try:
            return torch.export.export(module, args, dict(kwargs), strict=False)
        except Exception as fault:
            raise untraceable(fault) from fault


def functional(program: ExportedProgram, kept: Callable[[str], bool]) -> ExportedProgram:
    """The program without mutation, every call for which `kept` is false decomposed.

    A program that is so already comes back as it is: tracing it again costs as much as exporting.
    """
    with quiet():
        try:
            calls = list(_calls(program.graph_module))
            writing = {n.target for n in calls if not pure(n)}
            table = torch.export.default_decompositions()
            for op in [op for op in table if kept(str(op)) and op not in writing]:
                del table[op]
            if not writing and not any(n.target in table for n in calls):
                return program
            decomposed: ExportedProgram = program.run_decompositions(table)
        except Exception as fault:
            raise untraceable(fault) from fault
    return decomposed


def _calls(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Every call of a library operator, in nested programs too."""
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            yield from (n for n in part.graph.nodes if isinstance(n.target, torch._ops.OpOverload))


def pure(node: fx.Node) -> bool:
    """Whether a call leaves its operands alone."""
    assert isinstance(node.target, torch._ops.OpOverload)
    places = _SILENT_WRITES.get(str(node.target))
    if places is not None and all(node.args[k] for k in places):
        return False
    return not node.target._schema.is_mutable


def draws(target: object) -> bool:
    """Whether a library operator takes random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def arguments(node: fx.Node) -> dict[str, object]:
    """A call's arguments by their names in the schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: dict[str, object] = {}
    for k, argument in enumerate(node.target._schema.arguments):
        if k < len(node.args):
            found[argument.name] = node.args[k]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """A traced training step; results by the names of the traced program.

    Attributes:
        module: forward and backward in one.
        owned: placeholder to the module's parameter or buffer.
        results: names of the results, in order.
        loss: the result that is the loss.
        gradients: result to the parameter that it is the gradient of.
        updates: result to the buffer that takes it, or to the placeholder of an input.
    """

    module: fx.GraphModule
    owned: Mapping[str, str]
    results: tuple[str, ...]
    loss: str
    gradients: Mapping[str, str]
    updates: Mapping[str, str]


class _Loss(nn.Module):
    """A module followed by its loss, which also takes what comes after the module's inputs."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], inputs: int) -> None:
        super().__init__()
        self.module, self.loss, self.inputs = module, loss, inputs

    def forward(self, *given: object) -> tuple[Tensor]:
        return (self.loss(self.module(*given[: self.inputs]), *given[self.inputs :]),)


def without_storage(
    module: nn.Module, inputs: tuple[object, ...]
) -> tuple[nn.Module, tuple[object, ...], contextlib.AbstractContextManager[object]]:
    """A module on the meta device as one of fake tensors on the CPU, which trace like real ones.

    (The meta device has no gradients of its own for some calls of the library.) Sharing of
    parameters stays as it is; neither has storage. What has storage is returned unchanged. Under
    the context that comes with them, what the module makes by itself has no storage either: zeros
    of the size of a batch may be larger than the memory here.
    """
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    if not any(x.is_meta for x in tensors):
        return module, inputs, contextlib.nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(x: Tensor) -> Tensor:
        with mode:
            made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
        return nn.Parameter(made, x.requires_grad) if isinstance(x, nn.Parameter) else made

    known: dict[int, object] = {id(x): fake(x) for x in (*module.parameters(), *module.buffers())}
    made = pytree.tree_map_only(Tensor, fake, inputs)
    return copy.deepcopy(module, known), made, mode


def joint(
    module: nn.Module,
    inputs: tuple[object, ...],
    loss: Callable[..., Tensor],
    kept: Callable[[str], bool],
    targets: tuple[object, ...] = (),
) -> Step:
    """Forward and backward of a module and its loss, decomposed as far as `kept` asks.

    A module on the meta device is traced without any storage.

    Raises:
        CaptureError: it does not trace; the user's line is shown.
    """
    from torch._functorch.aot_autograd import aot_export_module

    module, given, context = without_storage(module, (*inputs, *targets))
    table = torch.export.default_decompositions()
    kept_out = {op: how for op, how in table.items() if not kept(str(op))}
    # Without oneDNN: torch does not trace the gradients of its recurrent layers.
    with quiet(), whole_attention(), context, torch.backends.mkldnn.flags(enabled=False):
        try:
            traced, signature = aot_export_module(
                _Loss(module, loss, len(inputs)), given, trace_joint=True,
                output_loss_index=0, decompositions=kept_out,
            )  # fmt: skip
        except Exception as fault:
            raise untraceable(fault) from fault
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    backward = signature.backward_signature
    assert backward is not None
    assert isinstance(traced, fx.GraphModule)
    (output,) = (n for n in traced.graph.nodes if n.op == "output")
    results = tuple(str(getattr(r, "name", "")) for r in output.args[0])
    # What is written stands first. (`loss_output` names the first result, written or not.)
    loss_at = len(signature.buffers_to_mutate) + len(signature.user_inputs_to_mutate)
    return Step(
        traced,
        {k: v.removeprefix("module.") for k, v in owned.items()},
        results,
        results[loss_at],
        {k: v.removeprefix("module.") for k, v in backward.gradients_to_parameters.items()},
        {str(k): v.removeprefix("module.") for k, v in signature.buffers_to_mutate.items()}
        | {str(k): str(v) for k, v in signature.user_inputs_to_mutate.items()},
    )


def load(path: Path) -> ExportedProgram:
    """A saved program.

    Raises:
        CaptureError: there is no such file, or it holds no program.
    """
    if not path.is_file():
        raise CaptureError(f"there is no file {path}", expected="a program saved by torch.export")
    with quiet():
        try:
            return torch.export.load(path)
        except Exception as fault:
            raise CaptureError(
                f"{path} does not load as an exported program",
                got=first_line(fault),
                hint="save it anew with torch.export.save, by a torch that is not newer than"
                f" {torch.__version__}",
            ) from fault


def example_inputs(
    program: ExportedProgram,
) -> tuple[tuple[object, ...], Mapping[str, object]] | None:
    """What the program was exported with, where it says so."""
    found = program.example_inputs
    return None if found is None else (tuple(found[0]), dict(found[1]))


class Origin:
    """The program that a module was made from; a copy of the module was made from none."""

    def __init__(self, program: ExportedProgram | None) -> None:
        self.program = program

    def __deepcopy__(self, memo: object) -> Origin:
        return Origin(None)


def module_of(program: ExportedProgram) -> nn.Module:
    """The program as a module for inference, which remembers where it comes from."""
    module: nn.Module = program.module()
    for part in module.modules():
        part.training = False
    vars(module)[_ORIGIN] = Origin(program)
    return module


def program_of(module: nn.Module) -> ExportedProgram | None:
    """The program that a module of `module_of` was made from."""
    found = vars(module).get(_ORIGIN)
    return found.program if isinstance(found, Origin) else None


def symbolic(program: ExportedProgram) -> bool:
    """Whether sizes are left open, which an import for given inputs closes."""
    return bool(program.range_constraints)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about its own code, and its pages on what does not trace.

    Our error says that in a line. What is written to stderr on the way to a success is passed on.
    """
    before = logging.root.manager.disable
    said = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.WARNING))
        try:
            with contextlib.redirect_stderr(said):
                yield
        finally:
            logging.disable(before)
    sys.stderr.write(said.getvalue())


@contextlib.contextmanager
def whole_attention() -> Iterator[None]:
    """Encoder layers as the calls they are made of, not as the one call that inference takes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# -- the user's lines ----------------------------------------------------------------------------
def user_line(node: fx.Node) -> str:
    """The innermost line outside torch that led to a call, as "file:line: code"; else ""."""
    for found in reversed(list(_FRAME.finditer(node.meta.get("stack_trace") or ""))):
        if not found["file"].startswith((_TORCH, "<")):
            code = found["code"] or linecache.getline(found["file"], int(found["line"]))
            return f"{found['file']}:{found['line']}: {code.strip()}"
    return ""


def fault_line(fault: BaseException) -> str | None:
    """The innermost line of the user's own code that an exception passed through."""
    chain: list[BaseException] = []
    at: BaseException | None = fault
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    for exception in reversed(chain):
        for frame in reversed(traceback.extract_tb(exception.__traceback__)):
            if _users(frame.filename):
                return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return None


def _users(file: str) -> bool:
    return not file.startswith((_TORCH, _OURS + "/capture/exported", _OURS + "/capture/torch", "<"))


def first_line(fault: BaseException) -> str:
    """An exception in one line."""
    text = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {text[0]}" if text else type(fault).__name__


def untraceable(fault: Exception) -> CaptureError:
    """What is said of a model that does not trace."""
    text = str(fault)
    if "data-dependent" in text or "unbacked" in text or "GuardOnDataDependent" in repr(fault):
        return CaptureError(
            "the model does not trace: its control flow or its shapes depend on data",
            got=first_line(fault),
            where=fault_line(fault),
            hint="compute both sides and choose with torch.where, or keep that part out of the"
            " model that is captured",
        )
    if "marked as the loss" in text:
        shaped = re.search(r"torch\.Size\((.*)\)", text)
        return CaptureError(
            "a training step has a loss that gradients flow from",
            expected="one number that depends on a trained parameter",
            got=f"shape {shaped[1]}" if shaped else "it depends on no parameter with requires_grad",
            where=fault_line(fault),
            hint="let the loss be a mean or a sum" if shaped
            else "check requires_grad, torch.no_grad and detach; --inference for a forward pass",
        )  # fmt: skip
    if unknown := re.search(r"Found <class '([^']+)'> in output, which is not a known type", text):
        return CaptureError(
            f"the model returns a {unknown[1]}, which is no tensor, tuple, list or dict",
            where=fault_line(fault),
            hint="return plain tensors (transformers models: pass use_cache=False), or register"
            " the type with torch.utils._pytree.register_pytree_node",
        )
    return CaptureError(
        "the model does not trace",
        got=first_line(fault),
        where=fault_line(fault),
        hint="torch.export.export(model, inputs, strict=False) must accept it; or use"
        ' torch.compile(model, backend="whet")',
    )
