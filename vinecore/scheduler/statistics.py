"""Numbers about tasks, workers and resources, computed from the tables when they are asked for.

Each takes time in proportion to the number of workers and queues, not of tasks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from vinecore.resources.amounts import ResourceRequest, Resources, allocate
from vinecore.scheduler.queue_stats import queue_stats
from vinecore.scheduler.queues import queue_urgency
from vinecore.scheduler.state import MB, UNLIMITED
from vinecore.scheduler.transitions import ASSIGNED, RETRIEVING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import SchedulerState

NO_RESOURCES = Resources()


class ManagerStats(NamedTuple):
    """The state of a manager in numbers, under TaskVine's names.

    Times are in microseconds since the start of the manager, except for ``time_when_started``, which is
    one since 1970. A number that has no meaning here is 0.

    Attributes
    ----------
    workers_connected, workers_init, workers_idle, workers_busy, workers_able : int
        Workers that are connected; of these: that are still listing their files, that have no task, that
        have one, and that are large enough for the largest task.
    workers_joined, workers_removed : int
        Workers that have connected, and whose connection has ended.
    workers_released, workers_idled_out, workers_slow, workers_blocked, workers_lost : int
        Workers that the manager has let go, that have left because they had nothing to do, that were too
        slow, that get no tasks because their host is blocked, and that were lost without notice.
    tasks_waiting, tasks_on_workers : int
        Unfinished tasks that no worker has, and that a worker has.
    tasks_running, tasks_with_results : int
        Of the tasks on workers: that run, and whose outputs are on their way to the manager. The others
        were sent ahead and wait there for a free slot.
    tasks_recovery : int
        Tasks that were run again because their results were lost.
    tasks_submitted, tasks_dispatched, tasks_done : int
        Tasks that were submitted; attempts that were sent to workers; tasks that have ended.
    tasks_failed, tasks_successful, tasks_cancelled : int
        The ends of tasks by their kind.
    tasks_exhausted_attempts : int
        Attempts that have exceeded their resources.
    time_when_started : int
        The time at which the manager started.
    time_send, time_receive, time_send_good, time_receive_good, time_status_msgs : int
        Always 0: transfers and messages do not keep the manager from other work.
    time_internal, time_scheduling : int
        Always 0, and the processor time of the manager's thread, which does all of its work.
    time_polling, time_application : int
        The time that the program was waiting for tasks, and the rest of the time.
    time_workers_execute, time_workers_execute_good, time_workers_execute_exhaustion : int
        The duration of all attempts, of those that have succeeded, and of those that have exceeded their
        resources.
    bytes_sent, bytes_received : int
        Contents of files that the manager has sent and received.
    bandwidth : float
        Of these, megabytes per second since the start.
    capacity_tasks, capacity_instantaneous, capacity_weighted : int
        How many tasks the manager could keep running at once, judged by how long they take; 0 if that is
        not known yet.
    capacity_cores, capacity_memory, capacity_disk, capacity_gpus : int
        The resources that these tasks would take.
    total_cores, committed_cores, max_cores, min_cores : int
        Cores of all workers, of which tasks and libraries have so many; those of the largest and of the
        smallest worker. The same for memory (MB), disk (MB) and gpus.
    inuse_cache : int
        MB of disk on workers that files take, or that is reserved for them.
    """

    workers_connected: int = 0
    workers_init: int = 0
    workers_idle: int = 0
    workers_busy: int = 0
    workers_able: int = 0
    workers_joined: int = 0
    workers_removed: int = 0
    workers_released: int = 0
    workers_idled_out: int = 0
    workers_slow: int = 0
    workers_blocked: int = 0
    workers_lost: int = 0
    tasks_waiting: int = 0
    tasks_on_workers: int = 0
    tasks_running: int = 0
    tasks_with_results: int = 0
    tasks_recovery: int = 0
    tasks_submitted: int = 0
    tasks_dispatched: int = 0
    tasks_done: int = 0
    tasks_failed: int = 0
    tasks_successful: int = 0
    tasks_cancelled: int = 0
    tasks_exhausted_attempts: int = 0
    time_when_started: int = 0
    time_send: int = 0
    time_receive: int = 0
    time_send_good: int = 0
    time_receive_good: int = 0
    time_status_msgs: int = 0
    time_internal: int = 0
    time_polling: int = 0
    time_application: int = 0
    time_scheduling: int = 0
    time_workers_execute: int = 0
    time_workers_execute_good: int = 0
    time_workers_execute_exhaustion: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bandwidth: float = 0.0
    capacity_tasks: int = 0
    capacity_cores: int = 0
    capacity_memory: int = 0
    capacity_disk: int = 0
    capacity_gpus: int = 0
    capacity_instantaneous: int = 0
    capacity_weighted: int = 0
    total_cores: int = 0
    total_memory: int = 0
    total_disk: int = 0
    total_gpus: int = 0
    committed_cores: int = 0
    committed_memory: int = 0
    committed_disk: int = 0
    committed_gpus: int = 0
    max_cores: int = 0
    max_memory: int = 0
    max_disk: int = 0
    max_gpus: int = 0
    min_cores: int = 0
    min_memory: int = 0
    min_disk: int = 0
    min_gpus: int = 0
    inuse_cache: int = 0


def manager_stats(scheduler: Scheduler) -> ManagerStats:
    """Compute the numbers that the scheduler knows; times of the program are 0."""
    state, counters = scheduler.state, scheduler.state.counters
    workers = state.workers.values()
    connected, busy = len(workers), sum(1 for worker in workers if worker.tasks)
    running, on_workers = count_running_tasks(state), state.assigned + counters.tasks_retrieving
    submitted = counters.tasks_submitted - sum(graph.deferred for graph in state.graphs.values())
    ended = submitted - len(state.tasks)
    good_us = sum(count * mean for count, mean in state.category_walls.values()) * 1e6
    total, committed, largest, smallest = _sum_resources(state)
    capacity = queue_stats(state).capacity
    per_task = [math.ceil(amount / running) if running else 0 for amount in committed]
    resources = {
        f"{what}_{name}": round(amount)
        for what, amounts in (
            ("total", total),
            ("committed", committed),
            ("max", largest),
            ("min", smallest),
            ("capacity", [capacity * amount for amount in per_task]),
        )
        for name, amount in zip(Resources._fields, amounts, strict=True)
    }
    return ManagerStats(
        workers_connected=connected,
        workers_init=sum(1 for worker in workers if worker.inventory_pending),
        workers_idle=connected - busy,
        workers_busy=busy,
        workers_able=_count_able_workers(state),
        workers_joined=counters.workers_joined,
        workers_removed=counters.workers_joined - connected,
        workers_released=counters.workers_released,
        workers_idled_out=counters.workers_idled_out,
        workers_slow=counters.workers_slow,
        workers_blocked=sum(1 for worker in workers if worker.closed and not worker.draining),
        workers_lost=counters.workers_lost,
        tasks_waiting=len(state.tasks) - on_workers,
        tasks_on_workers=on_workers,
        tasks_running=running,
        tasks_with_results=counters.tasks_retrieving,
        tasks_recovery=counters.tasks_recovery,
        tasks_submitted=submitted,
        tasks_dispatched=state.assigned
        + counters.attempts_withdrawn
        + sum(count for count, _mean in state.category_walls.values()),
        tasks_done=ended,
        tasks_failed=counters.tasks_failed,
        tasks_successful=ended - counters.tasks_failed - counters.tasks_cancelled,
        tasks_cancelled=counters.tasks_cancelled,
        tasks_exhausted_attempts=counters.attempts_exhausted,
        time_workers_execute=round(good_us + counters.failed_s * 1e6),
        time_workers_execute_good=round(good_us),
        time_workers_execute_exhaustion=round(counters.exhausted_s * 1e6),
        bytes_sent=counters.bytes_sent,
        bytes_received=counters.bytes_received,
        capacity_tasks=capacity,
        capacity_instantaneous=capacity,
        capacity_weighted=capacity,
        inuse_cache=sum((worker.total.disk * MB or UNLIMITED) - worker.free_disk for worker in workers) // MB,
        **resources,
    )


def category_stats(scheduler: Scheduler, name: str) -> ManagerStats:
    """Compute the numbers of one category; those that only a manager has are 0.

    This takes time in proportion to the number of unfinished tasks.
    """
    state = scheduler.state
    tasks = [task for task in state.tasks.values() if task.spec.category == name]
    running = sum(task.state == ASSIGNED for task in tasks)
    retrieving = sum(task.state == RETRIEVING for task in tasks)
    done, mean_s = state.category_walls.get(name, (0, 0.0))
    execute_us = round(done * mean_s * 1e6)
    return ManagerStats(
        tasks_waiting=len(tasks) - running - retrieving,
        tasks_on_workers=running + retrieving,
        tasks_running=running,
        tasks_with_results=retrieving,
        tasks_done=done,
        tasks_successful=done,
        tasks_submitted=len(tasks) + done,
        time_workers_execute=execute_us,
        time_workers_execute_good=execute_us,
    )


def count_running_tasks(state: SchedulerState) -> int:
    """Return how many tasks run on workers; calls that wait there for a free slot do not."""
    ahead = sum(
        max(0, instance.assigned - instance.slots) + instance.chained
        for worker in state.workers.values()
        for instance in worker.libraries.values()
    )
    return state.assigned - ahead


def _sum_resources(state: SchedulerState) -> tuple[Resources, Resources, Resources, Resources]:
    """Return the resources of all workers, what is in use, and those of the largest and smallest worker."""
    totals = [worker.total for worker in state.workers.values()]
    if not totals:
        return NO_RESOURCES, NO_RESOURCES, NO_RESOURCES, NO_RESOURCES
    free = Resources(*map(sum, zip(*(worker.free for worker in state.workers.values()), strict=True)))
    columns = list(zip(*totals, strict=True))
    total = Resources(*map(sum, columns))
    return total, total.minus(free), Resources(*map(max, columns)), Resources(*map(min, columns))


def _count_able_workers(state: SchedulerState) -> int:
    """Return how many workers are large enough for the largest task."""
    requests = [queue.request for queue in state.queues.values() if queue.unfinished]
    largest = ResourceRequest(
        *(
            max((amount for amount in column if amount is not None), default=None)
            for column in zip(*requests, strict=True)
        )
    )
    return sum(1 for worker in state.workers.values() if allocate(largest, worker.total) is not None)


# ---- how many tasks more


def count_further_tasks(scheduler: Scheduler) -> int:
    """Return how many further tasks the manager could use now: the answer of `Manager.hungry`."""
    state, queues = scheduler.state, scheduler.queues
    total, committed, _largest, _smallest = _sum_resources(state)
    running = count_running_tasks(state)
    return further_tasks(
        workers=len(state.workers),
        total=total,
        committed=committed,
        running=running,
        waiting=len(state.tasks) - running - state.counters.tasks_retrieving,
        wishes=list(_first_wishes(state, queues)),
        minimum=state.tuning.hungry_minimum,
        factor=state.tuning.hungry_minimum_factor,
    )


def _first_wishes(state: SchedulerState, queues: TaskQueues) -> Iterator[tuple[int, ResourceRequest]]:
    """Yield how many of the most urgent ready tasks ask for what, up to the depth that is looked at."""
    left = state.tuning.attempt_schedule_depth
    for queue in sorted((queue for queue in state.queues.values() if queue.front), key=queue_urgency):
        count = min(left, max(0, len(queue.ready) + len(queue.roots) - queue.stale_entries))
        # a call runs in a slot of its library, and asks for nothing else
        yield count, ResourceRequest() if queue.library else queues.effective_request(queue, 0)
        left -= count
        if left <= 0:
            break


def further_tasks(
    *,
    workers: int,
    total: Resources,
    committed: Resources,
    running: int,
    waiting: int,
    wishes: Sequence[tuple[int, ResourceRequest]],
    minimum: int,
    factor: float,
) -> int:
    """Return how many further tasks a manager could use, by TaskVine's arithmetic.

    A manager wants so many tasks that its workers could grow by ``factor`` and would still be busy. For each
    resource, what the grown workers would have, and tasks do not have yet, is divided by the amount for one
    task: the mean of the tasks that wait, or, if none does, of those that run. The scarcest resource counts.

    Parameters
    ----------
    workers
        Connected workers.
    total, committed
        The resources of all workers, and what tasks have of them.
    running, waiting
        Numbers of tasks.
    wishes
        How many of the waiting tasks ask for what. A task that asks for nothing is taken for a mean running
        one.
    minimum
        The least number of tasks that is aimed at.
    factor
        The number of tasks that is aimed at for each worker, and the growth that is aimed at.

    Returns
    -------
    int
        0 if enough tasks wait.
    """
    amounts = []
    for index, (has, used) in enumerate(zip(total, committed, strict=True)):
        mean: float = math.ceil(used / running) if running else 0
        if index == 0:
            mean = max(mean, 1)
        asked = [
            (count, mean if wish[index] is None else wish[index] or 0) for count, wish in wishes if count
        ]
        if waiting and asked:
            mean = sum(count * wish for count, wish in asked) / sum(count for count, _wish in asked)
        if mean > 0:
            amounts.append(math.ceil(round((factor * has - used) / mean, 6)))
    least = max(minimum, math.ceil(workers * factor))
    return max(0, max(least, min(amounts, default=0)) - waiting)
