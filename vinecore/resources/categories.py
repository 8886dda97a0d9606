"""Categories of tasks: what their tasks ask for unless they say so, given by the user or learned from measurements.

Pure: no I/O, clock or randomness. The arithmetic of learning is in `vinecore.resources.allocation_models`.
"""

from __future__ import annotations

import hashlib
import math
from difflib import get_close_matches
from typing import TYPE_CHECKING

from vinecore.resources.allocation_models import Histogram, Plan, make_plan
from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest, Resources

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_DISK_GROWTH = 1.1

MODES = (
    "fixed",
    "max",
    "min waste",
    "max throughput",
    "greedy_bucketing",
    "exhaustive_bucketing",
    "det_greedy_bucketing",
    "det_exhaustive_bucketing",
    "quantized_bucketing",
)

# What is learned, and in steps of what: whole cores, and 250 MB as in TaskVine. Gpus are not measured.
QUANTA = {"cores": 1, "memory": 250, "disk": 250}

# A task on one core comes out at a little more than one, by the threads of its libraries: no second core.
_IDLE_CORES = 0.1


class Category:
    """Tasks that are alike, and how their allocation is found.

    In mode ``fixed`` a task gets the maximum, and fails when that is not enough. In every other mode the
    first allocation is learned from the peaks of the tasks that have finished, and a task that exceeds it is
    run again with more:

    ==============================================  =========================================================
    max                                             the largest peak seen
    min waste                                       least expected waste, if a task that exceeds it is given
                                                    the largest peak seen [1]_
    max throughput                                  most tasks per time and resource, likewise [1]_
    greedy_bucketing                                peaks fall into buckets, found by splitting; a task starts
                                                    with a random one of them [2]_
    exhaustive_bucketing                            the same, over all numbers of evenly spaced buckets [2]_
    det_greedy_bucketing, det_exhaustive_bucketing  the same buckets; a task starts with the one that is
                                                    expected to waste least
    quantized_bucketing                             the median, then the upper quartile, then the largest peak
    ==============================================  =========================================================

    "Random" is a hash of the task's number: the same task always gets the same.

    Parameters
    ----------
    name : str
        As the user calls it.
    mode : str
        One of `MODES`; see `parse_mode`.
    maximum, minimum : Request
        No task gets more, or less. An unspecified maximum is a whole worker.
    first_guess : Request
        What to start with in the learning modes before there is anything to learn from; unspecified: the
        maximum.
    steady_n : int
        Learn from every so many tasks.

    Attributes
    ----------
    slow_factor : float or None
        A worker is slow whose task takes so many times the mean of the category; below 1: none is; None: as for
        all categories.
    max_concurrent : int or None
        How many tasks may run at once; None for any number.
    unlearned : frozenset of str
        Resources that are not learned.

    References
    ----------
    .. [1] B. Tovar et al., "A Job Sizing Strategy for High-Throughput Scientific Workflows", IEEE TPDS 29(2),
       2018.
    .. [2] T. S. Phung et al., "Not All Tasks Are Created Equal: Adaptive Resource Allocation for
       Heterogeneous Tasks in Dynamic Workflows", WORKS 2021.
    """

    __slots__ = (
        "_due",
        "_histograms",
        "_plans",
        "_recorded",
        "first_guess",
        "max_concurrent",
        "maximum",
        "minimum",
        "mode",
        "name",
        "slow_factor",
        "steady_n",
        "unlearned",
    )

    def __init__(
        self,
        name: str,
        mode: str = "fixed",
        maximum: ResourceRequest = UNSPECIFIED,
        minimum: ResourceRequest = UNSPECIFIED,
        first_guess: ResourceRequest = UNSPECIFIED,
        steady_n: int = 25,
    ) -> None:
        self.name = name
        self.mode = parse_mode(mode)
        self.maximum, self.minimum, self.first_guess = maximum, minimum, first_guess
        self.steady_n = max(1, steady_n)
        self.slow_factor: float | None = None
        self.max_concurrent: int | None = None
        self.unlearned: frozenset[str] = frozenset()
        self._histograms = {resource: Histogram(quantum) for resource, quantum in QUANTA.items()}
        self._plans: dict[str, Plan] = {}
        self._recorded = 0
        self._due = 0

    @property
    def recorded(self) -> int:
        """How many tasks it has learned from."""
        return self._recorded

    @property
    def learns(self) -> bool:
        """Whether tasks have to be measured, and are run again when they exceed their allocation."""
        return self.mode != "fixed"

    def configure(
        self,
        *,
        mode: str | None = None,
        maximum: ResourceRequest | None = None,
        minimum: ResourceRequest | None = None,
        first_guess: ResourceRequest | None = None,
        steady_n: int | None = None,
        slow_factor: float | None = None,
        max_concurrent: int | None = None,
        learned: Mapping[str, bool] | None = None,
    ) -> None:
        """Change what is given; what was recorded stays and is planned from anew."""
        self.mode = self.mode if mode is None else parse_mode(mode)
        self.maximum = self.maximum if maximum is None else maximum
        self.minimum = self.minimum if minimum is None else minimum
        self.first_guess = self.first_guess if first_guess is None else first_guess
        self.steady_n = self.steady_n if steady_n is None else max(1, steady_n)
        self.slow_factor = self.slow_factor if slow_factor is None else slow_factor
        if max_concurrent is not None:
            self.max_concurrent = max_concurrent if max_concurrent >= 0 else None
        for resource, is_learned in (learned or {}).items():
            self.unlearned = self.unlearned - {resource} if is_learned else self.unlearned | {resource}
        self._plans.clear()

    def record(self, measured: Resources, wall_s: float) -> None:
        """Learn from a task that finished; a zero means not measured.

        Not for tasks that were stopped for exceeding something: how much those need was not seen.
        """
        self._recorded += 1
        measured = measured._replace(cores=measured.cores - _IDLE_CORES)
        for resource, histogram in self._histograms.items():
            histogram.add(getattr(measured, resource), wall_s)

    def initial_request(self, task_id: int) -> ResourceRequest:
        """Return the request of a task of this category that makes none itself."""
        if not self.learns:
            return self.maximum.at_least(self.minimum)
        if self._recorded < self.steady_n:
            return self.first_guess.with_defaults(self.maximum).at_least(self.minimum)
        self._learn()
        draw = _draw(self.name, task_id)
        learned = ResourceRequest(**{resource: plan.first(draw) for resource, plan in self._plans.items()})
        return learned.at_most(self.maximum).with_defaults(self.maximum).at_least(self.minimum)

    def retry_request(
        self,
        previous: Resources,
        exceeded: set[str],
        largest: Resources | None = None,
        disk_growth: float = 0.0,
    ) -> ResourceRequest | None:
        """Return the request of a task that exceeded `previous`.

        What was exceeded grows to the next planned value; beyond the plan to the maximum if there is one,
        else to all of the `largest` worker. The rest stays as it was.

        Parameters
        ----------
        previous : Resources
            What it had.
        exceeded : set of str
            Which of "cores", "memory" and "disk" it exceeded.
        largest : Resources or None
            The most that a worker has; None if that is not known: then twice as much as before is asked for.
        disk_growth : float
            Factor by which disk grows beyond the plan; 0 for all disk of the largest worker.

        Returns
        -------
        Request or None
            None if the mode is ``fixed`` or nothing larger is allowed: the task has failed.
        """
        if not self.learns or not exceeded or not exceeded <= QUANTA.keys():
            return None
        self._learn()
        grown: dict[str, float] = {}
        for resource in exceeded:
            more = self._next_larger(resource, getattr(previous, resource), largest, disk_growth)
            if more is None:
                return None
            grown[resource] = more
        return ResourceRequest(**(previous._asdict() | grown))

    def _next_larger(
        self, resource: str, had: float, largest: Resources | None, disk_growth: float
    ) -> float | None:
        maximum: float | None = getattr(self.maximum, resource)
        has: float | None = getattr(largest, resource, None)
        plan = self._plans.get(resource)
        more: float | None = plan.next_larger(had) if plan else None
        if more is None and resource == "disk" and disk_growth:
            more = math.ceil(max(disk_growth, MIN_DISK_GROWTH) * had)
        if more is None:
            more = maximum if maximum is not None else has
        if more is None:
            more = max(2 * had, QUANTA[resource])
        if maximum is not None:
            more = min(more, maximum)
        # Where even the largest worker is no larger, a maximum that is waits for one; nothing else may.
        if has is not None and (has > had or maximum is None):
            more = min(more, has)
        return more if more > had else None

    def _learn(self) -> None:
        if self._plans and self._recorded < self._due:
            return
        if self._recorded < self.steady_n:
            # Asked for early, by a task that is run again.
            self._due = self.steady_n
        else:
            # A plan costs up to a few milliseconds; a twentieth more tasks than last time cannot change it
            # much, and so its cost per task goes to zero even where it is asked for after every task.
            self._due = self._recorded + max(self.steady_n, self._recorded // 20)
        self._plans = {
            resource: make_plan(self.mode, histogram.bins)
            for resource, histogram in self._histograms.items()
            if histogram.count and resource not in self.unlearned
        }

    def __repr__(self) -> str:
        return f"<Category {self.name} {self.mode} {self._recorded} recorded>"


def parse_mode(mode: str | int) -> str:
    """Accept a mode in any spelling (``MIN_WASTE``, ``min-waste``, ``min waste``), or as its number in `MODES`.

    Raises
    ------
    ValueError
        If there is none of this name or number; the message names the nearest one.
    """
    if not isinstance(mode, str):
        if mode not in range(len(MODES)):
            numbers = ", ".join(f"{number} for {name}" for number, name in enumerate(MODES))
            msg = f"there is no category mode {mode!r}: it is one of {numbers}."
            raise ValueError(msg)
        return MODES[mode]
    spellings = {_plain(known): known for known in MODES}
    known = spellings.get(_plain(mode))
    if known is None:
        near = get_close_matches(_plain(mode), spellings, n=1)
        hint = f"did you mean {spellings[near[0]]!r}?" if near else f"it is one of {', '.join(MODES)}."
        msg = f"there is no category mode {mode!r}: {hint}"
        raise ValueError(msg)
    return known


def _plain(mode: str) -> str:
    return mode.strip().lower().replace("_", " ").replace("-", " ")


def _draw(name: str, task_id: int) -> float:
    """Map a task to a number in [0, 1) that looks random and is the same each time."""
    digest = hashlib.blake2b(f"{name}:{task_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
