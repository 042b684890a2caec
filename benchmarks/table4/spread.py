"""How far the medians of another run may lie from those of this one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95


def repeatability_limit(cells: Iterable[Sequence[float]]) -> float | None:
    """Return by which share a second run's medians may differ from the first's.

    With a probability of 95 % none of the table's medians differs by more, whichever of the two is the
    longer: so it widens with the number of cells (Bonferroni), unlike the repeatability limit of ISO 5725-6,
    which holds for one pair. Repeats of a cell must be as far apart as its drifts are slow.

    Args:
        cells: seconds of each cell's repeats; the logarithm's standard deviation is taken to be that of all
            cells, by their number of repeats.

    Returns:
        0.1 for 10 %; None where nothing was repeated.
    """
    from scipy.stats import t

    groups = [[math.log(value) for value in cell] for cell in cells if len(cell) > 1]
    if not groups:
        return None
    freedom = sum(len(group) - 1 for group in groups)
    means = [sum(group) / len(group) for group in groups]
    squares = sum((value - mean) ** 2 for group, mean in zip(groups, means, strict=True) for value in group)
    deviation = math.sqrt(squares / freedom) * _median_factor(min(map(len, groups)))
    quantile = float(t.ppf(1 - (1 - CONFIDENCE) / 2 / len(groups), freedom))
    return math.exp(quantile * deviation * math.sqrt(2)) - 1


def difference(first: float, second: float) -> float:
    """Return by which share the longer of two times is longer than the other."""
    return max(first, second) / min(first, second) - 1


def _median_factor(count: int) -> float:
    """Return the standard deviation of the median of `count` normal values of standard deviation 1, nearly.

    Of two it is that of their mean; else within 2 % for odd counts and at most 8 % too much for even ones.
    """
    return math.sqrt(0.5) if count == 2 else math.sqrt(math.pi / (2 * (count - 1) + math.pi))
