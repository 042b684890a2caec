"""The inner side of a worker process: load once, then answer each line of standard input by a line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from litemed.runtime.errors import LitemedError

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def serve(load: Callable[[], Handler]) -> None:
    """Answer requests until standard input ends.

    Prints {"ready": SECONDS} once `load` has returned, then what its handler makes of each request, or
    {"error": LINE} for what is refused; if `load` is refused, the process ends with that and exit code 1.
    """
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    start = time.perf_counter()
    try:
        handle = load()
    except LitemedError as error:
        answer({"error": str(error)})
        sys.exit(1)
    answer({"ready": time.perf_counter() - start})
    for line in sys.stdin:
        try:
            answer(handle(json.loads(line)))
        except LitemedError as error:
            answer({"error": str(error)})
