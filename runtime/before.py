"""What `litemed-run` tells of cases before it segments any."""

from pathlib import Path

import click

from litemed.runtime.command import tell_unread
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.cases import case_files, list_cases, read_case
from litemed.runtime.inputs.scaling import Scaling
from litemed.runtime.method import Method
from litemed.runtime.plan import Plan


def tell_costs(cases: tuple[Path, ...], method: Method, scaling: Scaling, input_size: int) -> bool:
    """Print what each case would take; return whether all can be read."""
    from litemed.runtime.steps import case_warnings

    readable = True
    for path in list_cases(cases):
        try:
            case = read_case(path, scaling)
            plan = Plan.of(case, method, input_size)
        except InputError as error:
            readable = False
            click.echo(f"error: {error}", err=True)
        else:
            for line in case_warnings(case):
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


def tell_what_is_no_case(cases: tuple[Path, ...], results: list[Path], strict: bool) -> None:
    """Warn of what lies in the folders of cases and is neither read nor a folder of results."""
    own = {path.resolve() for path in results}
    for folder in (path for path in cases if path.is_dir()):
        known = own.union(file.resolve() for case in list_cases([folder]) for file in case_files(case))
        rest = (one for one in folder.glob("[!.]*") if one.resolve() not in known)
        tell_unread(folder, rest, strict, "no cases")
