"""Where the boxes of cases come from if not from the cases themselves: a file for all, or one for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import sha256_of_file
from litemed.runtime.inputs.files import case_name
from litemed.runtime.inputs.volumes import VOLUMES
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


class BoxSource:
    """Boxes from a file of many cases or one, or from a folder with a file NAME.* for each.

    Files are CSV and JSON lines (`litemed.runtime.prompts.tables`), COCO, labelme, Slicer's ROI and litemed's
    own JSON (`annotations`), and label masks (`masks`). In a folder the name of the file tells the case, in a
    table or an annotation the name of the image without folders and suffix.
    """

    def __init__(self, path: Path, margin: Margin | None = None, components: bool = False) -> None:
        """Read the file, if it is a table or an annotation.

        Args:
            path: of the file or folder.
            margin: by which boxes are made larger.
            components: whether each connected part of a label in a mask has a box of its own.

        Raises:
            UsageError: there is no such file, or it is of no kind that is read.
            InputError: it is damaged.
        """
        self.path, self._margin, self._components = path, margin or Margin(), components
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; check the path")
        self._of_file: dict[str | None, list[Given]] | None = None
        if path.is_dir():
            return
        if not path.name.lower().endswith(_SUFFIXES):
            raise UsageError(f"{path}: no prompts; give {', '.join(_SUFFIXES)} or a folder of these")
        if reader := _TABLES.get(path.suffix.lower()):
            self._of_file = _by_case(path, reader(path))

    def check(self, cases: Iterable[Path]) -> list[str]:
        """Return the names in the file that are none of the cases.

        Raises UsageError if it is for one case and there are several.
        """
        names = [case_name(case) for case in cases]
        if not self.path.is_dir() and (self._of_file is None or None in self._of_file) and len(names) > 1:
            raise UsageError(f"{self.path}: names no case, but there are {len(names)}; give one for each")
        return sorted({name for name in self._of_file or () if name is not None} - set(names))

    def sha256(self, case: Path) -> str:
        """Return a hash of what is given for a case; of what others have it does not change."""
        said = [repr(self._margin), self._components]
        if self._of_file is None:
            said.append(sha256_of_file(self._file_of(case)))
        else:
            rows = self._rows(case)
            said += [(one.corners.tolist(), one.frame, one.z) for one in rows]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def boxes(self, case: Path, grid: Grid) -> Boxes:
        """Return the boxes of a case, not widened; raises InputError if none fit it."""
        if self._of_file is not None:
            return boxes_of(self._rows(case), grid, self._margin, f"{self.path}: case {case_name(case)}")
        file = self._file_of(case)
        if reader := _TABLES.get(file.suffix.lower()):
            found = _by_case(file, reader(file))
            named = [name for name in found if name is not None]
            if len(found) != 1 or named not in ([], [case_name(case)]):
                listed = ", ".join(named[:5]) or "none"
                raise InputError(f"{file}: is for cases {listed}, not for {case_name(case)} alone")
            given = next(iter(found.values()))
        else:
            given = read_mask(file, grid, self._components)
        return boxes_of(given, grid, self._margin, file)

    def _rows(self, case: Path) -> list[Given]:
        found = self._of_file or {}
        if None in found:
            return found[None]
        if case_name(case) not in found:
            raise InputError(f"{case}: {self.path} has no boxes for it")
        return found[case_name(case)]

    def _file_of(self, case: Path) -> Path:
        if not self.path.is_dir():
            return self.path
        name = case_name(case)
        found = [one for suffix in _SUFFIXES if (one := self.path / f"{name}{suffix}").is_file()]
        if len(found) != 1:
            listed = f": {', '.join(one.name for one in found)}" if found else ""
            raise InputError(f"{case}: {self.path} has {len(found)} files of boxes for it{listed}; give one")
        return found[0]


def _by_case(path: Path, found: Mapping[str | None, list[Given]]) -> dict[str | None, list[Given]]:
    """Return boxes by names without folders and suffix. Raises InputError for two names that become one."""
    by_case: dict[str | None, list[Given]] = {}
    for name, boxes in found.items():
        bare = name and case_name(Path(name.replace("\\", "/").rsplit("/", 1)[-1]))
        if bare in by_case:
            raise InputError(f"{path}: two names of case {bare!a}; write it in one way")
        by_case[bare] = boxes
    return by_case
