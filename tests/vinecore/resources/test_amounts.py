"""How much of a worker a task gets, and what its category learns."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinecore.resources.amounts import ResourceRequest, Resources, allocate, too_large
from vinecore.resources.categories import MODES, Category, parse_mode

WORKER = Resources(cores=4, memory=8000, disk=10_000, gpus=2)
LEARNING = [mode for mode in MODES if mode != "fixed"]

amounts = st.builds(
    Resources,
    cores=st.integers(0, 128),
    memory=st.integers(0, 10**6),
    disk=st.integers(0, 10**7),
    gpus=st.integers(0, 8),
)
requests = st.builds(
    ResourceRequest,
    cores=st.none() | st.integers(0, 128) | st.sampled_from([0.25, 0.5, 1.5]),
    memory=st.none() | st.integers(0, 10**6),
    disk=st.none() | st.integers(0, 10**7),
    gpus=st.none() | st.integers(0, 8),
)
peaks = st.lists(
    st.tuples(
        st.builds(
            Resources,
            cores=st.floats(0, 64),
            memory=st.integers(1, 200_000),
            disk=st.integers(0, 200_000),
        ),
        st.floats(0, 1e5),
    ),
    min_size=1,
    max_size=120,
)


def rounded_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step


# Amounts


def test_amounts_add_up_and_come_apart_again():
    task = Resources(1.5, 1000, 200, 1)
    assert task.plus(task) == Resources(3, 2000, 400, 2)
    assert WORKER.minus(task).plus(task) == WORKER
    assert task.fits(WORKER)
    assert not WORKER.plus(task).fits(WORKER)


def test_repeated_tenths_of_core_add_up():
    """A tenth of a core given out and back many times leaves nothing behind."""
    free = WORKER
    tenth = Resources(cores=0.1)
    for _ in range(40):
        free = free.minus(tenth)
    assert free.cores == 0
    for _ in range(40):
        free = free.plus(tenth)
    assert free == WORKER


def test_amounts_are_described_for_people():
    assert Resources(2, 1000, 500, 1).describe() == "2 cores, 1000 MB memory, 500 MB disk, 1 gpu"
    assert Resources(1.5, 2_000_000, 0, 0).describe() == "1.5 cores, 2000000 MB memory, 0 MB disk, 0 gpus"
    assert ResourceRequest(cores=1, disk=7).describe() == "1 core, 7 MB disk"
    assert ResourceRequest().describe() == "a whole worker"


# What a request comes to on a worker


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ResourceRequest(), Resources(4, 8000, 10_000, 0)),
        (ResourceRequest(cores=1), Resources(1, 2000, 2500, 0)),
        (ResourceRequest(memory=2000), Resources(1, 2000, 2500, 0)),
        (ResourceRequest(cores=1, memory=4000), Resources(1, 4000, 5000, 0)),
        (ResourceRequest(cores=1, memory=10, disk=10), Resources(1, 10, 10, 0)),
        (ResourceRequest(cores=3), Resources(3, 6000, 7500, 0)),
        (ResourceRequest(memory=100), Resources(1, 100, 125, 0)),
        (ResourceRequest(gpus=1), Resources(0, 4000, 5000, 1)),
        (ResourceRequest(gpus=1, cores=2), Resources(2, 4000, 5000, 1)),
        (ResourceRequest(gpus=0), Resources(4, 8000, 10_000, 0)),
        (ResourceRequest(cores=0, memory=0, disk=0, gpus=0), Resources(4, 8000, 10_000, 0)),
        (ResourceRequest(cores=0, memory=800), Resources(0, 800, 1000, 0)),
        (ResourceRequest(cores=0.5), Resources(0.5, 1000, 1250, 0)),
        (ResourceRequest(cores=5), None),
        (ResourceRequest(gpus=3), None),
        (ResourceRequest(cores=1, memory=8001), None),
    ],
)
def test_a_request_on_a_worker(request_, expected):
    assert allocate(request_, WORKER) == expected


def test_even_shares_lose_nothing():
    """Shares that divide evenly lose nothing to rounding."""
    third = allocate(ResourceRequest(cores=1), Resources(3, 3000, 9999, 0))
    assert third == Resources(1, 1000, 3333, 0)
    assert allocate(ResourceRequest(memory=29), Resources(100, 100, 100, 0)) == Resources(29, 29, 29, 0)


def test_minimum_raises_share_and_request():
    """A minimum counts in the shares and raises what is asked."""
    assert allocate(ResourceRequest(), WORKER, ResourceRequest(cores=2)) == Resources(2, 4000, 5000, 0)
    assert allocate(ResourceRequest(cores=1), WORKER, ResourceRequest(memory=6000)) == Resources(
        1, 6000, 7500, 0
    )
    assert allocate(ResourceRequest(memory=100), WORKER, ResourceRequest(memory=200)).memory == 200
    assert allocate(ResourceRequest(), WORKER, ResourceRequest(gpus=3)) is None


def test_worker_without_gpu_runs_other_tasks():
    """A worker without something still runs what does not ask for it."""
    bare = Resources(cores=2, memory=0, disk=0, gpus=0)
    assert allocate(ResourceRequest(cores=1), bare) == Resources(1, 0, 0, 0)
    assert allocate(ResourceRequest(memory=1), bare) is None


@given(requests, amounts, requests)
def test_allocation_fits_and_covers_request(request_, total, minimum):
    """An allocation fits and holds what was asked."""
    got = allocate(request_, total, minimum)
    if got is None:
        asked = zip(request_, minimum, total, strict=True)
        assert any(max(a or 0, b or 0) > has for a, b, has in asked)
        return
    assert got.fits(total)
    for asked, low, value in zip(request_, minimum, got, strict=True):
        assert value >= (low or 0)
        if asked and not low:
            assert value == asked


def test_oversized_request_is_explained():
    """A request that is too large is explained."""
    text = too_large(ResourceRequest(cores=8, memory=32_000), WORKER)
    assert text == (
        "8 cores, 32000 MB memory are asked for, but the worker has 4 cores, 8000 MB memory, "
        "10000 MB disk, 2 gpus: ask for at most 4 cores and 8000 MB memory, or start a worker that has more."
    )
    assert too_large(ResourceRequest(cores=4), WORKER) == ""


@given(requests, amounts)
def test_only_lacking_resources_are_explained(request_, total):
    """What does not fit is explained and only that."""
    assert (allocate(request_, total) is None) == bool(too_large(request_, total))


# What a category learns


def learned(mode: str, memory: list[int], **given: object) -> Category:
    category = Category("sums", mode, steady_n=1, **given)
    for peak in memory:
        category.record(Resources(cores=0.9, memory=peak), 10.0)
    return category


def test_fixed_category_gives_maximum_once():
    """A fixed category gives its maximum and no second chance."""
    category = Category("sums", "fixed", ResourceRequest(cores=2, memory=1000))
    category.record(Resources(1, 10, 10), 1.0)
    assert category.initial_request(1) == ResourceRequest(cores=2, memory=1000)
    assert category.retry_request(Resources(2, 1000, 10), {"memory"}, WORKER) is None


@pytest.mark.parametrize("mode", LEARNING)
def test_unknown_task_gets_guess_maximum_or_worker(mode):
    """Until enough is known a task gets the guess else the maximum else a worker."""
    unknown = Category("sums", mode)
    unknown.record(Resources(1, 10, 10), 1.0)
    assert unknown.initial_request(1) == ResourceRequest()
    bounded = Category("sums", mode, ResourceRequest(cores=2, memory=1000))
    assert bounded.initial_request(1) == ResourceRequest(cores=2, memory=1000)
    guessed = Category(
        "sums", mode, ResourceRequest(cores=2, memory=1000), first_guess=ResourceRequest(memory=300)
    )
    assert guessed.initial_request(1) == ResourceRequest(cores=2, memory=300)


@pytest.mark.parametrize("mode", LEARNING)
def test_uniform_tasks_get_rounded_usage(mode):
    """Tasks that are all alike get what they use rounded up."""
    category = learned(mode, [310] * 30)
    assert category.initial_request(7) == ResourceRequest(cores=1, memory=500)


def test_max_gives_the_largest_peak_seen():
    assert learned("max", [100, 900, 400]).initial_request(1).memory == 1000


def test_min_waste_follows_share_of_large():
    """Min waste starts small when large tasks are rare and large when they are not."""
    assert learned("min waste", [200] * 99 + [8000]).initial_request(1).memory == 250
    assert learned("min waste", [4000] + [8000] * 9).initial_request(1).memory == 8000


def test_modes_weigh_time_or_count():
    """Six short small tasks and four long large ones: most time goes to the large."""
    first = {}
    for mode in ("min waste", "max throughput"):
        category = Category("mixed", mode, steady_n=1)
        for _ in range(6):
            category.record(Resources(memory=500), 1.0)
        for _ in range(4):
            category.record(Resources(memory=2000), 1000.0)
        first[mode] = category.initial_request(1).memory
    assert first == {"min waste": 2000, "max throughput": 500}


@pytest.mark.parametrize("mode", ["greedy_bucketing", "exhaustive_bucketing"])
def test_bucketing_finds_groups_and_weights(mode):
    """Bucketing finds the two groups and draws between them by their size."""
    category = learned(mode, [200, 210, 220, 7900] * 50)
    drawn = [category.initial_request(task).memory for task in range(400)]
    assert set(drawn) == {250, 8000}
    assert 0.65 < drawn.count(250) / 400 < 0.85
    assert drawn == [category.initial_request(task).memory for task in range(400)]


@pytest.mark.parametrize("mode", ["det_greedy_bucketing", "det_exhaustive_bucketing", "quantized_bucketing"])
def test_deterministic_modes_start_alike(mode):
    """The deterministic modes start every task with the same."""
    category = learned(mode, [200, 210, 220, 7900] * 50)
    assert {category.initial_request(task).memory for task in range(50)} == {250}


def test_later_tasks_weigh_more_in_bucketing():
    drift = learned("greedy_bucketing", [200] * 50 + [7900] * 50)
    drawn = [drift.initial_request(task).memory for task in range(400)]
    assert drawn.count(8000) > 1.5 * drawn.count(250)


def test_what_is_not_measured_is_not_learned():
    category = learned("max", [100])
    assert category.initial_request(1) == ResourceRequest(cores=1, memory=250)
    category.configure(maximum=ResourceRequest(disk=700, gpus=1))
    assert category.initial_request(1) == ResourceRequest(cores=1, memory=250, disk=700, gpus=1)


def test_category_limits_bound_learning():
    """The limits of the category bound what is learned."""
    category = learned("max", [9000], maximum=ResourceRequest(memory=4000), minimum=ResourceRequest(cores=2))
    assert category.initial_request(1) == ResourceRequest(cores=2, memory=4000)


def test_slight_excess_over_core_is_one():
    """A little more than one core is one core."""
    category = Category("threads", "max", steady_n=1)
    category.record(Resources(cores=1.05, memory=10), 1.0)
    assert category.initial_request(1).cores == 1
    category.record(Resources(cores=1.6, memory=10), 1.0)
    assert category.initial_request(1).cores == 2


def test_it_learns_anew_every_steady_n_tasks():
    category = Category("sums", "max", steady_n=10)
    for _ in range(10):
        category.record(Resources(memory=100), 1.0)
    assert category.initial_request(1).memory == 250
    for _ in range(9):
        category.record(Resources(memory=900), 1.0)
    assert category.initial_request(1).memory == 250
    category.record(Resources(memory=900), 1.0)
    assert category.initial_request(1).memory == 1000


def test_changed_mode_uses_recorded_peaks():
    """A change of mode is planned from what was recorded."""
    category = learned("max", [200] * 99 + [8000])
    assert category.initial_request(1).memory == 8000
    category.configure(mode="min_waste")
    assert category.initial_request(1).memory == 250


def test_wrong_mode_gets_nearest_spelling():
    """Modes are found in any spelling and a wrong one is answered with the nearest."""
    assert parse_mode("MIN_WASTE") == parse_mode("min-waste") == "min waste"
    assert parse_mode("det greedy bucketing") == "det_greedy_bucketing"
    with pytest.raises(ValueError, match="did you mean 'max throughput'"):
        parse_mode("max thruput")
    with pytest.raises(ValueError, match="it is one of fixed, max"):
        parse_mode("???")


# What a task gets that exceeded its allocation


def test_retry_climbs_bucket_then_worker():
    """A retry takes the next bucket then the largest worker then nothing."""
    category = learned("det_greedy_bucketing", [200, 210, 220, 3900] * 50)
    first = Resources(1, 250, 100, 0)
    second = category.retry_request(first, {"memory"}, WORKER)
    assert second == ResourceRequest(1, 4000, 100, 0)
    third = category.retry_request(first._replace(memory=4000), {"memory"}, WORKER)
    assert third == ResourceRequest(1, 8000, 100, 0)
    assert category.retry_request(first._replace(memory=8000), {"memory"}, WORKER) is None


def test_a_retry_stops_at_the_maximum():
    category = learned("max", [200], maximum=ResourceRequest(memory=1000))
    assert category.retry_request(Resources(1, 250), {"memory"}, WORKER).memory == 1000
    assert category.retry_request(Resources(1, 1000), {"memory"}, WORKER) is None


def test_retry_waits_for_named_maximum_only():
    """A retry waits for a larger worker only if the user named a maximum."""
    small = WORKER._replace(memory=500)
    named = learned("max", [200], maximum=ResourceRequest(memory=1000))
    assert named.retry_request(Resources(1, 250), {"memory"}, small).memory == 500
    assert named.retry_request(Resources(1, 500), {"memory"}, small).memory == 1000
    unnamed = learned("max", [200])
    assert unnamed.retry_request(Resources(1, 500), {"memory"}, small) is None


def test_retry_doubles_without_workers():
    """A retry doubles where no worker is known."""
    category = Category("sums", "max")
    assert category.retry_request(Resources(1, 300, 0), {"memory", "disk"}) == ResourceRequest(1, 600, 250, 0)


def test_nothing_helps_against_what_is_not_allocated():
    assert Category("sums", "max").retry_request(Resources(1, 300), {"wall_time"}, WORKER) is None
    assert Category("sums", "max").retry_request(Resources(1, 300), set(), WORKER) is None


# For every mode


@given(st.sampled_from(LEARNING), peaks, st.integers(1, 60), st.integers(0, 10**9))
def test_learning_is_bounded_by_largest_peak(mode, seen, steady_n, task):
    """No more is learned than the largest peak rounded up."""
    category = Category("any", mode, steady_n=steady_n)
    for measured, wall_s in seen:
        category.record(measured, wall_s)
    asked = category.initial_request(task)
    if len(seen) < steady_n:
        assert asked == ResourceRequest()
        return
    for resource, step in (("cores", 1), ("memory", 250), ("disk", 250)):
        value = getattr(asked, resource)
        largest = max(getattr(measured, resource) for measured, _ in seen)
        if value is not None:
            assert 0 < value <= rounded_up(largest, step)
            assert value % step == 0
    assert asked.memory is not None


@given(st.sampled_from(LEARNING), peaks, requests, st.none() | amounts)
def test_retries_grow_and_end(mode, seen, maximum, largest):
    """Retries only grow and come to an end."""
    category = Category("any", mode, maximum, steady_n=5)
    for measured, wall_s in seen:
        category.record(measured, wall_s)
    had = Resources(1, 100, 100)
    attempts = 0
    while had.memory < 10**8 and (more := category.retry_request(had, {"memory"}, largest)) is not None:
        assert more.memory > had.memory
        assert maximum.memory is None or more.memory <= maximum.memory
        assert (more.cores, more.disk, more.gpus) == (had.cores, had.disk, had.gpus)
        had = Resources(*more)
        attempts += 1
    assert attempts <= 100


@given(st.sampled_from(LEARNING), peaks, st.integers(0, 10**9))
def test_retries_climb_to_largest_peak(mode, seen, task):
    """Retries climb through the plan to the largest peak."""
    category = Category("any", mode, steady_n=1)
    for measured, wall_s in seen:
        category.record(measured, wall_s)
    largest = max(rounded_up(measured.memory, 250) for measured, _ in seen)
    climbed = [category.initial_request(task).memory]
    while climbed[-1] < largest:
        climbed.append(category.retry_request(Resources(memory=climbed[-1]), {"memory"}, None).memory)
    assert climbed[-1] == largest
    assert all(low < high for low, high in pairwise(climbed))
