"""Shows a run on the console: a progress bar on a terminal, plain lines in a log, both with the time left."""

import contextlib
import datetime
import sys
import traceback
from typing import Any

import click

from litemed.runtime.errors import printable
from litemed.runtime.folder import RunObserver
from litemed.runtime.json_log import TimeLeft
from litemed.runtime.report import CaseReport

# Steps of the bar per case; slices move it within.
_STEPS = 1000


class Console(contextlib.ExitStack, RunObserver):
    """Tells of cases as they finish; a context manager, so that the bar is closed whatever happens.

    Errors and warnings go to stderr, one line each; what else is told in a log goes to stdout.

    Args:
        debug: show the traceback of each error.
        quiet: show nothing but errors and warnings.
    """

    def __init__(self, *, debug: bool, quiet: bool) -> None:
        """Show nothing yet."""
        super().__init__()
        self._debug = debug
        self._lines = not quiet and not sys.stderr.isatty()
        self._wants_bar = not quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._item = ""
        self._left = TimeLeft()
        self._finished = self._total = self._steps = 0

    def case_started(self, case: str, number: int, total: int) -> None:
        """Show the case beside the bar."""
        self._total, self._item = total, f"{printable(case)} ({number}/{total})"
        if self._wants_bar and self._bar is None:
            bar = click.progressbar(
                length=total * _STEPS, file=sys.stderr, item_show_func=lambda item: item, show_percent=False
            )
            self._bar = self.enter_context(bar)
        self._move(0)

    def slices_done(self, done: int, total: int) -> None:
        """Move the bar within its case."""
        self._move(_STEPS * done // total)

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        """Print what became of the case."""
        self._finished += 1
        self._move(0)
        if report.status != "skipped":
            for warning in report.warnings:
                self._print(f"warning: {report.case}: {warning}")
        if report.error is not None:
            if self._debug and error is not None:
                self._print("".join(traceback.format_exception(error)).rstrip())
            self._print(f"error: {report.error}")
        elif self._lines:
            seconds = round(self._left.after(self._finished, self._total)["seconds_left"])
            left = f"; about {datetime.timedelta(seconds=seconds)} left" if seconds else ""
            click.echo(f"[{self._finished}/{self._total}] {_summary(report)}{left}")

    def _print(self, text: str) -> None:
        """Print on stderr, above the bar."""
        if self._bar is not None:
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(text, err=True)
        if self._bar is not None:
            self._bar.render_progress()

    def _move(self, within: int) -> None:
        """Move the bar to what is finished and what is done of the case after it; never back."""
        if self._bar is not None:
            steps = max(self._steps, self._finished * _STEPS + within)
            self._bar.update(steps - self._steps, self._item)
            self._steps = steps


def _summary(report: CaseReport) -> str:
    """Return a finished case in one line."""
    if report.status == "skipped" or report.seconds is None:
        return f"{report.case}: skipped, its result is up to date"
    work = f"encodings: {report.encodings}, masks: {report.decodings}"
    return f"{report.case}: {report.seconds['total']:.2f} s, {work}"
