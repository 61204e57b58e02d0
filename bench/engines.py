"""ONNX Runtime and OpenVINO, each as its own manual says it is fastest on a processor, at float32.

Both are given the ONNX file that PyTorch's exporter writes. Inputs and outputs stay where they are
between calls, so that neither pays for copies that a program embedding it would not make.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree


def onnxruntime(module: nn.Module, inputs: Sequence[Any], threads: int) -> Callable[[], object]:
    """A session with all graph optimizations on `threads` threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    with exported(module, inputs) as file:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = dict(zip([i.name for i in session.get_inputs()], arrays(inputs), strict=True))
    return lambda: session.run(None, feeds)


def openvino(module: nn.Module, inputs: Sequence[Any], threads: int) -> Callable[[], object]:
    """A request compiled for latency; without the hint f32 it would compute in bfloat16."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": threads > 1,
    }
    core = ov.Core()
    with exported(module, inputs) as file:
        compiled = core.compile_model(core.read_model(file), "CPU", settings)
    if (precision := str(compiled.get_property("INFERENCE_PRECISION_HINT"))) != "<Type: 'float32'>":
        raise RuntimeError(f"OpenVINO would compute in {precision}, not in float32")
    request = compiled.create_infer_request()
    for port, array in zip(compiled.inputs, arrays(inputs), strict=True):
        request.set_tensor(port, ov.Tensor(array, shared_memory=True))

    def call() -> list[np.ndarray[Any, Any]]:
        request.infer()
        return [request.get_output_tensor(k).data for k in range(len(compiled.outputs))]

    return call


@contextlib.contextmanager
def exported(module: nn.Module, inputs: Sequence[Any]) -> Iterator[Path]:
    """The model as an ONNX file, there until the context ends."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.onnx"
        program = torch.onnx.export(module, tuple(inputs), dynamo=True, verbose=False)
        assert program is not None
        program.save(file, external_data=True)  # a file beside it: protobuf ends at 2 GiB
        yield file


def arrays(inputs: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """The tensors among `inputs`, in their order, as contiguous arrays."""
    leaves = pytree.tree_leaves(tuple(inputs))
    return [np.ascontiguousarray(x.detach().numpy()) for x in leaves if isinstance(x, torch.Tensor)]
