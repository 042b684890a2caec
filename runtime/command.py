"""How every command of litemed ends: errors as one line on stderr, and an exit code.

What it prints is for a person; results are files. So a command goes on where a terminal, a pipe or the disk
under a log is gone, and says so at its end.
"""

import io
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from litemed.runtime.errors import LitemedError, UsageError, one_line

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


class Command(click.Command):
    """A command that goes on though what it prints cannot be written; then it ends with `FAILED` at least."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments, do the work and exit."""
        # Else files of ours would get the numbers of closed streams, and what libraries print would go there.
        while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(spare)
        given = sys.stdout, sys.stderr
        out, err = sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
        code = None
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            code = end.code or DONE
            raise
        finally:
            lost = _lost(out)
            if lost is not None:
                click.echo(f"error: standard output: {lost.strerror}; not all lines were written", err=True)
            _lost(err)
            sys.stdout, sys.stderr = given
            if lost is not None and code == DONE:
                sys.exit(FAILED)


class _ExistingPath(click.Path):
    """A file or folder to read: one that does not exist is wrong use, whatever it was to be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path: Any = super().convert(value, param, ctx)
        try:
            os.stat(path)
        except OSError as error:
            click.echo(f"error: {path}: {error.strerror}; check the path", err=True)
            sys.exit(WRONG_USE)
        return path


EXISTING = _ExistingPath(path_type=Path)
WORKERS = (
    "Processes, as many as are given; by default one for each core that this one may use, cut to its "
    "container's CPU quota."
)


class Group(Command, click.Group):
    """The same with commands of its own."""


class _Lasting(io.FileIO):
    """A file that keeps the first error of writing instead of raising it."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Return how much is done with."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


def _lasting(stream: TextIO | None) -> TextIO:
    """Return a stream that writes where `stream` does but raises nothing; where it is closed, nowhere."""
    if stream is None:
        return open(os.devnull, "w")
    buffer = getattr(stream, "buffer", None)
    if not isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # itself where Python does not buffer
        return stream  # that of a caller, which is no file
    raw = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors=stream.errors, line_buffering=True)


def _lost(stream: TextIO) -> OSError | None:
    """Write what is left in a stream; return why something in it could not be written, if that is so."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Lasting) else None


def tell_unread(
    folder: Path,
    unread: Iterable[Path],
    strict: bool,
    what: str,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Warn of files and folders that a command passes over, by their kinds; `what` they are.

    tell: what takes the line; without it, it goes to stderr.

    Raises UsageError instead if `strict`.
    """
    kinds = Counter("folder(s)" if one.is_dir() else one.suffix.lower() or "without suffix" for one in unread)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        line = f"{folder}: {kinds.total()} in it are {what} and were left out: {listed}"
        if strict:
            raise UsageError(f"{line}; take them away or leave --strict out")
        (tell or _note)(f"warning: {line}")


def run_command(
    work: Callable[[], bool | None], *, debug: bool, interrupted: str, extra: str | None = None
) -> NoReturn:
    """Do a command's work and exit.

    Args:
        work: returns False if some of it failed, which it has told.
        debug: show the traceback of an error, too.
        interrupted: what to tell on Ctrl-C: what is kept, how to go on.
        extra: which of litemed's extras the command needs: named where a package is not installed.
    """
    try:
        with warnings.catch_warnings():
            if not (debug or sys.warnoptions):
                warnings.simplefilter("ignore")  # which of libraries name no file and no way out
            code = FAILED if work() is False else DONE
    except LitemedError as error:
        lacking = isinstance(error.__cause__, ModuleNotFoundError)  # as the engine that was asked for
        code = WRONG_USE if lacking or isinstance(error, UsageError) else FAILED
        _tell(f"error: {error}", debug)
    except (OSError, MemoryError) as error:  # of the machine: a full disk, no folder for temporary files
        code = FAILED
        advice = "; name one by TMPDIR" if "temporary directory" in str(error) else ""
        _tell(f"error: {one_line(error)}{advice}", debug)
    except ModuleNotFoundError as error:
        package = (error.name or "litemed").partition(".")[0]
        if extra is None or package == "litemed":
            raise
        code = WRONG_USE
        _tell(f"error: {package} is not installed; in the checkout: pip install '.[{extra}]'", debug)
    except KeyboardInterrupt:
        code = INTERRUPTED
        _tell(f"interrupted: {interrupted}", False)
    sys.exit(code)


def _note(line: str) -> None:
    click.echo(line, err=True)


def _tell(line: str, debug: bool) -> None:
    """Print how a command ends, under `debug` below the traceback of what is being handled."""
    if debug:
        traceback.print_exc()
    _note(line)
