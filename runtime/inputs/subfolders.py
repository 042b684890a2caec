"""Find the folders below folders in which cases lie."""

from collections.abc import Iterable
from pathlib import Path

from litemed.runtime.errors import UsageError
from litemed.runtime.inputs.cases import is_series
from litemed.runtime.inputs.files import CASE_SUFFIXES, case_suffix


def find_below(paths: Iterable[Path], leave_out: Iterable[Path] = ()) -> tuple[list[Path], dict[Path, Path]]:
    """Return files, and folders that hold cases or are one, for `list_cases`; and all folders gone through.

    Of the latter each with its way from the folder given, by which results are put. Links are followed,
    but each folder is gone through once, so that no loop is endless; hidden ones are left out, and so are
    those to `leave_out` (of results). Raises UsageError for what cannot be read or has no case below.
    """
    found: list[Path] = []
    ways: dict[Path, Path] = {}
    seen = {folder.resolve() for folder in leave_out}
    for path in paths:
        if not path.is_dir():
            found.append(path)  # if it is none, `list_cases` says so
            continue
        left, before = [path], len(found)
        while left:
            folder = left.pop()
            try:
                if (real := folder.resolve()) in seen:
                    continue
                entries = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
            except (OSError, RuntimeError) as error:  # of a link to itself
                raise UsageError(f"{folder}: cannot be read: {error}") from error
            seen.add(real)
            ways[folder] = folder.relative_to(path)
            if is_series(folder) or any(case_suffix(one) and one.is_file() for one in entries):
                found.append(folder)
            left += reversed([one for one in entries if one.is_dir()])
        if len(found) == before:
            raise UsageError(f"{path}: no case in or below this folder; put {', '.join(CASE_SUFFIXES)} files")
    return found, ways
