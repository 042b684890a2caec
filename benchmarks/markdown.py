"""Tables in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first column is set to the left, the others to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    # A bar in a cell would start a new one.
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *rows))
    return [f"| {' | '.join(cells)} |" for cells in lines]


def spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Return the median and, of more than one value, the range: 12 (10 to 15)."""
    text = show(statistics.median(values))
    return text if len(values) < 2 else f"{text} ({show(min(values))} to {show(max(values))})"
