"""Keeps the inference engines from reporting home.

From 1.29 on, ONNX Runtime uploads events unless ORT_DISABLE_TELEMETRY is set before it is imported. Importing
OpenVINO writes ~/intel and sends an event by its package openvino_telemetry, without which it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_OPENVINO_TELEMETRY = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """Switch ONNX Runtime's telemetry off; call it before onnxruntime is imported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@contextlib.contextmanager
def silent_openvino_import() -> Iterator[None]:
    """Hide OpenVINO's telemetry package while openvino is imported within; afterwards all is as it was."""
    before = {name: one for name, one in sys.modules.items() if name.partition(".")[0] == _OPENVINO_TELEMETRY}
    # With None here the import system raises ImportError, as if the package were not installed.
    sys.modules.update(dict.fromkeys((*before, _OPENVINO_TELEMETRY)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        del sys.modules[_OPENVINO_TELEMETRY]
        sys.modules.update(before)
