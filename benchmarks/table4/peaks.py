"""Measure what this machine can do at most: matrix products and memory copies.

A peak is the fastest of all repeats of the fastest library: it stands for what the machine can do, so load
that comes and goes must not lower it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from litemed.benchmarks.table4.machine import Machine
from litemed.runtime.network import silence_onnxruntime

SIDE = 1536
COPY_BYTES = 1 << 28
BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Peak:
    """The highest rate found.

    Attributes:
        name: float32, int8, bfloat16 or memory.
        rate: operations per second (a multiply-add counts as two), of memory bytes read and written.
        by: the library that reached it.
    """

    name: str
    rate: float
    by: str


def measure_peaks(machine: Machine, threads: int, repeats: int) -> tuple[list[Peak], list[str]]:
    """Return the peaks, and a line for each kind that this machine has none of."""
    torch.set_num_threads(threads)
    contenders: dict[str, dict[str, Callable[[], object]]] = {
        "float32": {"PyTorch": _torch_product(torch.float32), "ONNX Runtime": _ort_product(False, threads)},
        "int8": {"ONNX Runtime": _ort_product(True, threads)},
    }
    missing = []
    if any(feature in machine.features for feature in BF16_FEATURES):
        contenders["bfloat16"] = {"PyTorch": _torch_product(torch.bfloat16)}
    else:
        missing.append("bfloat16: this CPU has no instructions for it, so it was not measured")
    peaks = []
    for name, products in contenders.items():
        rates = {by: 2 * SIDE**3 / fastest(product, repeats) for by, product in products.items()}
        best = max(rates, key=lambda by: rates[by])
        peaks.append(Peak(name, rates[best], best))
    source, target = torch.zeros(COPY_BYTES, dtype=torch.uint8), torch.empty(COPY_BYTES, dtype=torch.uint8)
    peaks.append(Peak("memory", 2 * COPY_BYTES / fastest(lambda: target.copy_(source), repeats), "PyTorch"))
    return peaks, missing


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` calls, after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _torch_product(dtype: torch.dtype) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    return lambda: a @ b


def _ort_product(int8: bool, threads: int) -> Callable[[], object]:
    """Return a product of SIDE x SIDE matrices in ONNX Runtime, of float32 or of uint8 by int8 into int32."""
    silence_onnxruntime()
    import onnxruntime

    kinds = (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32) if int8 else (TensorProto.FLOAT,) * 3
    values = [
        helper.make_tensor_value_info(name, kind, [SIDE, SIDE])
        for name, kind in zip("abc", kinds, strict=True)
    ]
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8 if int8 else np.float32)
    b = rng.integers(-127, 128, (SIDE, SIDE)).astype(np.int8 if int8 else np.float32)
    # The second matrix is a weight, as in the network: so it is packed beforehand.
    weight = onnx.numpy_helper.from_array(b, "b")
    node = helper.make_node("MatMulInteger" if int8 else "MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [values[0]], [values[2]], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"a": a})
