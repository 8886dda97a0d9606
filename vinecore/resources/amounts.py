"""How much of a worker a task gets.

Three questions, in the order in which the scheduler asks them:

1. What does the task ask for? Its own request, completed by that of its `Category`, which may learn it from
   what earlier tasks of the category were measured to use (`Category.initial_request`).
2. What does that come to on this worker (`allocate`)? The rule is TaskVine's: nothing said is the whole
   worker, and what is left unsaid beside something said is a share in proportion.
3. It exceeded what it got; what next (`Category.retry_request`)?

Units everywhere: whole or fractional cores, megabytes of memory and of disk, gpus.

Pure: no I/O, clock or randomness.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

# Sums and shares of fractional cores are off by rounding; a millionth of a core decides nothing.
_SLACK = 1e-6

Amount = TypeVar("Amount", int, float)


class Resources(NamedTuple):
    """An amount of everything: of a worker, of what is free there, of what a task got or was seen to use."""

    cores: float = 0.0
    memory: int = 0
    disk: int = 0
    gpus: float = 0.0

    def fits(self, inside: Resources) -> bool:
        """Whether there is at least as much of everything in `inside`."""
        return (
            self.cores <= inside.cores + _SLACK
            and self.memory <= inside.memory
            and self.disk <= inside.disk
            and self.gpus <= inside.gpus + _SLACK
        )

    def plus(self, other: Resources) -> Resources:
        """Field by field."""
        return Resources(
            _round_trip(self.cores + other.cores),
            self.memory + other.memory,
            self.disk + other.disk,
            _round_trip(self.gpus + other.gpus),
        )

    def minus(self, other: Resources) -> Resources:
        """Field by field; may be negative."""
        return Resources(
            _round_trip(self.cores - other.cores),
            self.memory - other.memory,
            self.disk - other.disk,
            _round_trip(self.gpus - other.gpus),
        )

    def describe(self) -> str:
        """For people: ``2 cores, 1000 MB memory, 500 MB disk, 0 gpus``."""
        return ", ".join(_describe(name, getattr(self, name)) for name in self._fields)


class ResourceRequest(NamedTuple):
    """A request, with the fields of `Resources`; None for an amount that is not given."""

    cores: float | None = None
    memory: int | None = None
    disk: int | None = None
    gpus: float | None = None

    def with_defaults(self, other: ResourceRequest) -> ResourceRequest:
        """Take amounts that are not given from another request.

        Parameters
        ----------
        other : ResourceRequest
            The defaults.

        Returns
        -------
        ResourceRequest
            The completed request.
        """
        return ResourceRequest(
            _first_given(self.cores, other.cores),
            _first_given(self.memory, other.memory),
            _first_given(self.disk, other.disk),
            _first_given(self.gpus, other.gpus),
        )

    def at_least(self, floor: ResourceRequest) -> ResourceRequest:
        """Raise the given amounts to a floor; `allocate` takes a floor for the others.

        Parameters
        ----------
        floor : ResourceRequest
            The lowest amounts.

        Returns
        -------
        ResourceRequest
            The raised request.
        """
        return ResourceRequest(
            _higher(self.cores, floor.cores),
            _higher(self.memory, floor.memory),
            _higher(self.disk, floor.disk),
            _higher(self.gpus, floor.gpus),
        )

    def at_most(self, ceiling: ResourceRequest) -> ResourceRequest:
        """Lower the given amounts to a ceiling.

        Parameters
        ----------
        ceiling : ResourceRequest
            The highest amounts.

        Returns
        -------
        ResourceRequest
            The lowered request.
        """
        return ResourceRequest(
            _lower(self.cores, ceiling.cores),
            _lower(self.memory, ceiling.memory),
            _lower(self.disk, ceiling.disk),
            _lower(self.gpus, ceiling.gpus),
        )

    def describe(self) -> str:
        """Describe the request for a user.

        Returns
        -------
        str
            The given amounts with their units, or ``a whole worker``.
        """
        fields = zip(self._fields, self, strict=True)
        return (
            ", ".join(_describe(name, asked) for name, asked in fields if asked is not None)
            or "a whole worker"
        )


UNSPECIFIED = ResourceRequest()


class ShareRule(NamedTuple):
    """How much a task gets of what it does not ask for.

    Attributes
    ----------
    proportional : bool
        The same share as the largest share that it asks for; else all of it.
    whole_tasks : bool
        The share is rounded up, so that a whole number of such tasks fills a worker.
    disk : float
        The part of its share of disk that it gets.
    """

    proportional: bool = True
    whole_tasks: bool = False
    disk: float = 1.0


USUAL_SHARES = ShareRule()


def allocate(
    request: ResourceRequest,
    total: Resources,
    minimum: ResourceRequest = UNSPECIFIED,
    rule: ShareRule = USUAL_SHARES,
) -> Resources | None:
    """Decide what a task gets on a worker.

    Nothing said is the whole worker, without its gpus. Something said: exactly that, and of the rest the same
    share as the largest share that is said, rounded down, but one core at least. Gpus not said are none;
    cores not said beside gpus are none. Zeros alone say nothing: a task that counts for nothing would never
    fill a worker.

    Parameters
    ----------
    request : Request
        What is asked for.
    total : Resources
        All of the worker, not what is free.
    minimum : Request
        Of this a task always gets as much; it counts in the shares.
    rule : ShareRule
        What it gets of the rest.

    Returns
    -------
    Resources or None
        None if the worker can never have room for it.
    """
    shares = [
        _share(asked, has)
        for ask in (request, minimum)
        for asked, has in zip(ask, total, strict=True)
        if asked is not None
    ]
    largest = max(shares, default=0.0)
    if largest > 1 + _SLACK:
        return None
    if largest == 0:
        request, largest = ResourceRequest(gpus=0), 1.0
    elif rule is not USUAL_SHARES:
        largest = _apply_rule(largest, rule)
    got = Resources(
        _cores(request, total, largest),
        math.floor(total.memory * largest + _SLACK) if request.memory is None else request.memory,
        math.floor(total.disk * largest * rule.disk + _SLACK) if request.disk is None else request.disk,
        request.gpus or 0,
    )
    got = Resources(
        max(got.cores, minimum.cores or 0),
        max(got.memory, minimum.memory or 0),
        max(got.disk, minimum.disk or 0),
        max(got.gpus, minimum.gpus or 0),
    )
    return got if got.fits(total) else None


def _apply_rule(largest: float, rule: ShareRule) -> float:
    """Return the share of what is not asked for, from the largest share that is."""
    if not rule.proportional:
        return 1.0
    return 1 / math.floor(1 / largest + _SLACK) if rule.whole_tasks and largest <= 1 else largest


def _cores(request: ResourceRequest, total: Resources, share: float) -> float:
    if request.cores is not None:
        return request.cores
    if request.gpus:
        return 0
    # A task without a core would leave it to memory alone to say how many of them run at once.
    return max(math.floor(total.cores * share + _SLACK), min(1, total.cores))


def _share(asked: float, has: float) -> float:
    if asked <= 0:
        return 0.0
    return asked / has if has > 0 else math.inf


def too_large(request: ResourceRequest, total: Resources) -> str:
    """Say why a request can never fit on a worker, and what would; empty if it can."""
    over = [
        name
        for name, asked, has in zip(request._fields, request, total, strict=True)
        if asked is not None and asked > has + _SLACK
    ]
    if not over:
        return ""
    fitting = " and ".join(_describe(name, getattr(total, name)) for name in over)
    return (
        f"{request.describe()} are asked for, but the worker has {total.describe()}: "
        f"ask for at most {fitting}, or start a worker that has more."
    )


def _first_given(mine: Amount | None, theirs: Amount | None) -> Amount | None:
    return theirs if mine is None else mine


def _higher(asked: Amount | None, low: Amount | None) -> Amount | None:
    return asked if asked is None or low is None else max(asked, low)


def _lower(asked: Amount | None, top: Amount | None) -> Amount | None:
    return asked if asked is None or top is None else min(asked, top)


def _describe(name: str, value: float) -> str:
    if name in ("memory", "disk"):
        return f"{value:g} MB {name}" if value < 1e6 else f"{value:.0f} MB {name}"
    return f"{value:g} {name[:-1] if value == 1 else name}"


def _round_trip(value: float) -> float:
    # Half a core given back ten thousand times must leave what was there before.
    return round(value, 6)
