"""Which slice is drawn when: by modality as the table says, from the seed and the epoch alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES
from litemed.train.config import Config, Sampling
from litemed.train.dataset import SliceSource

_EPOCH_STREAM = 1  # keeps the sampler's random numbers apart from the examples'


def modality_shares(table: Sampling, present: Collection[str]) -> tuple[dict[str, float], list[str]]:
    """Return by modality the probability that a sample comes from it (all above 0, sum 1), and warnings.

    present: the modalities that have slices; what falls to absent ones is spread over the others in
    proportion to their weights. Raises UsageError when the table gives all weight to absent ones.
    """
    unnamed = [name for name in MODALITIES if name not in table.weights]
    weights = {n: table.weights[n] if n in table.weights else table.others / len(unnamed) for n in MODALITIES}
    wanted = {name: weight for name, weight in weights.items() if weight > 0}
    drawn = {name: weight for name, weight in wanted.items() if name in present}
    if not drawn:
        raise UsageError(
            f"the sampling table draws only {', '.join(wanted)}, the training slices are of "
            f"{', '.join(present) or 'no modality'}: change [sampling] or prepare other data"
        )
    shares = {name: weight / sum(drawn.values()) for name, weight in drawn.items()}
    warnings = []
    if absent := [name for name in wanted if name not in present]:
        instead = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        warnings.append(f"no training slices of {', '.join(absent)}; drawn instead: {instead}")
    if undrawn := [name for name in present if name not in wanted]:
        warnings.append(f"{', '.join(undrawn)} weigh 0 in the table and are not drawn")
    return shares, warnings


@dataclass(frozen=True)
class ModalitySampler:
    """Draws slices: first a modality by its share, then one of its sources, then one of that one's slices.

    indices: by modality and source, the numbers of the slices, each (n,) int64 with n >= 1. A source is drawn
    by the square root of its number of slices; what shall not be told apart is one source. samples: draws an
    epoch. Within an epoch no slice of a source comes again before all of them came.
    """

    indices: Mapping[str, Sequence[NDArray[np.int64]]]
    shares: Mapping[str, float]
    samples: int
    seed: int

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the slices drawn in one epoch, in order, (samples,)."""
        random = np.random.default_rng([self.seed, _EPOCH_STREAM, epoch])
        names = sorted(self.shares)
        chosen = random.choice(len(names), size=self.samples, p=[self.shares[name] for name in names])
        slices = np.empty(self.samples, np.int64)
        for number, name in enumerate(names):
            places, sources = np.flatnonzero(chosen == number), self.indices[name]
            roots = np.sqrt([len(source) for source in sources])
            of = np.zeros(len(places), np.int64)
            if len(sources) > 1:
                of = random.choice(len(sources), len(places), p=roots / roots.sum())
            for which, source in enumerate(sources):
                here = places[of == which]
                rounds = -(-len(here) // len(source))
                shuffled = [source[:0], *(random.permutation(source) for _ in range(rounds))]
                slices[here] = np.concatenate(shuffled)[: len(here)]
        return slices


class Batches:
    """Batches as PyTorch's DataLoader takes them: lists of slices, from where `start_at` was told.

    The draws of an epoch are a whole number of batches.
    """

    def __init__(self, sampler: ModalitySampler, batch_size: int) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self.per_epoch = sampler.samples // batch_size
        self.start_at(0, 0)

    def start_at(self, epoch: int, step: int) -> None:
        """Let the next iteration begin with batch `step` of `epoch`, both counted from 0."""
        self._epoch, self._first = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._sampler.epoch(self._epoch).reshape(-1, self._batch_size)
        return iter(batches[self._first :].tolist())


def training_sampler(config: Config, source: SliceSource) -> tuple[ModalitySampler, list[str]]:
    """Return the sampler of a run, of whole batches, and warnings as `modality_shares`."""
    run, found = config.run, source.indices_by_modality()
    shares, warnings = modality_shares(config.sampling, found)
    samples = run.samples_per_epoch or sum(len(indices) for indices in found.values())
    parts = {name: [indices] for name, indices in found.items()}
    if config.sampling.balance_sources:
        for name, indices in found.items():
            sources = np.array([source.info(i).source for i in indices.tolist()])
            parts[name] = [indices[sources == one] for one in np.unique(sources)]
    whole = -(-samples // run.batch_size) * run.batch_size
    return ModalitySampler(parts, shares, whole, run.seed), warnings
