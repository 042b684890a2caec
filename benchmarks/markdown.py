"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is set to the left, the others to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    # A bar in a cell would start a new one.
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *rows))
    return [f"| {' | '.join(cells)} |" for cells in lines]
