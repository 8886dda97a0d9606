"""The arithmetic of learning: histograms stay bounded, plans waste what they say."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinecore.resources.allocation_models import (
    MAX_BINS,
    Bin,
    Histogram,
    _best_split,
    _Bucket,
    _expected_waste,
    make_plan,
)
from vinecore.resources.categories import MODES

bins = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 50), st.floats(0, 1e4), st.floats(0.1, 1e4)),
    min_size=1,
    max_size=MAX_BINS,
    unique_by=lambda row: row[0],
).map(lambda rows: tuple(Bin(250 * top, *rest) for top, *rest in sorted(rows)))


def test_peaks_of_same_rounding_share_bin():
    """Peaks that round up to the same share a bin."""
    histogram = Histogram(250)
    for peak in (1, 250, 251, 499.5):
        histogram.add(peak, 2.0)
    assert histogram.bins == (Bin(250, 2, 4.0, 3.0), Bin(500, 2, 4.0, 7.0))
    assert histogram.largest == 500


@pytest.mark.parametrize("peak", [0, -1, math.nan, math.inf])
def test_what_is_no_measurement_is_ignored(peak):
    histogram = Histogram(250)
    histogram.add(peak, 1.0)
    assert histogram.bins == ()
    assert histogram.largest == 0


@given(st.lists(st.tuples(st.floats(0.001, 1e12), st.floats(0, 1e6)), max_size=500))
def test_histogram_is_bounded_and_complete(peaks):
    """A histogram is bounded and loses no task."""
    histogram = Histogram(250)
    for peak, wall_s in peaks:
        histogram.add(peak, wall_s)
    assert len(histogram.bins) <= MAX_BINS
    assert sum(b.tasks for b in histogram.bins) == len(peaks)
    assert sum(b.weight for b in histogram.bins) == len(peaks) * (len(peaks) + 1) / 2
    assert all(low.top < high.top for low, high in pairwise(histogram.bins))
    if peaks:
        assert histogram.largest == math.ceil(max(peaks)[0] / 250) * 250


def test_distinct_groups_stay_apart():
    """Distinct groups stay apart in a full histogram."""
    histogram = Histogram(1)
    for peak in range(10_000, 11_000):
        histogram.add(peak, 1.0)
    histogram.add(5, 1.0)
    assert histogram.bins[0].top == 5
    assert histogram.bins[0].tasks == 1
    assert histogram.bins[1].top >= 10_000


@given(st.sampled_from([mode for mode in MODES if mode != "fixed"]), bins, st.floats(0, 1, exclude_max=True))
def test_plan_climbs_to_largest_peak(mode, seen, draw):
    """A plan climbs over tops to the largest."""
    plan = make_plan(mode, seen)
    tops = [b.top for b in seen]
    assert all(low < high for low, high in pairwise(plan.values))
    assert set(plan.values) <= set(tops)
    assert plan.values[-1] == tops[-1]
    assert math.isclose(sum(plan.weights), 1.0, rel_tol=1e-6)
    assert plan.first(draw) in plan.values
    assert plan.next_larger(plan.values[-1]) is None
    assert plan.next_larger(0) == plan.values[0]


@given(bins)
def test_min_waste_wastes_least(seen):
    """No first allocation wastes less than that of min waste."""

    def waste(first: int) -> float:
        largest = seen[-1].top
        return sum(b.wall_s * (first - b.top if b.top <= first else first + largest - b.top) for b in seen)

    chosen = make_plan("min waste", seen).values[0]
    assert waste(chosen) <= min(waste(b.top) for b in seen) * (1 + 1e-9) + 1e-3


@given(bins)
def test_max_throughput_completes_most(seen):
    """No first allocation completes more than that of max throughput."""

    def rate(first: int) -> float:
        return sum(b.tasks / (first if b.top <= first else first + seen[-1].top) for b in seen)

    chosen = make_plan("max throughput", seen).values[0]
    assert rate(chosen) >= max(rate(b.top) for b in seen) * (1 - 1e-9)


def test_expected_waste_of_two_buckets():
    """Small tasks: 0.75 * 0 + 0.25 * 7; large ones: 0.75 * (1 lost, then 0) + 0.25 * 0."""
    small, large = _Bucket(1, 0.75, 1.0), _Bucket(8, 0.25, 8.0)
    assert _expected_waste([small, large]) == pytest.approx(0.75 * 0.25 * 7 + 0.25 * 0.75 * 1)


def test_only_separate_groups_are_split():
    """One group is not split and two are."""
    alike = tuple(Bin(top, 10, 10.0, 10.0) for top in (950, 1000, 1050))
    assert _best_split(alike) == 0
    apart = (*alike, Bin(20_000, 10, 10.0, 10.0))
    assert _best_split(apart) == 3


@given(bins)
def test_exhaustive_bucketing_beats_one_bucket(seen):
    """Exhaustive bucketing wastes no more than one bucket."""
    plan = make_plan("exhaustive_bucketing", seen)
    total = sum(b.weight for b in seen)
    whole = sum(b.weight * (seen[-1].top - b.top) for b in seen) / total
    if len(plan.values) > 1:
        lows = [0, *plan.values]
        buckets = []
        for low, top in pairwise(lows):
            inside = [b for b in seen if low < b.top <= top]
            weight = sum(b.weight for b in inside)
            buckets.append(_Bucket(top, weight / total, sum(b.weight * b.top for b in inside) / weight))
        assert _expected_waste(buckets) <= whole * (1 + 1e-9)
