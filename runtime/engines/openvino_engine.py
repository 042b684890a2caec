"""OpenVINO on the CPU."""

import contextlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cpu import cpu_instructions, own_cores
from litemed.runtime.engines.protocol import Engine, Float, Interface
from litemed.runtime.errors import EngineError, OutputError

_TELEMETRY = "openvino_telemetry"

_core: Any = None
_core_lock = threading.Lock()


@contextlib.contextmanager
def silent_openvino_import() -> Iterator[None]:
    """Keep OpenVINO, imported within, from writing ~/intel and sending an event, by hiding the package."""
    loaded = sys.modules.copy()  # other threads import as well
    before = {name: one for name, one in loaded.items() if name.partition(".")[0] == _TELEMETRY}
    # With None here the import system raises ImportError, as if the package were not installed.
    sys.modules.update(dict.fromkeys((*before, _TELEMETRY)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(before)


def shared_core() -> Any:
    """Return this process's one `openvino.Core`. Raises ImportError without OpenVINO.

    It lives as long as the process. With AVX-512, a core's CPU plugin gives the thread that
    first uses it a stack for signals (https://github.com/openvinotoolkit/openvino/pull/11894), and frees it
    with the core even if that happens on another thread: the next signal that Python handles, as Ctrl-C or
    a child's end, would kill the process.
    """
    global _core
    with _core_lock:
        if _core is None:
            with silent_openvino_import():
                import openvino
            _core = openvino.Core()
        return _core


def computes_bf16() -> bool:
    """Return whether this CPU computes in bf16, as OpenVINO tells. Raises ImportError without OpenVINO."""
    return "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(Engine):
    """See `litemed.runtime.engines.protocol.Engine`."""

    name, title, package = "openvino", "OpenVINO", "'.[openvino]'"

    def prepare(self) -> str:
        """Import OpenVINO, and see whether the CPU computes in the precision."""
        self._core = shared_core()
        from openvino import __version__

        if self.bf16 and not computes_bf16():
            raise EngineError("this CPU computes no bf16; choose precision exact or auto")
        return str(__version__)

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back: 145 MiB, in 20 ms; the next `encode` takes 80 ms longer."""
        with contextlib.suppress(AttributeError, RuntimeError):  # versions before 2024.5; or it is running
            self._encoder.result().get_compiled_model().release_memory()

    def load(self, bundle: Bundle, role: str, key: str) -> tuple[Any, Interface]:
        """Return an inference request of one graph, its inputs' shapes and its outputs' names."""
        options: dict[str, Any] = {
            # To be said always, for the default is bf16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if role in self.bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            # Pinned, the threads of two processes sit on the same first CPUs, each at half its speed, and
            # those of one cannot leave a CPU that something else is busy on.
            "ENABLE_CPU_PINNING": False,
            # Without this it takes no more threads than cores, whatever it is told.
            "ENABLE_HYPER_THREADING": self.threads > own_cores(),
        }
        cpu = (str(self._core.get_property("CPU", "FULL_DEVICE_NAME")), *sorted(cpu_instructions()))
        depends_on = (bundle.manifest.graphs[key].sha256, self.version, *cpu, json.dumps(options))
        model = None
        if kept := self.cache and self.cache.load(*depends_on):
            with contextlib.suppress(Exception):  # refused, by whatever C++ throws: made anew
                model = self._core.import_model(io.BytesIO(kept), "CPU", options)
        if model is None:
            model = self._core.compile_model(self._core.read_model(bundle.graphs[key]), "CPU", options)
            if self.cache:
                with contextlib.suppress(OutputError):  # a full or write-protected disk costs time alone
                    self.cache.store(model.export_model().getvalue(), *depends_on)
        inputs = {
            one.any_name: tuple(axis.get_length() if axis.is_static else None for axis in one.partial_shape)
            for one in model.inputs
        }
        return model.create_infer_request(), (inputs, {one.any_name for one in model.outputs})

    def run(self, graph: Any, outputs: list[str], inputs: dict[str, Float]) -> list[Float]:
        """Return a request's outputs; inputs are read in place, outputs copied before it writes over them."""
        found = graph.infer(inputs, share_inputs=True, share_outputs=False)
        return [found[name] for name in outputs]
