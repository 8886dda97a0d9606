"""Which worker gets which task, and in what order."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, endings, outcomes, single
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
def vine():
    vine = Vine()
    vine.library()
    return vine


def learn(vine, wall_s, library="lib"):
    """Let the mind see how long calls of a library take."""
    vine.submit(call(1000, library=library))
    worker = vine.join()
    vine.done(1000, wall_s=wall_s)
    return worker


def one_by_one(vine):
    """The order in which tasks with one place among them all run."""
    order = []
    while vine.where():
        (number,) = vine.where()
        order.append(number)
        vine.done(number, wall_s=60.0)
    return order


# ---- order


def ordered(mode, *specs, **walls):
    """The order in which one core runs tasks of a run with a priority mode; ``walls``: seconds of their categories so far."""
    vine = Vine()
    for name, size in (("small", 10), ("big", 1000)):
        vine.declare(name, size=size, at_manager=True)
    worker = vine.join()
    for number, (category, wall_s) in enumerate(walls.items(), start=900):
        vine.submit(single(number, category=category))
        vine.done(number, wall_s=wall_s)
    vine.submit(single(990))
    vine.compute(*specs, priority_mode=mode)
    assert vine.where() == {990: worker}
    return one_by_one(vine)[1:]


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


def test_the_category_that_takes_longest_goes_first_and_an_unknown_one_before():
    specs = [single(1, category="short"), single(2, category="long"), single(3, category="new")]
    assert ordered("longest-category-first", *specs, short=1.0, long=5.0) == [3, 2, 1]


def test_the_category_that_takes_shortest_goes_first_and_an_unknown_one_before():
    specs = [single(1, category="long"), single(2, category="short"), single(3, category="new")]
    assert ordered("shortest-category-first", *specs, short=1.0, long=5.0) == [3, 2, 1]


def test_random_order_is_another_one_and_always_the_same():
    specs = [single(n) for n in range(1, 30)]
    order = ordered("random", *specs)
    assert sorted(order) == list(range(1, 30)) != order
    assert ordered("random", *specs) == order


def test_the_most_urgent_of_all_kinds_of_tasks_goes_first():
    vine = Vine()
    vine.submit(
        single(1, priority=2, category="a"),
        single(2, priority=1, category="b"),
        single(3, priority=0, category="c"),
    )
    vine.join(cores=2)
    assert vine.started() == [3, 2]


# ---- spreading


def test_tasks_are_spread_over_idle_workers(vine):
    workers = [vine.join() for _ in range(4)]
    vine.submit(*(call(n) for n in range(1, 5)))
    assert sorted(vine.where().values()) == workers


def test_with_many_workers_work_still_reaches_all_of_them(vine):
    workers = [vine.join() for _ in range(40)]
    vine.submit(*(call(n) for n in range(1, 41)))
    assert sorted(vine.where().values()) == workers


def test_single_tasks_fill_a_worker_and_no_more():
    vine = Vine()
    worker = vine.join(cores=3)
    vine.submit(*(single(n) for n in range(1, 6)))
    assert vine.started() == [1, 2, 3]
    assert vine.worker(worker).free.cores == 0
    vine.done(2)
    assert vine.started() == [4]


def test_a_task_that_says_nothing_of_its_needs_gets_a_whole_worker():
    vine = Vine()
    worker = vine.join(cores=4, gpus=1)
    vine.submit(single(1, request=ResourceRequest()), single(2, request=ResourceRequest()))
    assert vine.started() == [1]
    assert vine.worker(worker).free == Resources(0, 0, 0, 1)
    ((_, run),) = vine.sent(m.RunTask)
    assert run.options["allocation"] == Resources(4, 4000, 1000, 0)


def test_what_a_task_asked_for_is_a_limit_and_what_was_rounded_up_is_not():
    vine = Vine()
    vine.join(cores=4)
    vine.submit(single(1, request=ResourceRequest(cores=1, memory=300)))
    ((_, run),) = vine.sent(m.RunTask)
    assert run.options["limits"] == {"memory": 300}


def test_a_larger_task_waits_while_a_smaller_one_of_another_kind_runs():
    vine = Vine()
    vine.join(cores=2)
    vine.submit(single(1, request=ResourceRequest(cores=3)), single(2))
    assert vine.where() == {2: 1}
    assert vine.state(1) == READY


def test_where_the_first_workers_are_too_small_for_the_task_at_hand_another_one_is_found():
    """The estimate behind the row of open workers may be too small: tasks of a category that learns draw their own."""
    vine = Vine()
    vine.feed(
        e.SettingChanged("category-steady-n-tasks", 1),
        e.CategorySet("c", "greedy_bucketing", None, None, None),
    )
    big = vine.join(cores=1, memory_mb=8000)
    for number, memory in enumerate([200] * 5 + [5000] * 5, start=1):
        vine.submit(single(number, category="c", request=ONE_CORE))
        vine.done(number, measured={"cores": 1, "memory": memory, "disk": 1})
    category = vine.tables.categories["c"]
    wants = {n: category.initial_request(n).memory for n in range(100, 200)}
    assert wants[100] is not None
    large = next(n for n, memory in wants.items() if memory and memory > 2000)
    vine.submit(single(50, request=ResourceRequest()))
    assert vine.where() == {50: big}
    for _ in range(20):
        vine.join(cores=1, memory_mb=1000)
    vine.submit(single(large, category="c", request=ONE_CORE))
    assert vine.state(large) == READY
    vine.done(50)
    vine.tick()
    assert vine.where() == {large: big}


# ---- how much is queued on a worker


def test_short_calls_are_queued_ahead_to_cover_the_way_there_and_back(vine):
    learn(vine, wall_s=0.001)
    vine.submit(*(call(n) for n in range(1, 100)))
    assert len(vine.where()) == 11


def test_very_short_calls_are_queued_in_numbers_that_are_bounded(vine):
    learn(vine, wall_s=0.00001)
    vine.submit(*(call(n) for n in range(1, 1000)))
    assert len(vine.where()) == 1 + MAX_PREFETCHED_PER_SLOT


def test_long_calls_wait_at_the_manager(vine):
    learn(vine, wall_s=60.0)
    vine.submit(*(call(n) for n in range(1, 10)))
    assert len(vine.where()) == 1


# ---- where the bytes are


def holding(vine, size=100 * MB):
    """Two workers; the second one has made r1."""
    vine.library("maker", request=ResourceRequest(cores=1))
    learn(vine, wall_s=60.0)
    vine.submit(call(999))
    second = vine.join(disk_mb=10_000)
    vine.declare("r1")
    vine.submit(call(1))
    vine.done(1, size=size, wall_s=60.0)
    first = vine.place(999)[0]
    vine.done(999, wall_s=60.0)
    assert vine.holders("r1") == {second} != {first}
    return first, second


def test_a_task_goes_to_where_its_bytes_are(vine):
    _first, second = holding(vine)
    vine.submit(call(2, "r1"))
    assert vine.where() == {2: second}
    assert not vine.fetches()


def test_many_bytes_are_worth_a_short_wait(vine):
    first, second = holding(vine, size=400 * MB)
    bucket = vine.tables.buckets["lib",]
    bucket.mean_s = 0.5
    vine.submit(call(2, "r1"))
    assert vine.where()[2] == second
    vine.submit(call(3, "r1"))
    assert vine.where()[3] == second
    assert first in vine.tables.workers


def test_a_few_bytes_are_not_worth_waiting_for_a_busy_worker(vine):
    first, second = holding(vine, size=LARGE)
    vine.submit(call(2, "r1"))
    vine.submit(call(3, "r1"))
    assert vine.where() == {2: second, 3: first}
    assert vine.fetches() == [(first, "r1", "host2:7")]


def test_of_several_inputs_the_larger_one_decides(vine):
    first, second = holding(vine)
    vine.declare("r5")
    vine.submit(call(7, "r1"))
    vine.submit(call(5))
    assert vine.where() == {7: second, 5: first}
    vine.done(5, size=LARGE, wall_s=60.0)
    vine.done(7, wall_s=60.0)
    vine.submit(call(6, "r5", "r1"))
    assert vine.where() == {6: second}


def merges(groups, fan_in, first=1):
    """Groups of roots, each with a reader of all of them, in the order of a walk in depth."""
    specs = []
    for group in range(groups):
        number = first + group * (fan_in + 1)
        roots = [call(number + n, priority=number + n) for n in range(fan_in)]
        reader = call(number + fan_in, *(root.result for root in roots), priority=number + fan_in)
        specs += [*roots, reader]
    return specs


def busy(vine, workers, wall_s=60.0):
    """Workers of one core that all have something to do, and take long for it."""
    learn(vine, wall_s)
    for _ in range(workers - 1):
        vine.join()
    vine.submit(*(call(2000 + n, priority=-1) for n in range(workers)))
    assert len(vine.where()) == workers


def said_readers(vine):
    """Task -> how many calls are said to read what it makes, of those that were sent now."""
    return {run.task: run.options.get("readers") for _worker, run in vine.sent(m.RunTask)}


def test_a_call_of_a_kind_that_makes_large_results_says_how_many_of_its_graph_read_it(vine):
    vine.join()
    vine.compute(call(1), call(2, "r1"), call(3, "r1"))
    assert said_readers(vine) == {1: None, 2: None, 3: None}
    for number in (1, 2, 3):
        vine.done(number, size=LARGE)
    vine.compute(call(11), call(12, "r11"), call(13, "r11"), run=2)
    assert said_readers(vine) == {11: 2, 12: None, 13: None}


def test_what_somebody_else_may_want_is_not_said_to_be_read_by_so_many(vine):
    for _ in range(8):
        vine.join()
    vine.submit(call(1))
    vine.done(1, size=LARGE)
    vine.compute(call(11, wanted_at_manager=("r11",)), call(12, "r11"))
    vine.compute(call(21, level=FOREVER), call(22, "r21"), run=2)
    vine.compute(call(31), call(32, "r31"), run=3, prune_depth=0)
    vine.submit(call(41), call(42, "r41"))
    sent = [run for _worker, run in vine.sent(m.RunTask, vine.log) if run.task > 10]
    assert len(sent) == 8
    assert not any("readers" in run.options for run in sent)


def test_roots_with_a_reader_in_common_are_queued_together_where_nobody_idles(vine):
    busy(vine, 3)
    vine.compute(*merges(3, 4))
    for number in (2000, 2001, 2002):
        vine.done(number, wall_s=60.0)
    where = vine.where()
    places = [{where[number] for number in range(first, first + 4)} for first in (1, 6, 11)]
    assert sorted(map(min, places)) == [1, 2, 3]
    assert all(len(place) == 1 for place in places)
    for number in range(1, 5):
        vine.done(number, size=LARGE, wall_s=60.0)
    assert vine.where()[5] in places[0], "the reader finds all it reads"
    assert not vine.fetches(vine.log)


def test_roots_are_spread_where_somebody_idles_whoever_reads_them(vine):
    learn(vine, 60.0)
    for _ in range(3):
        vine.join()
    vine.compute(*merges(1, 4))
    assert sorted(vine.where().values()) == [1, 2, 3, 4]


def lots(workers, cores):
    """Workers with a library that has a slot for each of their cores."""
    vine = Vine()
    vine.library(slots=cores, request=ResourceRequest(cores=cores))
    for _ in range(workers):
        vine.join(cores=cores)
    return vine


def test_roots_of_a_graph_that_will_need_all_slots_fill_those_of_one_worker_after_the_other():
    vine = lots(workers=4, cores=2)
    vine.open(size=9)
    vine.submit(*(call(n, run=1) for n in range(1, 5)))
    where = vine.where()
    assert where[1] == where[2] != where[3] == where[4]


def test_roots_of_a_graph_that_leaves_slots_free_are_spread():
    vine = lots(workers=4, cores=2)
    vine.open(size=8)
    vine.submit(*(call(n, run=1) for n in range(1, 5)))
    assert sorted(vine.where().values()) == [1, 2, 3, 4]


def test_roots_go_on_elsewhere_when_the_worker_of_the_one_before_is_lost():
    vine = lots(workers=2, cores=2)
    vine.open(size=100)
    vine.submit(call(1, run=1))
    vine.lose(vine.where()[1])
    vine.submit(call(2, run=1))
    (left,) = vine.tables.workers
    assert vine.where() == {1: left, 2: left}


def test_roots_whose_reader_reads_many_are_not_queued_together(vine):
    busy(vine, 2)
    vine.compute(*merges(1, 100))
    vine.done(2000, wall_s=60.0)
    assert len(vine.where()) == 2


def test_queued_roots_are_taken_back_when_another_worker_has_nothing_to_do(vine):
    busy(vine, 2)
    vine.compute(*merges(1, 4))
    vine.done(2000, wall_s=60.0)
    holder = vine.where()[1]
    assert [vine.where()[number] for number in range(1, 5)] == [holder] * 4
    vine.done(2001, wall_s=60.0)
    ((worker, recall),) = vine.sent(m.StealRequest)
    assert (worker, recall.max_calls) == (holder, 1)


def test_the_order_that_a_user_has_asked_for_is_not_changed_for_common_readers(vine):
    busy(vine, 2)
    vine.compute(*merges(2, 4), priority_mode="FIFO")
    vine.done(2000, wall_s=60.0)
    assert len(vine.where()) == 2


def test_a_single_task_goes_to_where_its_bytes_are_too():
    vine = Vine()
    vine.declare("data", size=100 * MB, at_manager=True)
    vine.submit(single(9))
    vine.join()
    second = vine.join()
    vine.submit(single(1, "data"))
    vine.cached(second, "data", 100 * MB)
    vine.done(9)
    vine.done(1)
    for number in (2, 3, 4):
        vine.submit(single(number, "data"))
        assert vine.where() == {number: second}
        vine.done(number)


# ---- other policies


def two_workers(vine, policy):
    """Two free workers, the first with more of everything; the policy is set."""
    big = vine.join(cores=4, disk_mb=9000)
    small = vine.join(cores=2)
    vine.feed(e.SettingChanged("scheduler", policy))
    return big, small


def test_fcfs_takes_who_came_first():
    vine = Vine()
    big, _small = two_workers(vine, "fcfs")
    vine.submit(single(1), single(2), single(3))
    assert set(vine.where().values()) == {big}


def test_worst_fit_takes_who_has_most_left():
    vine = Vine()
    big, small = two_workers(vine, "worst")
    vine.submit(single(1), single(2), single(3), single(4))
    assert list(vine.where().values()) == [big, big, small, big]


def test_disk_takes_who_has_most_of_it():
    vine = Vine()
    big, _small = two_workers(vine, "disk")
    vine.submit(single(1), single(2))
    assert set(vine.where().values()) == {big}


def test_time_tries_everybody_and_then_takes_the_fastest():
    vine = Vine()
    first, second = two_workers(vine, "time")
    vine.submit(single(1))
    vine.done(1, wall_s=9.0)
    vine.submit(single(2))
    assert vine.where() == {2: second}, "which nobody has tried yet"
    vine.done(2, wall_s=1.0)
    vine.submit(single(3))
    assert vine.where() == {3: second}
    vine.done(3, wall_s=100.0)
    vine.submit(single(4))
    assert vine.where() == {4: first}


def test_rand_uses_all_workers():
    vine = Vine()
    workers = {vine.join(cores=50) for _ in range(5)}
    vine.feed(e.SettingChanged("scheduler", "rand"))
    vine.submit(*(single(n) for n in range(1, 50)))
    assert set(vine.where().values()) == workers


@pytest.mark.parametrize("policy", ["files", "fcfs", "worst", "disk", "time", "rand"])
def test_every_policy_runs_everything(policy):
    vine = Vine()
    vine.library(slots=2)
    vine.feed(e.SettingChanged("scheduler", policy))
    for cores in (1, 2, 3):
        vine.join(cores=cores)
    vine.compute(*(single(n) for n in range(1, 10)), *(call(n, "r1") for n in range(10, 20)), retries=50)
    while vine.where():
        for worker in {w for _t, w in vine.where().items()}:
            for _worker, fetch in vine.sent(m.Fetch, vine.log):
                vine.cached(worker, fetch.name)
        vine.done(next(iter(vine.where())), size=LARGE)
    assert endings(vine) == {1: "success"}


# ---- categories


def test_a_category_says_what_its_tasks_do_not():
    vine = Vine()
    vine.feed(e.CategorySet("small", None, ResourceRequest(cores=1, memory=100, disk=10), None, None))
    worker = vine.join(cores=4)
    vine.submit(
        single(1, category="small", request=ResourceRequest()),
        single(2, category="small", request=ResourceRequest(memory=200)),
    )
    assert vine.where() == {1: worker, 2: worker}
    assert vine.worker(worker).free == Resources(2, 3700, 980, 0)


def test_no_task_gets_less_than_the_minimum_of_its_category():
    vine = Vine()
    vine.feed(e.CategorySet("c", None, None, ResourceRequest(cores=2, memory=500), None))
    worker = vine.join(cores=4)
    vine.submit(single(1, category="c", request=ResourceRequest(cores=1, memory=100)))
    free = vine.worker(worker).free
    assert (free.cores, free.memory) == (2, 3500)


def test_a_category_that_changes_reaches_workers_that_are_idle():
    vine = Vine()
    vine.submit(single(1, category="c", request=ResourceRequest()))
    vine.feed(e.CategorySet("c", None, ResourceRequest(cores=8), None, None))
    vine.join(cores=4)
    assert not vine.where()
    vine.feed(e.CategorySet("c", None, ResourceRequest(cores=2), None, None))
    assert vine.where()


def test_a_task_that_passed_its_limit_is_tried_with_more_where_the_category_learns():
    vine = Vine()
    vine.feed(e.CategorySet("c", "max", None, None, ResourceRequest(cores=1, memory=100)))
    worker = vine.join(cores=2)
    vine.submit(
        single(1, category="c", request=ResourceRequest()), single(2, category="c", request=ResourceRequest())
    )
    vine.failed(1, "exhausted", resource="memory", limit=100, peak=101)
    assert not outcomes(vine)
    vine.done(2)
    ((_, run),) = vine.sent(m.RunTask)
    assert run.options["allocation"].memory == 2000, "all there is, as nothing else is known"
    assert vine.task(1).attempts == 0
    vine.done(1)
    assert vine.worker(worker).free == vine.worker(worker).total


def test_a_task_that_needs_more_does_not_hold_up_the_others_of_its_category():
    vine = Vine()
    vine.feed(e.CategorySet("c", "max", None, None, ResourceRequest(cores=1, memory=100)))
    big = vine.join(cores=1, memory_mb=4000)
    vine.submit(
        single(1, category="c", request=ResourceRequest()), single(2, category="c", request=ResourceRequest())
    )
    vine.failed(1, "exhausted", resource="memory", limit=100, peak=101)
    vine.lose(big)
    small = vine.join(cores=1, memory_mb=500)
    assert vine.where() == {2: small}
    vine.tick()
    vine.done(2)
    vine.tick(10 * STALL_REPORT_DELAY_S)
    assert "no worker is large enough" in vine.told(i.Stalled, vine.log)[-1].text


def test_a_task_that_passed_its_limit_fails_where_the_category_is_fixed():
    vine = Vine()
    vine.join()
    vine.submit(single(1, request=ResourceRequest(cores=1, memory=100)))
    vine.failed(1, "exhausted", resource="memory", limit=100, peak=101)
    assert outcomes(vine) == {1: "exhausted"}


def test_a_learned_size_that_is_rounded_up_does_not_ask_for_more_than_there_is():
    vine = Vine()
    vine.feed(e.SettingChanged("category-steady-n-tasks", 1), e.CategorySet("c", "max", None, None, None))
    vine.join(cores=1, memory_mb=900)
    for number in range(1, 5):
        vine.submit(single(number, category="c", request=ResourceRequest()))
        assert vine.where(), "800 MB are rounded up to 1000, and the worker has 900"
        vine.done(number, measured={"cores": 1, "memory": 800, "disk": 1})
    assert len(outcomes(vine)) == 4


# ---- what is missing


def missing(vine):
    """What a person is told after some patience."""
    vine.tick()
    vine.tick(STALL_REPORT_DELAY_S)
    texts = vine.told(i.Stalled, vine.log)
    return texts[-1].text if texts else ""


def test_it_is_said_that_no_worker_is_connected_and_that_this_is_over(vine):
    vine.submit(call(1))
    vine.tick()
    assert not vine.told(i.Stalled), "workers take a moment to connect"
    assert missing(vine) == "no worker is connected"
    vine.tick()
    assert not vine.told(i.Stalled), "it is said once"
    vine.join()
    vine.tick()
    assert vine.told(i.Stalled) == [i.Stalled("")]


def test_nothing_is_missing_where_nothing_has_to_run(vine):
    assert missing(vine) == ""


def test_a_worker_with_another_python_gets_no_pickled_functions(vine):
    vine.submit(call(1), single(2))
    vine.join(python="3.9")
    (note,) = vine.told(i.LogMessage)
    assert "runs Python 3.9" in note.text
    assert not vine.where()
    text = missing(vine)
    assert "the manager runs Python 3.11 and the workers run 3.9" in text
    assert "environment=" in text


def test_a_worker_with_another_python_gets_commands_and_what_brings_its_own_environment():
    vine = Vine()
    vine.declare("env.tar", size=LARGE, at_manager=True)
    vine.declare("env", archive="env.tar", directory=True)
    vine.library("own", environment="env")
    worker = vine.join(cores=3, python="3.9")
    vine.submit(single(1, python=False), single(2, environment="env"), call(3, library="own"))
    assert vine.where() == {1: worker, 2: worker, 3: worker}


@pytest.fixture
def choosy():
    """A vine whose functions need cloudpickle; its libraries are "lib" and "wrapped", which a command starts."""
    vine = Vine(needs=("cloudpickle",))
    vine.library()
    vine.library("wrapped", options={"command": "apptainer exec image.sif"})
    return vine


def test_a_python_without_a_package_that_is_needed_gets_no_functions(choosy):
    choosy.submit(call(1), single(2))
    choosy.join(cores=2, versions={"python": "3.11", "numpy": ""})
    (note,) = choosy.told(i.LogMessage)
    assert "worker 1 on host1 has no cloudpickle in its own Python" in note.text
    assert not choosy.where()
    text = missing(choosy)
    assert "the workers' own Python has no cloudpickle" in text
    assert "Install cloudpickle there, or ship an environment with environment=" in text
    assert not outcomes(choosy), "a better worker may still come"
    worker = choosy.join(cores=2, versions={"python": "3.11", "cloudpickle": ""})
    assert choosy.where() == {1: worker, 2: worker}


def test_a_python_without_packages_gets_commands_and_what_brings_or_starts_another_one(choosy):
    choosy.declare("env.tar", size=LARGE, at_manager=True)
    choosy.declare("env", archive="env.tar", directory=True)
    choosy.library("own", environment="env")
    worker = choosy.join(cores=4, versions={"python": "3.11"})
    choosy.submit(
        single(1, python=False),
        single(2, environment="env"),
        call(3, library="own"),
        call(4, library="wrapped"),
    )
    assert choosy.where() == dict.fromkeys((1, 2, 3, 4), worker)


def test_a_worker_that_has_not_looked_what_it_has_is_trusted(choosy):
    worker = choosy.join()
    choosy.submit(single(1))
    assert choosy.where() == {1: worker}


def test_where_all_workers_are_here_and_lack_something_the_tasks_fail_with_what_it_is(choosy):
    choosy.feed(e.SettingChanged("expected-workers", 1))
    choosy.compute(single(1))
    choosy.join(versions={"python": "3.11"})
    choosy.tick()
    (ended,) = choosy.told(i.GraphFinished)
    assert "no cloudpickle" in ended.info["reason"]


def test_a_task_that_is_too_large_for_every_worker_is_named_with_what_would_fit():
    vine = Vine()
    vine.join(cores=2)
    vine.submit(single(1, request=ResourceRequest(cores=3)))
    text = missing(vine)
    assert "no worker is large enough for the tasks" in text
    assert "3 cores" in text
    assert not outcomes(vine), "a larger worker may still come"
    vine.join(cores=4)
    assert vine.where()


def test_a_library_that_is_too_large_is_named_by_its_label(vine):
    vine.library("big-0123", request=ResourceRequest(cores=9), options={"label": "big"})
    vine.join()
    vine.submit(call(1, library="big-0123"))
    assert "no worker is large enough for library big: " in missing(vine)


def test_a_worker_of_the_right_size_with_the_wrong_python_does_not_count():
    vine = Vine()
    vine.join(cores=8, python="3.9")
    vine.join(cores=2)
    vine.submit(single(1, request=ResourceRequest(cores=4)))
    assert "no worker is large enough" in missing(vine)


def test_what_is_too_large_fails_where_all_workers_are_known_to_be_here():
    vine = Vine()
    vine.feed(e.SettingChanged("expected-workers", 2))
    vine.join(cores=2)
    vine.compute(single(1, request=ResourceRequest(cores=3)), single(2))
    vine.tick()
    assert not endings(vine), "the second one is still to come"
    vine.join(cores=2)
    vine.tick()
    (ended,) = vine.told(i.GraphFinished)
    assert (ended.outcome, ended.task) == ("too large", 1)
    assert "3 cores" in ended.info["reason"]


def test_all_tasks_that_are_too_large_are_reported_each():
    vine = Vine()
    vine.feed(e.SettingChanged("expected-workers", 1))
    vine.join()
    vine.submit(*(single(n, request=ResourceRequest(cores=3)) for n in (1, 2)), single(3))
    vine.tick()
    assert outcomes(vine) == {1: "too large", 2: "too large"}
    assert vine.where() == {3: 1}
