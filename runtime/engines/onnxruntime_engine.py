"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.loading import LoadingGraphs
from litemed.runtime.engines.protocol import Float, decode_in_chunks, failure
from litemed.runtime.errors import EngineError
from litemed.runtime.network import silence_onnxruntime
from litemed.runtime.precision import REFERENCE

NAME = "onnxruntime"
_FATAL = 4  # errors are raised; logged as well they would stand on stderr twice


class OnnxRuntimeEngine:
    """See `litemed.runtime.engines.protocol.Engine`."""

    name = NAME

    def __init__(self, bundle: Bundle, threads: int, precision: str = REFERENCE, choice: str = "") -> None:
        """Begin to load a precision's graphs.

        Raises EngineError if ONNX Runtime is missing, or does not compute in that precision.
        """
        if precision == "bf16":
            raise EngineError("ONNX Runtime computes no bf16 on a CPU; choose OpenVINO")
        silence_onnxruntime()
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(f"ONNX Runtime cannot be loaded ({error}); pip install onnxruntime") from error
        # In case the calling program imported it before us.
        onnxruntime.disable_telemetry_events()
        self.version = str(onnxruntime.__version__)
        self.threads = threads
        self.precision = precision
        self.choice = choice
        self._sessions = LoadingGraphs(
            lambda role, key: self._session(onnxruntime, bundle.graph_bytes(key)),
            bundle.manifest.precisions[precision],
        )

    def ready(self) -> None:
        """Return once the graphs are loaded. Raises EngineError if ONNX Runtime refuses them."""
        self._sessions.wait()

    def encode(self, image: Float) -> Float:
        """Return the embedding of a network input."""
        (embedding,) = self._run(self._sessions.encoder, ["image_embedding"], {"image": image})
        return embedding

    def decode(self, embedding: Float, boxes: Float) -> tuple[Float, Float]:
        """Return logits and predicted IoU of boxes on one embedding."""
        return decode_in_chunks(self._decode, embedding, boxes)

    def _decode(self, embedding: Float, boxes: Float) -> tuple[Float, Float]:
        inputs = {"image_embedding": embedding, "boxes": boxes}
        logits, iou = self._run(self._sessions.decoder, ["logits", "iou"], inputs)
        return logits, iou

    def _session(self, onnxruntime: Any, graph: bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # The arena keeps its peak as long as the session lives.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = _FATAL
        try:
            return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise failure("ONNX Runtime", error) from error

    def _run(self, session: Any, outputs: list[str], inputs: dict[str, Float]) -> list[Float]:
        try:
            found: list[Float] = session.run(outputs, inputs)
        except Exception as error:  # as above
            raise failure("ONNX Runtime", error) from error
        return found
