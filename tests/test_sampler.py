"""The sampler draws as its table says, the same every time, and loses nothing to stops and processes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from litemed.runtime.errors import UsageError
from litemed.runtime.modalities import MODALITIES
from litemed.train.config import Config, Sampling, updated
from litemed.train.prepare.store import SliceInfo
from litemed.train.sampler import Batches, ModalitySampler, modality_shares, training_sampler

# As uneven as real data: slices of volumes outnumber pictures a thousandfold.
SIZES = dict(zip(MODALITIES, [5000, 900, 800, 40, 7, 60, 1, 30, 12, 20, 25], strict=True))


def slices_of(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0).permutation(sum(sizes.values()))
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(numbers, ends[:-1]), strict=True))


def sampler_of(sizes: dict[str, int], table: Sampling, samples: int, seed: int = 0) -> ModalitySampler:
    return ModalitySampler(
        {name: [of] for name, of in slices_of(sizes).items()},
        modality_shares(table, tuple(sizes))[0],
        samples,
        seed,
    )


def test_the_default_table_gives_40_10_and_50_shared_by_nine():
    shares, warnings = modality_shares(Config().sampling, MODALITIES)
    assert (shares["CT"], shares["MR"]) == pytest.approx((0.4, 0.1))
    others = [share for name, share in shares.items() if name not in ("CT", "MR")]
    assert others == pytest.approx([0.5 / 9] * 9)
    assert not warnings


@pytest.mark.parametrize(
    ("table", "sizes"),
    [
        (Config().sampling, SIZES),
        (Sampling({"US": 1, "CT": 2}, others=0), SIZES),
        (Sampling({}, others=1), SIZES),
        (Config().sampling, {"CT": 50, "US": 9, "OCT": 3}),
    ],
)
def test_frequencies_follow_the_table(table, sizes):
    """Chi-squared tests of 20 seeds: their p-values are those of draws from the table itself."""
    shares = modality_shares(table, tuple(sizes))[0]
    owner = np.empty(sum(sizes.values()), np.int64)
    for number, name in enumerate(shares):
        owner[slices_of(sizes)[name]] = number
    expected = np.array(list(shares.values())) * 4000
    assert expected.sum() == pytest.approx(4000)
    p_values = []
    for seed in range(20):
        drawn = sampler_of(sizes, table, 4000, seed).epoch(3)
        counts = np.bincount(owner[drawn], minlength=len(shares))
        p_values.append(stats.chisquare(counts, expected).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_within_a_modality_no_slice_comes_again_before_all_came():
    drawn = sampler_of(SIZES, Config().sampling, 4000).epoch(0)
    for indices in slices_of(SIZES).values():
        times = np.array([np.count_nonzero(drawn == i) for i in indices])
        assert times.max() - times.min() <= 1


class Sources:
    """Slices of two modalities and three sources; nothing can be read."""

    SIZES = (("MR", "large", 90), ("MR", "small", 10), ("US", "other", 20))

    def __init__(self) -> None:
        self._of = [(modality, name) for modality, name, count in self.SIZES for _ in range(count)]

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def info(self, i: int) -> SliceInfo:
        return SliceInfo(*self._of[i], "train", f"case{i}", 0, 1)

    def indices_by_modality(self) -> dict[str, np.ndarray]:
        names = np.array([modality for modality, _ in self._of])
        return {name: np.flatnonzero(names == name) for name in ("MR", "US")}


def drawn_from(**sampling: object) -> tuple[dict[str, float], list[str]]:
    """Return which share of an epoch comes from each source, and the warnings."""
    tables = {"run": {"samples_per_epoch": 8000}, "sampling": sampling}
    source = Sources()
    sampler, warnings = training_sampler(updated(Config(), tables, ""), source)
    names = [source.info(i).source for i in sampler.epoch(0).tolist()]
    return {name: names.count(name) / len(names) for _, name, _ in source.SIZES}, warnings


def test_sources_of_a_modality_count_by_their_slices_or_alike_by_the_root_of_these():
    even = {"weights": {"MR": 1.0, "US": 1.0}, "others": 0.0}
    shares, _ = drawn_from(**even)
    assert shares == pytest.approx({"large": 0.45, "small": 0.05, "other": 0.5}, abs=0.02)
    shares, _ = drawn_from(**even, balance_sources=True)
    assert shares == pytest.approx({"large": 0.375, "small": 0.125, "other": 0.5}, abs=0.02)


@pytest.mark.parametrize(("samples", "expected"), [(0, 128), (1, 16), (16, 16), (17, 32)])
def test_an_epoch_is_rounded_up_to_whole_batches(samples, expected):
    """Without a number it has as many samples as there are slices, 120 of them."""
    config = updated(Config(), {"run": {"samples_per_epoch": samples}}, "")
    assert training_sampler(config, Sources())[0].samples == expected


def test_absent_modalities_are_named_and_their_share_is_spread():
    shares, (warning,) = modality_shares(Config().sampling, ("CT", "MR", "US"))
    absent = ", ".join(name for name in MODALITIES if name not in ("CT", "MR", "US"))
    assert warning == f"no training slices of {absent}; drawn instead: CT 72.0%, MR 18.0%, US 10.0%"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["CT"] / shares["MR"] == pytest.approx(4)
    assert shares["US"] / shares["MR"] == pytest.approx(5 / 9)


def test_a_table_of_absent_modalities_only_is_refused():
    with pytest.raises(UsageError, match="draws only CT, the training slices are of US"):
        modality_shares(Sampling({"CT": 1}, others=0), ("US",))


@given(steps=st.integers(1, 12), batch=st.integers(1, 9), stop=st.integers(0, 12), epoch=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_stopped_and_gone_on_with_the_draws_are_the_same(steps, batch, stop, epoch):
    batches = Batches(sampler_of(SIZES, Config().sampling, steps * batch), batch)
    batches.start_at(epoch, 0)
    expected = list(batches)
    assert len(expected) == batches.per_epoch == steps
    batches.start_at(epoch, min(stop, steps))
    assert list(batches) == expected[min(stop, steps) :]
