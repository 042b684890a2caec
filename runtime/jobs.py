"""Name the results of the cases of a run before any is begun."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litemed.runtime.errors import OutputError, UsageError
from litemed.runtime.files import folder_below, output_path, same_name_key
from litemed.runtime.inputs.cases import case_files, result_suffix
from litemed.runtime.inputs.files import case_name


@dataclass(frozen=True)
class Job:
    """A case and where its results go.

    Attributes:
        path: the case's file.
        name: by which it is reported: the file's name without suffix, behind its folder where results have
            some; or the path if it is refused.
        target: the label map to write.
        picture: the overlay to write, if any.
        refusal: why this case can have no results; None if it can.
    """

    path: Path
    name: str
    target: Path
    picture: Path | None
    refusal: str | None = None

    @property
    def results(self) -> tuple[Path, ...]:
        """All files to write: the label map, then the picture."""
        return (self.target,) if self.picture is None else (self.target, self.picture)


def plan_jobs(
    paths: list[Path],
    output: Path,
    overlay: Path | None,
    png: bool = False,
    ways: Mapping[Path, Path] | None = None,
) -> list[Job]:
    """Name the results of all cases, see `result_suffix`: OUTPUT/NAME.npz and so on, and OVERLAY/NAME.png.

    Cases whose results would share a name, or differ in letter case only, are all refused, so that what comes
    out does not depend on their order.

    `ways` has the folders of cases of which results go to a folder below, and which.

    Raises:
        UsageError: a result would replace an input, or a picture a label map.
    """
    sharing: dict[str, list[Path]] = {}
    names = {path: ((ways or {}).get(path.parent, Path()) / case_name(path)) for path in paths}
    for path in paths:
        sharing.setdefault(same_name_key(names[path].as_posix()), []).append(path)
    inputs = {file.resolve() for path in paths for file in case_files(path)}
    jobs = []
    for path in paths:
        others = [other for other in sharing[same_name_key(names[path].as_posix())] if other is not path]
        if others:
            why = f"{path}: its result would have the name of that of {others[0]}; rename one of them"
            jobs.append(Job(path, str(path), output, None, why))
            continue
        try:
            way, name = names[path].parent, case_name(path)
            target = output_path(folder_below(output, way), name, result_suffix(path, png))
            picture = None if overlay is None else output_path(folder_below(overlay, way), name, ".png")
        except OutputError as error:
            jobs.append(Job(path, str(path), output, None, str(error)))
            continue
        if (
            picture is not None
            and target.parent.resolve() / target.name == picture.parent.resolve() / picture.name
        ):
            raise UsageError(f"{picture}: would be label map and picture; give --overlay another folder")
        for result in (target, picture):
            if result is not None and result.parent.resolve() / result.name in inputs:
                raise UsageError(f"{result}: is an input and would be replaced; choose another folder")
        jobs.append(Job(path, names[path].as_posix(), target, picture))
    return jobs
