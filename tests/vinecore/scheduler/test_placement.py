"""Which worker gets which task, and in what order."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    LARGE,
    ONE_CORE,
    SchedulerHarness,
    call,
    graph_outcomes,
    single,
    task_outcomes,
)
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest, Resources
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S
from vinecore.scheduler.queues import MAX_PREFETCHED_PER_SLOT
from vinecore.scheduler.specs import FOREVER
from vinecore.scheduler.transitions import READY

MB = 1 << 20


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def learn(harness, wall_s, library="lib"):
    """Let the scheduler measure how long calls of a library take."""
    harness.submit_tasks(call(1000, library=library))
    worker = harness.connect_worker()
    harness.complete_task(1000, wall_s=wall_s)
    return worker


def one_by_one(harness):
    """The order in which tasks with one place among them all run."""
    order = []
    while harness.assignments():
        (number,) = harness.assignments()
        order.append(number)
        harness.complete_task(number, wall_s=60.0)
    return order


# ---- order


def ordered(mode, *specs, **walls):
    """The order in which one core runs tasks of a run with a priority mode; ``walls``: seconds of their categories so far."""
    harness = SchedulerHarness()
    for name, size in (("small", 10), ("big", 1000)):
        harness.declare_file(name, size=size, at_manager=True)
    worker = harness.connect_worker()
    for number, (category, wall_s) in enumerate(walls.items(), start=900):
        harness.submit_tasks(single(number, category=category))
        harness.complete_task(number, wall_s=wall_s)
    harness.submit_tasks(single(990))
    harness.compute_graph(*specs, priority_mode=mode)
    assert harness.assignments() == {990: worker}
    return one_by_one(harness)[1:]


def test_by_default_the_smallest_number_goes_first():
    specs = [single(1, priority=30), single(2, priority=10), single(3, priority=20)]
    assert ordered("", *specs) == [2, 3, 1]


def test_first_in_first_out():
    specs = [single(1, priority=30), single(2, priority=10), single(3, priority=20)]
    assert ordered("FIFO", *specs) == [1, 2, 3]


def test_last_in_first_out():
    specs = [single(1, priority=30), single(2, priority=10), single(3, priority=20)]
    assert ordered("LIFO", *specs) == [3, 2, 1]


def test_depth_first_takes_the_deepest():
    assert ordered("depth-first", single(1, depth=1), single(2, depth=3), single(3, depth=2)) == [2, 3, 1]


def test_breadth_first_takes_the_shallowest():
    assert ordered("breadth-first", single(1, depth=2), single(2, depth=3), single(3, depth=1)) == [3, 1, 2]


def test_the_largest_input_goes_first():
    specs = [single(1, "small"), single(2, "big", "small"), single(3), single(4, "big")]
    assert ordered("largest-input-first", *specs) == [2, 4, 1, 3]


def test_longest_category_goes_first():
    """The category that takes longest goes first and an unknown one before."""
    specs = [single(1, category="short"), single(2, category="long"), single(3, category="new")]
    assert ordered("longest-category-first", *specs, short=1.0, long=5.0) == [3, 2, 1]


def test_shortest_category_goes_first():
    """The category that takes shortest goes first and an unknown one before."""
    specs = [single(1, category="long"), single(2, category="short"), single(3, category="new")]
    assert ordered("shortest-category-first", *specs, short=1.0, long=5.0) == [3, 2, 1]


def test_random_order_is_reproducible():
    """Random order is another one and always the same."""
    specs = [single(n) for n in range(1, 30)]
    order = ordered("random", *specs)
    assert sorted(order) == list(range(1, 30)) != order
    assert ordered("random", *specs) == order


def test_most_urgent_of_all_kinds_goes_first():
    """The most urgent of all kinds of tasks goes first."""
    harness = SchedulerHarness()
    harness.submit_tasks(
        single(1, priority=2, category="a"),
        single(2, priority=1, category="b"),
        single(3, priority=0, category="c"),
    )
    harness.connect_worker(cores=2)
    assert harness.dispatched_tasks() == [3, 2]


# ---- spreading


def test_tasks_are_spread_over_idle_workers(harness):
    workers = [harness.connect_worker() for _ in range(4)]
    harness.submit_tasks(*(call(n) for n in range(1, 5)))
    assert sorted(harness.assignments().values()) == workers


def test_work_reaches_all_of_many_workers(harness):
    """With many workers work still reaches all of them."""
    workers = [harness.connect_worker() for _ in range(40)]
    harness.submit_tasks(*(call(n) for n in range(1, 41)))
    assert sorted(harness.assignments().values()) == workers


def test_single_tasks_fill_worker_exactly():
    """Single tasks fill a worker and no more."""
    harness = SchedulerHarness()
    worker = harness.connect_worker(cores=3)
    harness.submit_tasks(*(single(n) for n in range(1, 6)))
    assert harness.dispatched_tasks() == [1, 2, 3]
    assert harness.worker(worker).free.cores == 0
    harness.complete_task(2)
    assert harness.dispatched_tasks() == [4]


def test_unspecified_task_gets_whole_worker():
    """A task that says nothing of its needs gets a whole worker."""
    harness = SchedulerHarness()
    worker = harness.connect_worker(cores=4, gpus=1)
    harness.submit_tasks(single(1, request=ResourceRequest()), single(2, request=ResourceRequest()))
    assert harness.dispatched_tasks() == [1]
    assert harness.worker(worker).free == Resources(0, 0, 0, 1)
    ((_, run),) = harness.messages_sent(m.RunTask)
    assert run.options["allocation"] == Resources(4, 4000, 1000, 0)


def test_requested_amount_limits_rounded_does_not():
    """What a task asked for is a limit and what was rounded up is not."""
    harness = SchedulerHarness()
    harness.connect_worker(cores=4)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=1, memory=300)))
    ((_, run),) = harness.messages_sent(m.RunTask)
    assert run.options["limits"] == {"memory": 300}


def test_larger_task_waits_for_smaller_one():
    """A larger task waits while a smaller one of another kind runs."""
    harness = SchedulerHarness()
    harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=3)), single(2))
    assert harness.assignments() == {2: 1}
    assert harness.state_of(1) == READY


def test_task_finds_worker_beyond_small_ones():
    """The estimate behind the row of open workers may be too small: tasks of a category that learns draw their own."""
    harness = SchedulerHarness()
    harness.send_events(
        e.SettingChanged("category-steady-n-tasks", 1),
        e.CategorySet("c", "greedy_bucketing", None, None, None),
    )
    big = harness.connect_worker(cores=1, memory_mb=8000)
    for number, memory in enumerate([200] * 5 + [5000] * 5, start=1):
        harness.submit_tasks(single(number, category="c", request=ONE_CORE))
        harness.complete_task(number, measured={"cores": 1, "memory": memory, "disk": 1})
    category = harness.state.categories["c"]
    wants = {n: category.initial_request(n).memory for n in range(100, 200)}
    assert wants[100] is not None
    large = next(n for n, memory in wants.items() if memory and memory > 2000)
    harness.submit_tasks(single(50, request=ResourceRequest()))
    assert harness.assignments() == {50: big}
    for _ in range(20):
        harness.connect_worker(cores=1, memory_mb=1000)
    harness.submit_tasks(single(large, category="c", request=ONE_CORE))
    assert harness.state_of(large) == READY
    harness.complete_task(50)
    harness.advance_time()
    assert harness.assignments() == {large: big}


# ---- how much is queued on a worker


def test_short_calls_are_prefetched(harness):
    """Short calls are queued ahead to cover the way there and back."""
    learn(harness, wall_s=0.001)
    harness.submit_tasks(*(call(n) for n in range(1, 100)))
    assert len(harness.assignments()) == 11


def test_very_short_calls_are_prefetched_bounded(harness):
    """Very short calls are queued in numbers that are bounded."""
    learn(harness, wall_s=0.00001)
    harness.submit_tasks(*(call(n) for n in range(1, 1000)))
    assert len(harness.assignments()) == 1 + MAX_PREFETCHED_PER_SLOT


def test_long_calls_wait_at_the_manager(harness):
    learn(harness, wall_s=60.0)
    harness.submit_tasks(*(call(n) for n in range(1, 10)))
    assert len(harness.assignments()) == 1


# ---- where the bytes are


def holding(harness, size=100 * MB):
    """Two workers; the second one has made r1."""
    harness.install_library("maker", request=ResourceRequest(cores=1))
    learn(harness, wall_s=60.0)
    harness.submit_tasks(call(999))
    second = harness.connect_worker(disk_mb=10_000)
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    harness.complete_task(1, size=size, wall_s=60.0)
    first = harness.assignment_of(999)[0]
    harness.complete_task(999, wall_s=60.0)
    assert harness.replica_holders("r1") == {second} != {first}
    return first, second


def test_task_goes_to_its_bytes(harness):
    """A task goes to where its bytes are."""
    _first, second = holding(harness)
    harness.submit_tasks(call(2, "r1"))
    assert harness.assignments() == {2: second}
    assert not harness.requested_fetches()


def test_many_bytes_are_worth_a_short_wait(harness):
    first, second = holding(harness, size=400 * MB)
    queue = harness.state.queues["lib",]
    queue.mean_s = 0.5
    harness.submit_tasks(call(2, "r1"))
    assert harness.assignments()[2] == second
    harness.submit_tasks(call(3, "r1"))
    assert harness.assignments()[3] == second
    assert first in harness.state.workers


def test_few_bytes_do_not_wait_for_worker(harness):
    """A few bytes are not worth waiting for a busy worker."""
    first, second = holding(harness, size=LARGE)
    harness.submit_tasks(call(2, "r1"))
    harness.submit_tasks(call(3, "r1"))
    assert harness.assignments() == {2: second, 3: first}
    assert harness.requested_fetches() == [(first, "r1", "host2:7")]


def test_of_several_inputs_the_larger_one_decides(harness):
    first, second = holding(harness)
    harness.declare_file("r5")
    harness.submit_tasks(call(7, "r1"))
    harness.submit_tasks(call(5))
    assert harness.assignments() == {7: second, 5: first}
    harness.complete_task(5, size=LARGE, wall_s=60.0)
    harness.complete_task(7, wall_s=60.0)
    harness.submit_tasks(call(6, "r5", "r1"))
    assert harness.assignments() == {6: second}


def merges(groups, fan_in, first=1):
    """Groups of roots, each with a reader of all of them, in the order of a walk in depth."""
    specs = []
    for group in range(groups):
        number = first + group * (fan_in + 1)
        roots = [call(number + n, priority=number + n) for n in range(fan_in)]
        reader = call(number + fan_in, *(root.result for root in roots), priority=number + fan_in)
        specs += [*roots, reader]
    return specs


def busy(harness, workers, wall_s=60.0):
    """Workers of one core that all have something to do, and take long for it."""
    learn(harness, wall_s)
    for _ in range(workers - 1):
        harness.connect_worker()
    harness.submit_tasks(*(call(2000 + n, priority=-1) for n in range(workers)))
    assert len(harness.assignments()) == workers


def said_readers(harness):
    """Task -> how many calls are said to read what it makes, of those that were sent now."""
    return {run.task: run.options.get("readers") for _worker, run in harness.messages_sent(m.RunTask)}


def test_large_result_call_names_reader_count(harness):
    """A call of a kind that makes large results says how many of its graph read it."""
    harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"), call(3, "r1"))
    assert said_readers(harness) == {1: None, 2: None, 3: None}
    for number in (1, 2, 3):
        harness.complete_task(number, size=LARGE)
    harness.compute_graph(call(11), call(12, "r11"), call(13, "r11"), number=2)
    assert said_readers(harness) == {11: 2, 12: None, 13: None}


def test_pinned_result_names_no_reader_count(harness):
    """What somebody else may want is not said to be read by so many."""
    for _ in range(8):
        harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1, size=LARGE)
    harness.compute_graph(call(11, wanted_at_manager=("r11",)), call(12, "r11"))
    harness.compute_graph(call(21, level=FOREVER), call(22, "r21"), number=2)
    harness.compute_graph(call(31), call(32, "r31"), number=3, prune_depth=0)
    harness.submit_tasks(call(41), call(42, "r41"))
    sent = [run for _worker, run in harness.messages_sent(m.RunTask, harness.log) if run.task > 10]
    assert len(sent) == 8
    assert not any("readers" in run.options for run in sent)


def test_roots_with_common_reader_stay_together(harness):
    """Roots with a reader in common are queued together where nobody idles."""
    busy(harness, 3)
    harness.compute_graph(*merges(3, 4))
    for number in (2000, 2001, 2002):
        harness.complete_task(number, wall_s=60.0)
    where = harness.assignments()
    places = [{where[number] for number in range(first, first + 4)} for first in (1, 6, 11)]
    assert sorted(map(min, places)) == [1, 2, 3]
    assert all(len(place) == 1 for place in places)
    for number in range(1, 5):
        harness.complete_task(number, size=LARGE, wall_s=60.0)
    assert harness.assignments()[5] in places[0], "the reader finds all it reads"
    assert not harness.requested_fetches(harness.log)


def test_roots_spread_to_idle_workers(harness):
    """Roots are spread where somebody idles whoever reads them."""
    learn(harness, 60.0)
    for _ in range(3):
        harness.connect_worker()
    harness.compute_graph(*merges(1, 4))
    assert sorted(harness.assignments().values()) == [1, 2, 3, 4]


def lots(workers, cores):
    """Workers with a library that has a slot for each of their cores."""
    harness = SchedulerHarness()
    harness.install_library(slots=cores, request=ResourceRequest(cores=cores))
    for _ in range(workers):
        harness.connect_worker(cores=cores)
    return harness


def test_roots_of_full_graph_fill_workers():
    """Roots of a graph that will need all slots fill those of one worker after the other."""
    harness = lots(workers=4, cores=2)
    harness.open_graph(size=9)
    harness.submit_tasks(*(call(n, graph=1) for n in range(1, 5)))
    where = harness.assignments()
    assert where[1] == where[2] != where[3] == where[4]


def test_roots_of_small_graph_are_spread():
    """Roots of a graph that leaves slots free are spread."""
    harness = lots(workers=4, cores=2)
    harness.open_graph(size=8)
    harness.submit_tasks(*(call(n, graph=1) for n in range(1, 5)))
    assert sorted(harness.assignments().values()) == [1, 2, 3, 4]


def test_roots_continue_after_worker_loss():
    """Roots go on elsewhere when the worker of the one before is lost."""
    harness = lots(workers=2, cores=2)
    harness.open_graph(size=100)
    harness.submit_tasks(call(1, graph=1))
    harness.disconnect_worker(harness.assignments()[1])
    harness.submit_tasks(call(2, graph=1))
    (left,) = harness.state.workers
    assert harness.assignments() == {1: left, 2: left}


def test_roots_of_wide_reader_are_spread(harness):
    """Roots whose reader reads many are not queued together."""
    busy(harness, 2)
    harness.compute_graph(*merges(1, 100))
    harness.complete_task(2000, wall_s=60.0)
    assert len(harness.assignments()) == 2


def test_queued_roots_are_stolen_by_idle(harness):
    """Queued roots are taken back when another worker has nothing to do."""
    busy(harness, 2)
    harness.compute_graph(*merges(1, 4))
    harness.complete_task(2000, wall_s=60.0)
    holder = harness.assignments()[1]
    assert [harness.assignments()[number] for number in range(1, 5)] == [holder] * 4
    harness.complete_task(2001, wall_s=60.0)
    ((worker, recall),) = harness.messages_sent(m.StealRequest)
    assert (worker, recall.max_calls) == (holder, 1)


def test_user_order_ignores_common_readers(harness):
    """The order that a user has asked for is not changed for common readers."""
    busy(harness, 2)
    harness.compute_graph(*merges(2, 4), priority_mode="FIFO")
    harness.complete_task(2000, wall_s=60.0)
    assert len(harness.assignments()) == 2


def test_single_task_goes_to_its_bytes():
    """A single task goes to where its bytes are too."""
    harness = SchedulerHarness()
    harness.declare_file("data", size=100 * MB, at_manager=True)
    harness.submit_tasks(single(9))
    harness.connect_worker()
    second = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    harness.report_cached(second, "data", 100 * MB)
    harness.complete_task(9)
    harness.complete_task(1)
    for number in (2, 3, 4):
        harness.submit_tasks(single(number, "data"))
        assert harness.assignments() == {number: second}
        harness.complete_task(number)


# ---- other policies


def two_workers(harness, policy):
    """Two free workers, the first with more of everything; the policy is set."""
    big = harness.connect_worker(cores=4, disk_mb=9000)
    small = harness.connect_worker(cores=2)
    harness.send_events(e.SettingChanged("scheduler", policy))
    return big, small


def test_fcfs_takes_who_came_first():
    harness = SchedulerHarness()
    big, _small = two_workers(harness, "fcfs")
    harness.submit_tasks(single(1), single(2), single(3))
    assert set(harness.assignments().values()) == {big}


def test_worst_fit_takes_who_has_most_left():
    harness = SchedulerHarness()
    big, small = two_workers(harness, "worst")
    harness.submit_tasks(single(1), single(2), single(3), single(4))
    assert list(harness.assignments().values()) == [big, big, small, big]


def test_disk_takes_who_has_most_of_it():
    harness = SchedulerHarness()
    big, _small = two_workers(harness, "disk")
    harness.submit_tasks(single(1), single(2))
    assert set(harness.assignments().values()) == {big}


def test_time_policy_tries_all_then_fastest():
    """Time tries everybody and then takes the fastest."""
    harness = SchedulerHarness()
    first, second = two_workers(harness, "time")
    harness.submit_tasks(single(1))
    harness.complete_task(1, wall_s=9.0)
    harness.submit_tasks(single(2))
    assert harness.assignments() == {2: second}, "which nobody has tried yet"
    harness.complete_task(2, wall_s=1.0)
    harness.submit_tasks(single(3))
    assert harness.assignments() == {3: second}
    harness.complete_task(3, wall_s=100.0)
    harness.submit_tasks(single(4))
    assert harness.assignments() == {4: first}


def test_rand_uses_all_workers():
    harness = SchedulerHarness()
    workers = {harness.connect_worker(cores=50) for _ in range(5)}
    harness.send_events(e.SettingChanged("scheduler", "rand"))
    harness.submit_tasks(*(single(n) for n in range(1, 50)))
    assert set(harness.assignments().values()) == workers


@pytest.mark.parametrize("policy", ["files", "fcfs", "worst", "disk", "time", "rand"])
def test_every_policy_runs_everything(policy):
    harness = SchedulerHarness()
    harness.install_library(slots=2)
    harness.send_events(e.SettingChanged("scheduler", policy))
    for cores in (1, 2, 3):
        harness.connect_worker(cores=cores)
    harness.compute_graph(
        *(single(n) for n in range(1, 10)), *(call(n, "r1") for n in range(10, 20)), retries=50
    )
    while harness.assignments():
        for worker in {w for _t, w in harness.assignments().items()}:
            for _worker, fetch in harness.messages_sent(m.Fetch, harness.log):
                harness.report_cached(worker, fetch.name)
        harness.complete_task(next(iter(harness.assignments())), size=LARGE)
    assert graph_outcomes(harness) == {1: "success"}


# ---- categories


def test_category_fills_in_unspecified_resources():
    """A category says what its tasks do not."""
    harness = SchedulerHarness()
    harness.send_events(
        e.CategorySet("small", None, ResourceRequest(cores=1, memory=100, disk=10), None, None)
    )
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(
        single(1, category="small", request=ResourceRequest()),
        single(2, category="small", request=ResourceRequest(memory=200)),
    )
    assert harness.assignments() == {1: worker, 2: worker}
    assert harness.worker(worker).free == Resources(2, 3700, 980, 0)


def test_category_minimum_is_respected():
    """No task gets less than the minimum of its category."""
    harness = SchedulerHarness()
    harness.send_events(e.CategorySet("c", None, None, ResourceRequest(cores=2, memory=500), None))
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(single(1, category="c", request=ResourceRequest(cores=1, memory=100)))
    free = harness.worker(worker).free
    assert (free.cores, free.memory) == (2, 3500)


def test_changed_category_reaches_idle_workers():
    """A category that changes reaches workers that are idle."""
    harness = SchedulerHarness()
    harness.submit_tasks(single(1, category="c", request=ResourceRequest()))
    harness.send_events(e.CategorySet("c", None, ResourceRequest(cores=8), None, None))
    harness.connect_worker(cores=4)
    assert not harness.assignments()
    harness.send_events(e.CategorySet("c", None, ResourceRequest(cores=2), None, None))
    assert harness.assignments()


def test_exhausted_task_retries_with_more():
    """A task that passed its limit is tried with more where the category learns."""
    harness = SchedulerHarness()
    harness.send_events(e.CategorySet("c", "max", None, None, ResourceRequest(cores=1, memory=100)))
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(
        single(1, category="c", request=ResourceRequest()), single(2, category="c", request=ResourceRequest())
    )
    harness.fail_task(1, "exhausted", resource="memory", limit=100, peak=101)
    assert not task_outcomes(harness)
    harness.complete_task(2)
    ((_, run),) = harness.messages_sent(m.RunTask)
    assert run.options["allocation"].memory == 2000, "all there is, as nothing else is known"
    assert harness.task(1).attempts == 0
    harness.complete_task(1)
    assert harness.worker(worker).free == harness.worker(worker).total


def test_larger_retry_does_not_block_category():
    """A task that needs more does not hold up the others of its category."""
    harness = SchedulerHarness()
    harness.send_events(e.CategorySet("c", "max", None, None, ResourceRequest(cores=1, memory=100)))
    big = harness.connect_worker(cores=1, memory_mb=4000)
    harness.submit_tasks(
        single(1, category="c", request=ResourceRequest()), single(2, category="c", request=ResourceRequest())
    )
    harness.fail_task(1, "exhausted", resource="memory", limit=100, peak=101)
    harness.disconnect_worker(big)
    small = harness.connect_worker(cores=1, memory_mb=500)
    assert harness.assignments() == {2: small}
    harness.advance_time()
    harness.complete_task(2)
    harness.advance_time(10 * STALL_REPORT_DELAY_S)
    assert "no worker is large enough" in harness.instructions_of(i.Stalled, harness.log)[-1].text


def test_exhausted_task_of_fixed_category_fails():
    """A task that passed its limit fails where the category is fixed."""
    harness = SchedulerHarness()
    harness.connect_worker()
    harness.submit_tasks(single(1, request=ResourceRequest(cores=1, memory=100)))
    harness.fail_task(1, "exhausted", resource="memory", limit=100, peak=101)
    assert task_outcomes(harness) == {1: "exhausted"}


def test_learned_size_is_capped_by_workers():
    """A learned size that is rounded up does not ask for more than there is."""
    harness = SchedulerHarness()
    harness.send_events(
        e.SettingChanged("category-steady-n-tasks", 1), e.CategorySet("c", "max", None, None, None)
    )
    harness.connect_worker(cores=1, memory_mb=900)
    for number in range(1, 5):
        harness.submit_tasks(single(number, category="c", request=ResourceRequest()))
        assert harness.assignments(), "800 MB are rounded up to 1000, and the worker has 900"
        harness.complete_task(number, measured={"cores": 1, "memory": 800, "disk": 1})
    assert len(task_outcomes(harness)) == 4


# ---- what is missing


def missing(harness):
    """What a person is told after some patience."""
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S)
    texts = harness.instructions_of(i.Stalled, harness.log)
    return texts[-1].text if texts else ""


def test_missing_workers_are_reported_and_over(harness):
    """It is said that no worker is connected and that this is over."""
    harness.submit_tasks(call(1))
    harness.advance_time()
    assert not harness.instructions_of(i.Stalled), "workers take a moment to connect"
    assert missing(harness) == "no worker is connected"
    harness.advance_time()
    assert not harness.instructions_of(i.Stalled), "it is said once"
    harness.connect_worker()
    harness.advance_time()
    assert harness.instructions_of(i.Stalled) == [i.Stalled("")]


def test_idle_scheduler_misses_nothing(harness):
    """Nothing is missing where nothing has to run."""
    assert missing(harness) == ""


def test_other_python_gets_no_functions(harness):
    """A worker with another python gets no pickled functions."""
    harness.submit_tasks(call(1), single(2))
    harness.connect_worker(python="3.9")
    (note,) = harness.instructions_of(i.LogMessage)
    assert "runs Python 3.9" in note.text
    assert not harness.assignments()
    text = missing(harness)
    assert "the manager runs Python 3.11 and the workers run 3.9" in text
    assert "environment=" in text


def test_other_python_gets_commands_and_environments():
    """A worker with another python gets commands and what brings its own environment."""
    harness = SchedulerHarness()
    harness.declare_file("env.tar", size=LARGE, at_manager=True)
    harness.declare_file("env", archive="env.tar", directory=True)
    harness.install_library("own", environment="env")
    worker = harness.connect_worker(cores=3, python="3.9")
    harness.submit_tasks(single(1, python=False), single(2, environment="env"), call(3, library="own"))
    assert harness.assignments() == {1: worker, 2: worker, 3: worker}


@pytest.fixture
def choosy():
    """A harness whose functions need cloudpickle; its libraries are "lib", and two that commands start."""
    harness = SchedulerHarness(needs=("cloudpickle",))
    harness.install_library()
    harness.install_library("wrapped", options={"command": "apptainer exec image.sif"})
    harness.install_library("initialized", options={"init_command": "source activate analysis"})
    return harness


def test_missing_package_prevents_functions(choosy):
    """A python without a package that is needed gets no functions."""
    choosy.submit_tasks(call(1), single(2))
    choosy.connect_worker(cores=2, versions={"python": "3.11", "numpy": ""})
    (note,) = choosy.instructions_of(i.LogMessage)
    assert "worker 1 on host1 has no cloudpickle in its own Python" in note.text
    assert not choosy.assignments()
    text = missing(choosy)
    assert "the workers' own Python has no cloudpickle" in text
    assert "Install cloudpickle there, or ship an environment with environment=" in text
    assert not task_outcomes(choosy), "a better worker may still come"
    worker = choosy.connect_worker(cores=2, versions={"python": "3.11", "cloudpickle": ""})
    assert choosy.assignments() == {1: worker, 2: worker}


def test_missing_packages_allow_commands(choosy):
    """A python without packages gets commands and what brings or starts another one."""
    choosy.declare_file("env.tar", size=LARGE, at_manager=True)
    choosy.declare_file("env", archive="env.tar", directory=True)
    choosy.install_library("own", environment="env")
    worker = choosy.connect_worker(cores=5, versions={"python": "3.11"})
    choosy.submit_tasks(
        single(1, python=False),
        single(2, environment="env"),
        call(3, library="own"),
        call(4, library="wrapped"),
        call(5, library="initialized"),
    )
    assert choosy.assignments() == dict.fromkeys((1, 2, 3, 4, 5), worker)


def test_unchecked_python_is_trusted(choosy):
    """A worker that has not looked what it has is trusted."""
    worker = choosy.connect_worker()
    choosy.submit_tasks(single(1))
    assert choosy.assignments() == {1: worker}


def test_unsuitable_final_workers_fail_tasks(choosy):
    """Where all workers are here and lack something the tasks fail with what it is."""
    choosy.send_events(e.SettingChanged("expected-workers", 1))
    choosy.compute_graph(single(1))
    choosy.connect_worker(versions={"python": "3.11"})
    choosy.advance_time()
    (ended,) = choosy.instructions_of(i.GraphFinished)
    assert "no cloudpickle" in ended.info["reason"]


def test_too_large_task_is_named_with_fit():
    """A task that is too large for every worker is named with what would fit."""
    harness = SchedulerHarness()
    harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=3)))
    text = missing(harness)
    assert "no worker is large enough for the tasks" in text
    assert "3 cores" in text
    assert not task_outcomes(harness), "a larger worker may still come"
    harness.connect_worker(cores=4)
    assert harness.assignments()


def test_too_large_library_is_named(harness):
    """A library that is too large is named by its label."""
    harness.install_library("big-0123", request=ResourceRequest(cores=9), options={"label": "big"})
    harness.connect_worker()
    harness.submit_tasks(call(1, library="big-0123"))
    assert "no worker is large enough for library big: " in missing(harness)


def test_fitting_worker_of_wrong_python_is_ignored():
    """A worker of the right size with the wrong python does not count."""
    harness = SchedulerHarness()
    harness.connect_worker(cores=8, python="3.9")
    harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=4)))
    assert "no worker is large enough" in missing(harness)


def test_too_large_task_fails_with_final_workers():
    """What is too large fails where all workers are known to be here."""
    harness = SchedulerHarness()
    harness.send_events(e.SettingChanged("expected-workers", 2))
    harness.connect_worker(cores=2)
    harness.compute_graph(single(1, request=ResourceRequest(cores=3)), single(2))
    harness.advance_time()
    assert not graph_outcomes(harness), "the second one is still to come"
    harness.connect_worker(cores=2)
    harness.advance_time()
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert (ended.outcome, ended.task) == ("too large", 1)
    assert "3 cores" in ended.info["reason"]


def test_without_startable_workers_ready_tasks_fail():
    harness = SchedulerHarness()
    harness.submit_tasks(single(1))
    harness.send_events(e.SettingChanged("start-failure", "no Python"))
    harness.submit_tasks(single(2))
    harness.advance_time()
    assert task_outcomes(harness) == {1: "no workers", 2: "no workers"}
    harness.send_events(e.SettingChanged("start-failure", ""))
    harness.submit_tasks(single(3))
    harness.connect_worker()
    assert harness.assignments() == {3: 1}


def test_connected_worker_runs_despite_start_failures():
    """A connected worker runs tasks despite start failures."""
    harness = SchedulerHarness()
    harness.send_events(e.SettingChanged("start-failure", "no Python"))
    harness.connect_worker(cores=1)
    harness.submit_tasks(single(1), single(2))
    harness.advance_time()
    assert harness.assignments() == {1: 1}
    assert not task_outcomes(harness)


def test_each_too_large_task_is_reported():
    """All tasks that are too large are reported each."""
    harness = SchedulerHarness()
    harness.send_events(e.SettingChanged("expected-workers", 1))
    harness.connect_worker()
    harness.submit_tasks(*(single(n, request=ResourceRequest(cores=3)) for n in (1, 2)), single(3))
    harness.advance_time()
    assert task_outcomes(harness) == {1: "too large", 2: "too large"}
    assert harness.assignments() == {3: 1}
