"""Where the boxes of cases come from if not from the cases themselves: a file for all, or one for each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import sha256_of_file
from litemed.runtime.inputs.files import case_name
from litemed.runtime.inputs.volumes import VOLUMES, voxels_beside
from litemed.runtime.prompts.annotations import read_json
from litemed.runtime.prompts.extents import Given, Grid, Margin, boxes_of
from litemed.runtime.prompts.masks import read_mask
from litemed.runtime.prompts.tables import read_csv, read_json_lines

_TABLES: Final[Mapping[str, Callable[[Path], Mapping[str | None, list[Given]]]]] = {
    ".csv": read_csv,  # type: ignore[dict-item]
    ".jsonl": read_json_lines,  # type: ignore[dict-item]
    ".json": read_json,
}
_MASKS: Final = (*VOLUMES, ".npz", ".png", ".tif", ".tiff")
# Longest first, so that NAME.mrk.json is not of a case NAME.mrk.
_SUFFIXES: Final = (".mrk.json", *_TABLES, *_MASKS)


def _name(file: Path) -> str:
    """Return of which case a file is by its name, empty if it is of no kind that is read."""
    suffix = next((one for one in _SUFFIXES if file.name.lower().endswith(one)), "")
    return file.name[: -len(suffix)] if suffix else ""


class BoxSource:
    """Boxes from a file of many cases or one, or from a folder with a file NAME.* for each.

    Files are CSV and JSON lines (`litemed.runtime.prompts.tables`), COCO, labelme, Slicer's ROI and litemed's
    own JSON (`annotations`), and label masks (`masks`). In a folder the name of the file tells the case, in a
    table or an annotation the name of the image without folders and suffix.
    """

    def __init__(
        self, path: str | os.PathLike[str], margin: Margin | None = None, components: bool = False
    ) -> None:
        """Read the file, if it is a table or an annotation.

        Args:
            path: of the file or folder.
            margin: by which boxes are made larger.
            components: whether each connected part of a label in a mask has a box of its own.

        Raises:
            UsageError: there is no such file, or it is of no kind that is read.
            InputError: it is damaged.
        """
        self.path = path = Path(path)
        self._margin, self._components = margin or Margin(), components
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; check the path")
        self._of_file: dict[str | None, list[Given] | None] | None = None
        if path.is_dir():
            return
        if not path.name.lower().endswith(_SUFFIXES):
            raise UsageError(f"{path}: no prompts; give {', '.join(_SUFFIXES)} or a folder of these")
        if reader := _TABLES.get(path.suffix.lower()):
            self._of_file = _by_case(reader(path))

    def check(self, cases: Iterable[Path]) -> list[str]:
        """Return the names in the file that are none of the cases.

        Raises UsageError if it is for one case and there are several.
        """
        names = [case_name(case) for case in cases]
        if not self.path.is_dir() and (self._of_file is None or None in self._of_file) and len(names) > 1:
            raise UsageError(f"{self.path}: names no case, but there are {len(names)}; give one for each")
        given = {name for name in self._of_file or () if name is not None}
        if self.path.is_dir():
            given = {name for one in self.path.glob("[!.]*") if (name := _name(one))}
        return sorted(given - set(names))

    def sha256(self, case: Path) -> str:
        """Return a hash of what is given for a case; of what others have it does not change."""
        said = [repr(self._margin), self._components]
        if self._of_file is None:
            file = self._file_of(case)
            said += [sha256_of_file(one) for one in (file, *voxels_beside(file))]
        else:
            rows = self._rows(case)
            said += [(one.corners.tolist(), one.frame, one.z) for one in rows]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def boxes(self, case: Path, grid: Grid) -> Boxes:
        """Return the boxes of a case, not widened; raises InputError if none fit it."""
        if self._of_file is not None:
            return boxes_of(self._rows(case), grid, self._margin, f"{self.path}: case {case_name(case)}")
        file = self._file_of(case)
        if file.suffix.lower() in _TABLES:
            return boxes_beside(file, case, grid, self._margin)
        return boxes_of(read_mask(file, grid, self._components), grid, self._margin, file)

    def _rows(self, case: Path) -> list[Given]:
        return _rows_of(self.path, self._of_file or {}, case)

    def _file_of(self, case: Path) -> Path:
        if not self.path.is_dir():
            return self.path
        name = case_name(case)
        # Where prompts lie among the cases the case itself is no mask of it.
        found = [one for one in self.path.glob("[!.]*") if _name(one) == name and not one.samefile(case)]
        found = sorted(one for one in found if one.is_file())
        if len(found) != 1:
            listed = f": {', '.join(one.name for one in found)}" if found else ""
            raise InputError(f"{case}: {self.path} has {len(found)} files of boxes for it{listed}; give one")
        return found[0]


def boxes_beside(file: Path, case: Path, grid: Grid, margin: Margin | None = None) -> Boxes:
    """Return the boxes of a table or annotation of one case, not widened; raises InputError."""
    found = _by_case(_TABLES[file.suffix.lower()](file))
    named = [name for name in found if name is not None]
    if len(found) != 1 or named not in ([], [case_name(case)]):
        listed = ", ".join(named[:5]) or "none"
        raise InputError(f"{file}: is for cases {listed}, not for {case_name(case)} alone")
    return boxes_of(_rows_of(file, found, case), grid, margin or Margin(), file)


def _rows_of(path: Path, found: Mapping[str | None, list[Given] | None], case: Path) -> list[Given]:
    """Return the boxes of one case of a file; raises InputError where there are none, or of two names."""
    name = None if None in found else case_name(case)
    if name not in found:
        raise InputError(f"{case}: {path} has no boxes for it")
    if (rows := found[name]) is None:
        raise InputError(f"{case}: {path} has two names of case {name!a}; write it in one way")
    return rows


def _by_case(found: Mapping[str | None, list[Given]]) -> dict[str | None, list[Given] | None]:
    """Return boxes by names without folders and suffix; None where two names become one."""
    by_case: dict[str | None, list[Given] | None] = {}
    for name, boxes in found.items():
        bare = name and case_name(Path(name.replace("\\", "/").rsplit("/", 1)[-1]))
        by_case[bare] = None if bare in by_case else boxes
    return by_case
