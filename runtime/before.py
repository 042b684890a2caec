"""What `litemed-run` tells of cases before it segments any."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from litemed.runtime.command import tell_unread
from litemed.runtime.errors import InputError, UsageError, printable
from litemed.runtime.inputs.cases import case_files, list_cases, read_case
from litemed.runtime.inputs.files import case_name
from litemed.runtime.inputs.scaling import Scaling
from litemed.runtime.method import Method
from litemed.runtime.plan import Plan
from litemed.runtime.prompts.extents import parse_margin
from litemed.runtime.prompts.source import BoxSource


def tell_costs(
    cases: tuple[Path, ...],
    method: Method,
    scaling: Scaling,
    input_size: int,
    prompts: BoxSource | None = None,
) -> bool:
    """Print what each case would take; return whether all can be read."""
    from litemed.runtime.steps import case_warnings, untiled

    readable = True
    for path in list_cases(cases):
        try:
            case = read_case(path, scaling, prompts)
            plan = Plan.of(case, method, input_size)
        except InputError as error:
            readable = False
            click.echo(f"error: {error}", err=True)
        else:
            for line in (*case_warnings(case), *untiled(len(plan.untiled), len(plan.xyxy))):
                click.echo(f"warning: {case.name}: {line}", err=True)
            counts = {
                "boxes": len(plan.xyxy),
                "encodings": plan.encodings,
                "masks": plan.decodings,
                "tiles": len(plan.tiles),
                "planes": 2 * int(plan.plane_count.sum()),
            }
            click.echo(f"{case.name}: {', '.join(f'{name}: {count}' for name, count in counts.items())}")
    return readable


def open_prompts(
    path: Path | None, margin: str | None, components: bool, cases: tuple[Path, ...], recursive: bool = False
) -> BoxSource | None:
    """Return where the boxes of cases are, if not with them; warn of cases that it names and are not given.

    Raises UsageError and InputError as `BoxSource`, and UsageError for a margin that is none, and
    where boxes are given by the name alone and some cases below folders have one name.
    """
    if path is None:
        if margin is not None or components:
            raise UsageError("--margin and --components are for --prompts")
        return None
    source = BoxSource(path, parse_margin(margin or "0"), components)
    found = list_cases(cases)
    twice = [name for name, count in Counter(map(case_name, found)).items() if count > 1]
    if recursive and twice:
        raise UsageError(f"{path}: gives boxes by name, and several cases are called {twice[0]}; rename them")
    if unknown := source.check(found):
        more = ", ..." if len(unknown) > 5 else ""
        listed = printable(", ".join(unknown[:5]))
        click.echo(f"warning: {path}: names {len(unknown)} that are no cases here: {listed}{more}", err=True)
    return source


def tell_what_is_no_case(cases: tuple[Path, ...], others: Iterable[Path], strict: bool) -> None:
    """Warn of what lies in folders of cases and is neither read nor one of `others`, such as of results."""
    own = {path.resolve() for path in others}
    for folder in (path for path in cases if path.is_dir()):
        known = own.union(file.resolve() for case in list_cases([folder]) for file in case_files(case))
        rest = (one for one in folder.glob("[!.]*") if Path(os.path.realpath(one)) not in known)
        tell_unread(folder, rest, strict, "no cases")
