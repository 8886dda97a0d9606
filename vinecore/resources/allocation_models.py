"""From measured peaks to allocations: the arithmetic behind the learning category modes.

One resource (memory, say) of one category at a time. Every finished task adds its peak to a `Histogram`; from
time to time `make_plan` turns the histogram into a `Plan`: the allocations worth trying, smallest first, and
which of them a new task starts with. A task that exceeds its allocation moves up the plan.

Vocabulary: a *bin* collects peaks that round up to about the same value, its *top* is the largest of them,
rounded up to the *quantum* (250 MB, 1 core). An allocation is always the top of some bin, never something in
between: anything between two tops costs more than the lower one and holds no more tasks.

The model, in the units of the resource times time. A task with peak ``r`` that runs for ``t`` and is given
``a``:

* wastes ``(a - r) t`` if ``r <= a``;
* fails if ``r > a``, wastes all of ``a t`` (it is taken to fail at its very end: the worst case), and starts
  again with more.

Histograms hold at most `MAX_BINS` bins whatever is recorded, so that the cost of a plan is bounded too.
Pure: standard library only; no clock, no I/O, no randomness.

References
----------
.. [1] B. Tovar et al., "A Job Sizing Strategy for High-Throughput Scientific Workflows", IEEE TPDS 29(2),
   2018.
.. [2] T. S. Phung et al., "Not All Tasks Are Created Equal: Adaptive Resource Allocation for Heterogeneous
   Tasks in Dynamic Workflows", WORKS 2021.
"""

from __future__ import annotations

import bisect
import math
from itertools import pairwise
from typing import NamedTuple

MAX_BINS = 64
MAX_BUCKETS = 10
QUANTILES = (0.5, 0.75, 1.0)


class Bin(NamedTuple):
    """The peaks that share one top.

    Attributes
    ----------
    top : int
        The largest peak of the bin, rounded up to the quantum.
    tasks : int
        How many of them.
    wall_s : float
        The wall time of their tasks, summed.
    weight : float
        Their significance, summed; later tasks weigh more (see `Histogram`).
    """

    top: int
    tasks: int
    wall_s: float
    weight: float

    def merged_with(self, upper: Bin) -> Bin:
        """Merge with the next bin up; with its top, so that no merge makes an allocation too small."""
        return Bin(
            upper.top, self.tasks + upper.tasks, self.wall_s + upper.wall_s, self.weight + upper.weight
        )


