"""How every command of litemed ends: errors as one line on stderr, and an exit code."""

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

from litemed.runtime.errors import LitemedError, UsageError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


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
        complete = work() is not False
    except LitemedError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(WRONG_USE if isinstance(error, UsageError) else FAILED)
    except ModuleNotFoundError as error:
        package = (error.name or "litemed").partition(".")[0]
        if extra is None or package == "litemed":
            raise
        if debug:
            traceback.print_exc()
        click.echo(f"error: {package} is not installed; in the checkout: pip install '.[{extra}]'", err=True)
        sys.exit(WRONG_USE)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {interrupted}", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(DONE if complete else FAILED)
