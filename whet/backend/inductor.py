"""Inductor: a whole region becomes one shared library, the expensive calls made by libraries.

    function of ATen and oneDNN calls, example inputs
      → traced on shapes alone, composite operators expanded as Inductor wants them
      → what leaves the region is never an input or a view of one: copied where it would be
      → Inductor: pointwise operators and reductions fused into generated kernels,
                  `mkldnn._linear_pointwise`, `mkldnn._convolution_pointwise` kept as calls,
                  a row times a matrix generated too (no library reads a matrix as fast)
      → one library (`whet.backend.artifact.Region`)

Packed parameters are ordinary inputs here. Inductor itself takes them as constants of a frozen
graph only; but parameters may change, and are then packed again outside of the region. To Inductor
a packed tensor is a dense one of the same sizes that only oneDNN's calls ever read.

This file alone names private functions of torch. They were used with torch 2.13 on Linux; where
another version has moved one, compiling raises `UnsupportedError` and callers go without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import operator
import os
import re
import shutil
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from whet.backend.artifact import Operand, Region, this_processor
from whet.errors import UnsupportedError, WhetError

# fmt: off
OPTIONS: dict[str, Any] = {
    "cpp_wrapper":       True,   # one library that calls kernels and oneDNN without Python between
    "compile_threads":   1,      # no pool of worker processes for one library
    "fx_graph_cache":    False,  # whet's store keeps regions, by its own keys
    "size_asserts":      False,  # `Runner` checks what comes in
    "alignment_asserts": False,
    "scalar_asserts":    False,
    "nan_asserts":       False,
    "freezing":          False,  # parameters stay inputs, whatever the user set
    "max_autotune":      False,  # its generated matmuls lose to oneDNN, and cost half a minute
}
# fmt: on

_EXACT = (torch.float32, torch.float64)  # summed in their own precision by libraries as well
_COMPILING = threading.RLock()  # Inductor's options are global
_KERNEL = re.compile(r'^extern "C"\s+void\s+(cpp_\w+)\(', re.MULTILINE)
_CALL = re.compile(r'(?:aoti_torch_cpu_(\w+)|aoti_torch_call_dispatcher\("([^"]+)")')
_PYTHON = "custom_op_wrapper"  # stands in the source where an operator is called through Python


def compile_region(
    body: Callable[..., Any], example_inputs: Sequence[Tensor], *, threads: int | None = None
) -> Region:
    """Compiles a function of ATen calls for inputs like the examples (kind, sizes, strides).

    Args:
        body: takes tensors in the order of the examples, returns a tensor or a sequence of tensors
            and does nothing else; an FX graph module, or any Python that can be traced. Tensors it
            holds itself become constants of the region.
        example_inputs: real or fake; only kind, sizes and strides are looked at.
        threads: how many threads the kernels use; torch's number if not given.

    Raises:
        UnsupportedError: Inductor cannot compile the graph, or cannot compile at all; says why.
    """
    threads = threads or torch.get_num_threads()
    _require_compiler()
    start = time.perf_counter()
    with _COMPILING, _quiet():
        try:
            inputs = [Operand.of(x) for x in example_inputs]
            traced, fakes, outputs, mode = _trace(body, inputs)
            key = _key(traced, inputs, threads)
            source, library, constants = _build(traced, fakes, mode, threads)
        except WhetError:
            raise
        except Exception as error:
            raise UnsupportedError(
                "Inductor cannot compile this region",
                got=_reason(error),
                where=f"a region of {len(example_inputs)} inputs, torch {torch.__version__}",
                hint="nothing is lost: the region runs through library calls instead",
            ) from error
    return Region(
        key=key,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        constants=constants,
        library=library,
        threads=threads,
        kernels=len(set(_KERNEL.findall(source))),
        calls=Counter(short or full for short, full in _CALL.findall(source)),
        torch_version=torch.__version__,
        processor=this_processor(),
        seconds=time.perf_counter() - start,
    )


def _key(traced: fx.GraphModule, inputs: Sequence[Operand], threads: int) -> str:
    words = hashlib.sha256()
    target = (torch.__version__, this_processor(), threads, sorted(OPTIONS.items()))
    for text in (*target, traced.code, *inputs):
        words.update(f"{text}\n".encode())
    for node in traced.graph.find_nodes(op="get_attr"):
        file = io.BytesIO()
        torch.save(operator.attrgetter(str(node.target))(traced), file)
        words.update(file.getvalue())
    return words.hexdigest()


def _trace(
    body: Callable[..., Any], inputs: Sequence[Operand]
) -> tuple[fx.GraphModule, list[Tensor], list[Operand], Any]:
    import torch._inductor.lowering  # decompositions look it up, and do not import it
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def outputs(*tensors: Tensor) -> list[Tensor]:
        result = body(*tensors)
        return [result] if isinstance(result, Tensor) else list(result)

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad(), _meta_of_binary_calls():
        fakes = [_fake(x) for x in inputs]
        traced = make_fx(outputs, decomposition_table=select_decomp_table())(*fakes)
        results = _own_outputs(traced, fakes)
    return traced, fakes, [Operand.of(x) for x in results], mode


def _fake(x: Operand) -> Tensor:
    """A tensor without data under the fake mode; a packed one is dense to all but oneDNN."""
    dtype = getattr(torch, x.dtype)
    if x.stride is None:
        return torch.empty(x.shape, dtype=dtype)
    return torch.empty_strided(x.shape, x.stride, dtype=dtype)


def _own_outputs(traced: fx.GraphModule, fakes: Sequence[Tensor]) -> list[Tensor]:
    """Copies each output that shares memory with an input, a constant or an earlier output.

    before: return x.t(), y, y
    after:  return clone(x.t()), y, clone(y)
    """
    graph = traced.graph
    (end,) = graph.find_nodes(op="output")
    taken = {_storage(x) for x in fakes}
    taken |= {_storage(n.meta["val"]) for n in graph.find_nodes(op="get_attr") if "val" in n.meta}
    results, nodes = [], []
    for node in end.args[0]:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, Tensor):
            raise UnsupportedError(
                "a region returns something that is not a tensor", expected="tensors", got=node
            )
        if node.op == "get_attr" or _storage(value) in taken:
            with graph.inserting_before(end):
                node = graph.call_function(torch.ops.aten.clone.default, (node,))
                value = node.meta["val"] = torch.empty_like(value)
        taken.add(_storage(value))
        nodes.append(node)
        results.append(value)
    end.args = (tuple(nodes),)
    traced.recompile()
    return results


def _storage(x: Tensor) -> Any:
    return x.untyped_storage()._cdata


def _build(
    traced: fx.GraphModule, fakes: Sequence[Tensor], mode: Any, threads: int
) -> tuple[str, bytes, tuple[Tensor, ...]]:
    import torch._inductor.config as config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner

    with (
        config.patch({**OPTIONS, "cpp.threads": threads}),
        torch.no_grad(),
        mode,
        tracing(TracingContext(mode)),
        _meta_of_binary_calls(),
        _our_lowerings(),
    ):
        built: Any = compile_fx_inner(traced, list(fakes), cpp_wrapper=True, is_inference=True)
    if built.mutated_input_idxs:
        raise UnsupportedError(
            "a region writes into its inputs",
            expected="a functional graph",
            got=f"inputs {sorted(built.mutated_input_idxs)} are written",
        )
    if _PYTHON in built.source_code:
        raise UnsupportedError(
            "a region calls an operator that only Python can call",
            expected="operators known to torch's dispatcher by their schema",
            got=", ".join(sorted(set(re.findall(r"torch\.ops\.[\w.]+", built.source_code)))),
        )
    # The wrapper that Inductor wrote holds the library's function by this name.
    entry = built.current_callable.__globals__["inductor_entry"]
    constants = tuple((built.constants or {}).values())
    return built.source_code, Path(entry.__self__.__file__).read_bytes(), constants


@contextlib.contextmanager
def _our_lowerings() -> Iterator[None]:
    """Lowers packed linears whatever their weight is, and products of a row as reductions.

    Inductor insists on packed weights that are constants. For one row, libraries reach a third to
    two thirds of the bandwidth that a generated reduction does, which also takes the operators
    that follow along, and starts in a sixth of the time.
    """
    import torch._inductor.mkldnn_lowerings  # first, or it would replace what is put in below
    from torch._inductor import mkldnn_ir
    from torch._inductor.ir import ExternKernel, TensorBox
    from torch._inductor.lowering import lowerings

    aten, mkldnn, mkl = torch.ops.aten, torch.ops.mkldnn, torch.ops.mkl
    realize = ExternKernel.realize_input

    def call(create: Callable[..., Any]) -> Callable[..., Any]:
        def lower(*args: Any) -> Any:
            stored = (realize(a) if isinstance(a, TensorBox) else a for a in args)
            return TensorBox.create(create(*stored))

        return lower

    def row(plain: Callable[..., Any]) -> Callable[..., Any]:
        def lower(*args: Any, **kwargs: Any) -> Any:
            *bias, x, w = args
            if kwargs or x.get_size()[0] != 1 or x.get_dtype() not in _EXACT:
                return plain(*args, **kwargs)
            x.realize()  # else what computes x is repeated for each column of w
            column = lowerings[aten.permute.default](x, [1, 0])
            product = lowerings[aten.mul.Tensor](column, w)
            total = lowerings[aten.sum.dim_IntList](product, [0], True)
            return lowerings[aten.add.Tensor](total, bias[0]) if bias else total

        return lower

    ours: dict[Any, Callable[..., Any]] = {
        mkldnn._linear_pointwise.default: call(mkldnn_ir.LinearUnary.create),
        mkldnn._linear_pointwise.binary: call(mkldnn_ir.LinearBinary.create),
        aten.mm.default: row(lowerings[aten.mm.default]),
        aten.addmm.default: row(lowerings[aten.addmm.default]),
    }
    if torch.backends.mkl.is_available():
        ours[mkl._mkl_linear.default] = call(mkldnn_ir.MKLPackedLinear.create)
    theirs = {op: lowerings[op] for op in ours}
    lowerings.update(ours)
    try:
        yield
    finally:
        lowerings.update(theirs)


@contextlib.contextmanager
def _meta_of_binary_calls() -> Iterator[None]:
    """Shapes of oneDNN's calls with a second operand, where torch does not give them itself."""
    mkldnn = torch.ops.mkldnn
    rows: dict[str, Callable[..., Tensor]] = {
        "_linear_pointwise.binary": lambda x, other, w, b, attr: mkldnn._linear_pointwise(
            x, w, b, "none", [], ""
        ),
        "_convolution_pointwise.binary": lambda x, other, w, b, *sizes: (
            mkldnn._convolution_pointwise(x, w, b, *sizes[:4], "none", [], "")
        ),
    }
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    with torch.library._scoped_library("mkldnn", "IMPL", "Meta") as library:
        for name, shape in rows.items():
            if not has(f"mkldnn::{name}", "Meta"):
                library.impl(name, shape)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the compiler's warnings to itself: there is nothing a user of whet could do."""
    logger = logging.getLogger("torch._inductor")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UnsupportedError(
            "Inductor needs a C++ compiler",
            expected=compiler,
            got="no such program",
            hint="install it (apt-get install g++), or set CXX to another one",
        )


def _reason(error: BaseException) -> str:
    """The first lines of the innermost message: Inductor wraps errors and appends whole graphs."""
    while isinstance(getattr(error, "inner_exception", None), BaseException):
        error = error.inner_exception  # type: ignore[attr-defined]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join([f"{type(error).__name__}: {lines[0] if lines else ''}", *lines[1:4]])
