"""Take a part of the pairs that were found: of some splits, without some sources, a few of each modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from litemed.runtime.errors import UsageError
from litemed.train.prepare.sources import SPLITS, Found, Pair


def select(
    found: Found, splits: Sequence[str] = (), limit: int | None = None, exclude: Sequence[str] = ()
) -> Found:
    """Return a part of `found`: pairs of these splits (all if none), at most `limit` of each modality.

    exclude: sources that are left out. With a limit the sources of a modality take turns, and the splits come
    in the order given.
    """
    for source in exclude:
        if not any(pair.source == source for pair in found.pairs):
            raise UsageError(f"source {source!r} to exclude: no pair comes from it; check its name")
    for split in splits:
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    pairs = [
        pair for pair in found.pairs if pair.source not in exclude and (not splits or pair.split in splits)
    ]
    if limit is not None:
        if limit < 1:
            raise UsageError(f"limit {limit}: must be at least 1")
        order = splits or SPLITS
        turns: Counter[tuple[str, str]] = Counter()
        ranked: list[tuple[int, Pair]] = []
        for pair in sorted(pairs, key=lambda pair: order.index(pair.split)):
            ranked.append((turns[pair.modality, pair.source], pair))
            turns[pair.modality, pair.source] += 1
        taken: Counter[str] = Counter()
        chosen: set[str] = set()
        for _, pair in sorted(ranked, key=lambda entry: entry[0]):
            if taken[pair.modality] < limit:
                taken[pair.modality] += 1
                chosen.add(pair.name)
        pairs = [pair for pair in pairs if pair.name in chosen]
    if not pairs:
        what = f"of split {', '.join(splits)}" if splits else "from another source"
        raise UsageError(f"no pair {what} among {len(found.pairs)}; choose another")
    return replace(found, pairs=tuple(pairs))