class Histogram:
    """The peaks seen so far, in at most `MAX_BINS` bins.

    The n-th peak has the significance n [2]_: what ran lately says more about what comes next.

    Parameters
    ----------
    quantum : int
        Peaks are rounded up to multiples of this (MB, cores).
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self.count = 0
        self._bins: list[Bin] = []

    def add(self, peak: float, wall_s: float) -> None:
        """Record the peak of a task that ran for `wall_s` seconds; zero means not measured and is ignored."""
        if not (0 < peak < math.inf):
            return
        self.count += 1
        top = math.ceil(peak / self.quantum) * self.quantum
        one = Bin(top, 1, max(wall_s, 0.0), float(self.count))
        at = bisect.bisect_left(self._bins, top, key=_top)
        if at < len(self._bins) and self._bins[at].top == top:
            self._bins[at] = self._bins[at].merged_with(one)
        else:
            self._bins.insert(at, one)
            self._compress()

    def _compress(self) -> None:
        if len(self._bins) <= MAX_BINS:
            return
        # The closest pair, relative to its size: distinct groups of tasks stay apart, a smear is thinned out.
        gaps = [1.0 - low.top / high.top for low, high in pairwise(self._bins)]
        at = gaps.index(min(gaps))
        self._bins[at : at + 2] = [self._bins[at].merged_with(self._bins[at + 1])]

    @property
    def bins(self) -> tuple[Bin, ...]:
        """The bins, lowest top first."""
        return tuple(self._bins)

    @property
    def largest(self) -> int:
        """The largest peak seen, rounded up to the quantum; 0 if there is none."""
        return self._bins[-1].top if self._bins else 0


class Plan(NamedTuple):
    """The allocations worth trying.

    Attributes
    ----------
    values : tuple of int
        Ascending; the last one would have held every task seen.
    weights : tuple of float
        How likely a new task starts with each of them; sums to 1.
    """

    values: tuple[int, ...]
    weights: tuple[float, ...]

    def first(self, draw: float) -> int:
        """Give the value to start with; `draw` in [0, 1) decides where several are possible."""
        reached = 0.0
        for value, weight in zip(self.values, self.weights, strict=True):
            reached += weight
            if draw < reached:
                return value
        return self.values[-1]

    def next_larger(self, value: float) -> int | None:
        """Give the next larger value, None above the last."""
        return next((v for v in self.values if v > value), None)


def make_plan(mode: str, bins: tuple[Bin, ...]) -> Plan:
    """Plan the allocations of one resource.

    Parameters
    ----------
    mode : str
        A learning category mode (see `vinecore.resources.amounts.MODES`).
    bins : tuple of Bin
        At least one, lowest top first.
    """
    if mode == "max":
        return _starting_at(0, [bins[-1].top])
    if mode in ("min waste", "max throughput"):
        best = _least_waste(bins) if mode == "min waste" else _most_throughput(bins)
        return _starting_at(0, sorted({best, bins[-1].top}))
    if mode == "quantized_bucketing":
        return _starting_at(0, _quantiles(bins))
    deterministic = mode.startswith("det_")
    buckets = _greedy(bins) if mode.endswith("greedy_bucketing") else _exhaustive(bins)
    values = [bucket.top for bucket in buckets]
    if deterministic:
        return _starting_at(_best_start(buckets), values)
    return Plan(tuple(values), tuple(bucket.share for bucket in buckets))


def _starting_at(start: int, values: list[int]) -> Plan:
    return Plan(tuple(values), tuple(1.0 if i == start else 0.0 for i in range(len(values))))


def _least_waste(bins: tuple[Bin, ...]) -> int:
    """Return the first allocation with the least expected waste [1]_.

    A failed task is given the largest peak seen.

    What tasks use themselves, the sum of ``r t``, is the same for every choice and left out.
    """
    retry = bins[-1].top
    total_s = sum(b.wall_s for b in bins) or 1.0
    failing_s = total_s
    costs = []
    for one in bins:
        failing_s -= one.wall_s
        costs.append(one.top * total_s + retry * failing_s)
    return bins[costs.index(min(costs))].top


def _most_throughput(bins: tuple[Bin, ...]) -> int:
    """Return the first allocation with the highest expected throughput [1]_.

    A failed task is given the largest peak seen.

    A unit of the resource completes ``1 / (a t)`` tasks per second of those that fit in ``a``, and
    ``1 / ((a + largest) t)`` of those that do not. Every task counts the same here, where the waste counts
    the long ones more; the duration is taken as independent of the peak and drops out.
    """
    retry = bins[-1].top
    total = sum(b.tasks for b in bins)
    fitting = 0
    rates = []
    for one in bins:
        fitting += one.tasks
        rates.append(fitting / one.top + (total - fitting) / (one.top + retry))
    return bins[rates.index(max(rates))].top


def _quantiles(bins: tuple[Bin, ...]) -> list[int]:
    """Tops that hold half, three quarters and all of the tasks."""
    total = sum(b.tasks for b in bins)
    values: set[int] = set()
    for quantile in QUANTILES:
        below = 0
        for one in bins:
            below += one.tasks
            if below >= quantile * total:
                values.add(one.top)
                break
    return sorted(values)


class _Bucket(NamedTuple):
    """Neighbouring bins that get one allocation, `top`; `share` of all significance; `mean` weighted peak."""

    top: int
    share: float
    mean: float


def _bucket(bins: tuple[Bin, ...], total: float) -> _Bucket:
    weight = sum(b.weight for b in bins)
    return _Bucket(bins[-1].top, weight / total, sum(b.weight * b.top for b in bins) / weight)


def _greedy(bins: tuple[Bin, ...]) -> list[_Bucket]:
    """Greedy bucketing [2]_: split in two where that lowers the expected waste most, then each part again."""
    total = sum(b.weight for b in bins)
    done: list[tuple[Bin, ...]] = []
    waiting = [bins]
    while waiting:
        segment = waiting.pop()
        at = _best_split(segment)
        if at == 0:
            done.append(segment)
        else:
            # The lower part on top of the stack: parts come out in ascending order.
            waiting += [segment[at:], segment[:at]]
    return [_bucket(segment, total) for segment in done]


def _best_split(bins: tuple[Bin, ...]) -> int:
    """Where two buckets waste least, as the index of the first bin of the upper one; 0: better left whole."""
    total = sum(b.weight for b in bins)
    product = sum(b.weight * b.top for b in bins)
    highest = bins[-1].top
    best, at = highest - product / total, 0
    low_weight = low_product = 0.0
    for i, one in enumerate(bins[:-1], start=1):
        low_weight += one.weight
        low_product += one.weight * one.top
        low = _Bucket(one.top, low_weight / total, low_product / low_weight)
        high_weight = total - low_weight
        high = _Bucket(highest, high_weight / total, (product - low_product) / high_weight)
        waste = _expected_waste([low, high])
        # The margin keeps rounding from splitting what is equal.
        if waste < best * (1 - 1e-9):
            best, at = waste, i
    return at


def _exhaustive(bins: tuple[Bin, ...]) -> list[_Bucket]:
    """Exhaustive bucketing [2]_: of 1 to `MAX_BUCKETS` evenly spaced buckets, what wastes least."""
    candidates = [_evenly(bins, n) for n in range(1, min(MAX_BUCKETS, len(bins)) + 1)]
    return min(candidates, key=_expected_waste)


def _evenly(bins: tuple[Bin, ...], n: int) -> list[_Bucket]:
    total = sum(b.weight for b in bins)
    groups: dict[int, list[Bin]] = {}
    for one in bins:
        groups.setdefault(math.ceil(one.top * n / bins[-1].top), []).append(one)
    return [_bucket(tuple(group), total) for _, group in sorted(groups.items())]


def _expected_waste(buckets: list[_Bucket]) -> float:
    """Compute the waste if tasks draw a bucket by `share`, and a larger one after a failure [2]_."""
    waste = 0.0
    for i, own in enumerate(buckets):
        # From the largest bucket down: `expected` is what drawing among those seen so far costs this task.
        shares = expected = 0.0
        for j in range(len(buckets) - 1, -1, -1):
            given = buckets[j]
            cost = given.top - own.mean if j >= i else given.top + expected / shares
            shares += given.share
            expected += given.share * cost
        waste += own.share * expected
    return waste


def _best_start(buckets: list[_Bucket]) -> int:
    """Return the first bucket of least expected waste if failed tasks take the next larger one."""
    wastes = []
    for start in range(len(buckets)):
        waste = lost = 0.0
        for i, own in enumerate(buckets):
            if i > start:
                lost += buckets[i - 1].top
            waste += own.share * (lost + buckets[max(i, start)].top - own.mean)
        wastes.append(waste)
    return wastes.index(min(wastes))


def _top(one: Bin) -> int:
    return one.top
