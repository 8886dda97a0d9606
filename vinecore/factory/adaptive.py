"""Decide the number of pilots from the managers' demand and the status of the pilots, without I/O.

`AdaptiveScaling.decide` is given the time. A pilot is a job of a batch system that becomes a worker.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from vinecore.factory.settings import FactorySettings
from vinecore.scheduler.queue_stats import QueueStats

IDLE, RUNNING, HELD, GONE = "idle", "running", "held", "gone"

INITIAL_BACKOFF_S, MAX_BACKOFF_S = 0.4, 300.0
MAX_START_TRIES = 5
"""How often all pilots may end before they connect, one round after the other, where that is the fault of this machine."""
ASSUME_CONNECTED_S = 5.0  # a pilot that has run for so long counts as connected if the manager is not asked
QUEUED_REPORT_DELAY_S = 30.0  # for how long a pilot is queued before it is said what it waits for
SURPLUS_DELAY_S = 30.0  # for how long queued pilots are too many before they are taken back


class JobStatus(NamedTuple):
    """The status of a job in its batch system."""

    state: str
    reason: str = ""
    exited_cleanly: bool = False  # gone by itself, as a worker goes that has nothing to do
    ran: bool = False  # gone, and it had been running


class ScalingDecision(NamedTuple):
    """The pilots to submit and to remove now.

    Attributes
    ----------
    submit : int
        How many pilots to submit, in one submission.
    remove : tuple of str
        Jobs to take out of the batch system.
    release : int
        How many idle workers to let go.
    says : tuple of str
        Texts for the log.
    ended : str
        Why the factory has nothing more to do; "" if it has.
    """

    submit: int = 0
    remove: tuple[str, ...] = ()
    release: int = 0
    messages: tuple[str, ...] = ()
    exit_reason: str = ""


class _Pilot:
    __slots__ = ("connected", "idle_since", "running_since", "state")

    def __init__(self) -> None:
        self.state = IDLE
        self.idle_since: float | None = None
        self.running_since: float | None = None
        self.connected = False


class AdaptiveScaling:
    """Decides how many pilots there are.

    Attributes
    ----------
    pause_s : float
        For how long nothing is submitted after the last trouble; each doubles it, until a pilot connects.
    failed_starts : int
        How many rounds of pilots have ended, or could not be submitted, since one has connected.
    """

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.failed_starts = 0
        self._pilots: dict[str, _Pilot] = {}
        self._rest_until = 0.0
        self._surplus_since: float | None = None
        self._cycle_began = -math.inf
        self._cycle_submitted = 0
        self._busy_at: float | None = None
        self._waiting_for: set[str] = set()  # what has been said of those that wait

    @property
    def pilots(self) -> int:
        """How many are wanted to work: queued or running."""
        return len(self._pilots)

    @property
    def names(self) -> Collection[str]:
        """Those, as the batch system calls them."""
        return self._pilots.keys()

    def submitted(self, names: Iterable[str]) -> None:
        """Add pilots that have been submitted."""
        for name in names:
            self._pilots[name] = _Pilot()
            self._cycle_submitted += 1

    def submission_failed(self, reason: str, now: float) -> tuple[str, ...]:
        """Start the back-off after the batch system has rejected a submission."""
        if not self._pilots:
            self.failed_starts += 1
        self._back_off(now)
        return (f"nothing could be submitted: {reason}; again in {_duration(self.pause_s)}",)

    def start_again(self) -> None:
        """Forget all trouble: the user has changed something."""
        self.pause_s, self.failed_starts, self._rest_until = 0.0, 0, 0.0

    def decide(
        self,
        now: float,
        settings: FactorySettings,
        demand: QueueStats | None,
        jobs: Mapping[str, JobStatus] | None,
    ) -> ScalingDecision:
        """Decide.

        Parameters
        ----------
        now
            Seconds, of any clock that does not jump.
        settings
            The settings of the factory.
        demand
            The statistics of the manager; None if it does not answer.
        jobs
            The status of each pilot; a missing one is gone. None if the batch system does not answer.
        """
        if jobs is None:
            return ScalingDecision(exit_reason=self._exit_reason(now, settings, demand))
        says, troubled = self._update_pilots(now, demand, jobs)
        remove = [name for name, pilot in self._pilots.items() if pilot.state == HELD]
        self._forget(remove)
        if troubled:
            self._back_off(now)
            says = [f"{text}; others in {_duration(self.pause_s)}" for text in says]
        says += self._queued_reasons(now, jobs)
        target = self.target(settings, demand)
        surplus, submit = len(self._pilots) - target, 0
        if demand is None:  # no manager
            self._surplus_since = None
        elif surplus > 0:
            remove += self._surplus_pilots(now, settings, surplus)
        else:
            self._surplus_since = None
            submit = self._allowed_submissions(now, settings, -surplus)
        release = max(0, len(self._pilots) - settings.max_workers)
        return ScalingDecision(
            submit, tuple(remove), release, tuple(says), self._exit_reason(now, settings, demand)
        )

    def target(self, settings: FactorySettings, demand: QueueStats | None) -> int:
        """How many pilots there should be."""
        if settings.fixed:
            return settings.max_workers
        if demand is None:
            return settings.min_workers
        return max(settings.min_workers, min(settings.max_workers, pilots_needed(settings, demand)))

    # ---- what became of the pilots

    def _update_pilots(
        self, now: float, demand: QueueStats | None, jobs: Mapping[str, JobStatus]
    ) -> tuple[list[str], bool]:
        """Enter what is new; give what to say of it, and whether it is a reason to rest."""
        pilots = None if demand is None else demand.pilots
        connected = set(pilots or ())
        told: Counter[tuple[str, str]] = Counter()
        joined = False
        for name, pilot in list(self._pilots.items()):
            job = jobs.get(name) or JobStatus(GONE, "the batch system does not know it any more")
            if job.state == RUNNING and pilot.running_since is None:
                pilot.running_since = now
            settled = pilot.running_since is not None and now - pilot.running_since >= ASSUME_CONNECTED_S
            if not pilot.connected and (name in connected or (settled and pilots is None)):
                pilot.connected = joined = True
            if job.state == HELD:
                told["held", job.reason] += 1
            elif job.state == GONE:
                if (
                    not job.exited_cleanly
                    and not pilot.connected
                    and (job.ran or pilot.running_since is not None)
                ):
                    told["gone before connecting", job.reason] += 1
                elif not job.exited_cleanly:
                    told["gone", job.reason] += 1
                del self._pilots[name]
            elif job.state == IDLE and pilot.state == RUNNING:
                told["queued again", job.reason or "the batch system has taken its place"] += 1
                pilot.running_since, pilot.connected = None, False
            pilot.state = job.state
        troubled = any(what != "queued again" for what, _reason in told)
        if joined:
            self.failed_starts = 0
        elif any(what == "gone before connecting" for what, _reason in told) and not self._pilots:
            self.failed_starts += 1
        if joined and not troubled:
            self.pause_s = 0.0
        return [
            f"{_pilots(n)} {what}: {reason or 'no reason is known'}" for (what, reason), n in told.items()
        ], troubled

    def _queued_reasons(self, now: float, jobs: Mapping[str, JobStatus]) -> list[str]:
        """Report once why pilots have been queued for long, if the batch system has a reason."""
        told: Counter[str] = Counter()
        for name, pilot in self._pilots.items():
            if pilot.state != IDLE:
                pilot.idle_since = None
            elif pilot.idle_since is None:
                pilot.idle_since = now
            elif now - pilot.idle_since >= QUEUED_REPORT_DELAY_S and name in jobs and jobs[name].reason:
                told[jobs[name].reason] += 1
        new = [reason for reason in told if reason not in self._waiting_for]
        self._waiting_for = self._waiting_for | set(told) if told else set()
        return [f"{_pilots(told[reason])} still queued: {reason}" for reason in new]

    def _back_off(self, now: float) -> None:
        self.pause_s = min(2 * self.pause_s or INITIAL_BACKOFF_S, MAX_BACKOFF_S)
        self._rest_until = now + self.pause_s

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self._pilots[name]

    # ---- more and less

    def _surplus_pilots(self, now: float, settings: FactorySettings, surplus: int) -> list[str]:
        """Which queued pilots to take back: those above the most that may be at once, others when they have been too many for a while."""
        if self._surplus_since is None:
            self._surplus_since = now
        if now - self._surplus_since < SURPLUS_DELAY_S:
            surplus = len(self._pilots) - settings.max_workers
        queued = [name for name, pilot in self._pilots.items() if pilot.state == IDLE]
        chosen = queued[-surplus:] if surplus > 0 else []
        self._forget(chosen)
        return chosen

    def _allowed_submissions(self, now: float, settings: FactorySettings, lacking: int) -> int:
        """How many of those that lack may be submitted now."""
        if now - self._cycle_began >= settings.factory_period:
            self._cycle_began, self._cycle_submitted = now, 0
        if now < self._rest_until:
            return 0
        if settings.workers_per_cycle:
            lacking = min(lacking, settings.workers_per_cycle - self._cycle_submitted)
        return max(0, lacking)

    def _exit_reason(self, now: float, settings: FactorySettings, demand: QueueStats | None) -> str:
        """Why there is nothing more to do."""
        if self._busy_at is None or (demand is not None and demand.waiting + demand.running):
            self._busy_at = now
        if settings.factory_timeout and now - self._busy_at >= settings.factory_timeout:
            what = "no manager has answered" if demand is None else "there was nothing to do"
            return f"{what} for {_duration(settings.factory_timeout)}"
        return ""


def pilots_needed(settings: FactorySettings, demand: QueueStats) -> int:
    """How many pilots there is work for."""
    each = settings.tasks_per_worker or settings.cores or 1
    tasks = demand.waiting + demand.running + demand.left
    if settings.capacity and demand.capacity:
        tasks = min(tasks, demand.capacity)
    count = math.ceil(tasks / each)
    if settings.cores and not settings.tasks_per_worker and not settings.capacity:
        count = max(count, math.ceil((demand.cores + demand.running + demand.left) / settings.cores))
    return count


def _pilots(count: int) -> str:
    return f"{count} pilot{'s are' if count > 1 else ' is'}"


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.0f} min"
