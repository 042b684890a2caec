"""Run one function over many tasks in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from litemed.runtime.errors import LitemedError

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for every task, in their order.

    workers: processes, which end when the caller does; 1 runs everything here.
    Raises what `function` raises, and LitemedError where a worker dies, as it does for want of memory.
    """
    if workers == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    # Spawned, not forked: OpenCV has threads of its own, and a fork copies their locks but not them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_start_worker) as pool:
        try:
            # Not pool.map: on Ctrl-C it cancels what the dying workers' manager reports on, with a traceback.
            for future in [pool.submit(function, task) for task in tasks]:
                yield future.result()
        except BrokenProcessPool as error:
            raise LitemedError(
                "a worker process died, perhaps for want of memory; run again with fewer --workers to go on"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal: workers end at once, and the parent reports.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The processes are the parallelism.
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Workers hold both ends of their task queue, so that they would wait for a killed parent for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
