"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table; the first `left` columns are set to the left, the others to the right."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return [_line(cells) for cells in (header, rule, *rows)]


def _line(cells: Iterable[str]) -> str:
    # A bar in a cell would start a new one.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
