"""ONNX Runtime on the CPU."""

import contextlib
import functools
import os
from typing import Any

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.protocol import Engine, Float, Interface
from litemed.runtime.errors import EngineError


def silence_onnxruntime() -> None:
    """Keep ONNX Runtime from uploading events, as 1.29 and later do, once it is imported after this."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class OnnxRuntimeEngine(Engine):
    """See `litemed.runtime.engines.protocol.Engine`; encoder and decoder work in the same memory."""

    name, title, package = "onnxruntime", "ONNX Runtime", "onnxruntime"

    def prepare(self) -> str:
        """Import ONNX Runtime."""
        if self.bf16:
            raise EngineError("ONNX Runtime computes no bf16 on a CPU; choose OpenVINO")
        silence_onnxruntime()
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # in case the calling program imported it before us
        _share_arena()
        return str(onnxruntime.__version__)

    def load(self, bundle: Bundle, role: str, key: str) -> tuple[Any, Interface]:
        """Return a session of one graph, its inputs' shapes and its outputs' names."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # The threads of the session that is not at work would go on spinning for its next call, on the CPUs
        # that the other one needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.use_env_allocators", "1")  # see _share_arena
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # errors are raised; logged as well they would stand on stderr twice
        options.add_session_config_entry("session.load_model_format", "ONNX")  # no other that it would guess
        providers = ["CPUExecutionProvider"]
        # With a fallback it would try again what it refuses, and print so.
        session = onnxruntime.InferenceSession(
            bundle.graphs[key], options, providers=providers, enable_fallback=False
        )
        session._model_bytes = None  # it would keep the file's bytes, to open it anew with other providers
        inputs = {
            one.name: tuple(axis if isinstance(axis, int) else None for axis in one.shape)
            for one in session.get_inputs()
        }
        return session, (inputs, {one.name for one in session.get_outputs()})

    def run(self, graph: Any, outputs: list[str], inputs: dict[str, Float]) -> list[Float]:
        """Return a session's outputs."""
        found: list[Float] = graph.run(outputs, inputs)
        return found


@functools.cache  # ONNX Runtime has one environment for all of a process, and with it one such arena
def _share_arena() -> None:
    """Let encoder and decoder, which never run at once, take turns in one arena of memory.

    Without an arena every tensor is mapped and cleared anew: 15 to 25 % of the encoder's CPU time and 20 to
    30 % of the decoder's. Resident after slices with 8, 8 and 3 boxes, and the most at any time, in MiB (ONNX
    Runtime 1.32, graphs of size 256): no arena 319, 569; one for each 677, 677; shared 414, 414, with memory
    patterns 653, 653; begun with one large chunk, of which only what is touched is taken, 393, 393.
    """
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    # Memory without limit, chunks that double, the size of the first, the default for dead bytes.
    config = onnxruntime.OrtArenaCfg(0, -1, 1 << 29, -1)
    # Older versions refuse if the calling program has shared one of its own already: that one serves as well.
    with contextlib.suppress(RuntimeError):
        onnxruntime.create_and_register_allocator(memory, config)
