"""Score many cases in parallel processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from litemed.benchmarks.evaluate.cases import EvaluatedCase, Run
from litemed.benchmarks.evaluate.scores import CaseResult, Settings, score_case
from litemed.runtime.errors import LitemedError

Progress = Callable[[int, int, CaseResult], None]


def evaluate(
    cases: Sequence[EvaluatedCase],
    runs: Sequence[Run],
    settings: Settings,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[CaseResult]:
    """Score every case and return the results in the order of the cases.

    Args:
        cases: as `find_cases` returns them.
        runs: the predictions, in the order of the tables' columns.
        settings: how to score.
        workers: processes; each holds one case at a time. 1 stays in this process.
        progress: called in this process after each case: cases done, all cases, the case's result.

    Raises:
        LitemedError: a process was killed, most likely for want of memory.
    """
    results: dict[int, CaseResult] = {}
    for index, result in _results(cases, runs, settings, min(workers, len(cases))):
        results[index] = result
        if progress is not None:
            progress(len(results), len(cases), result)
    return [results[index] for index in sorted(results)]


def _results(
    cases: Sequence[EvaluatedCase], runs: Sequence[Run], settings: Settings, workers: int
) -> Iterator[tuple[int, CaseResult]]:
    if workers <= 1:
        for index, case in enumerate(cases):
            yield index, score_case(case, runs, settings)
        return
    # Not forked: a library's threads do not survive a fork, the locks they hold do.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_parent)
    try:
        futures = {executor.submit(score_case, case, runs, settings): i for i, case in enumerate(cases)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise LitemedError(
            f"one of {workers} processes was killed, most likely for want of memory; use fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
