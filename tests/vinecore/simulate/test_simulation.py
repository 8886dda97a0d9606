"""Whole simulations: the figures, against what can be reckoned by hand, and what breaks."""

import dataclasses

import pytest

from vinecore.protocol import messages as m
from vinecore.scheduler import dispatch, queues
from vinecore.simulate import (
    Cluster,
    Costs,
    Failures,
    SimulatedFile,
    SimulatedTask,
    SimulationStalled,
    Storage,
    Workload,
    generate,
    simulate,
)
from vinecore.simulate.simulation import Simulation

FREE = Costs(**{one.name: 0 for one in dataclasses.fields(Costs) if one.name != "warm_fork"})
NEAR = Cluster(workers=1, cores=2, latency_s=0)
BUSY = Failures(losses_per_hour=120, replaced_after_s=5)


def run(jobs, cluster=NEAR, costs=FREE, failures=None, files=(), **options):
    workload = jobs if isinstance(jobs, Workload) else Workload(jobs, files)
    return simulate(workload, cluster, costs, failures, **{"validate": True, **options})


def independent(count, **about):
    return [SimulatedTask(f"t{n}", **{"library": "lib", **about}) for n in range(count)]


def near(seconds):
    return pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("library", ["lib", ""])
def test_tasks_share_the_cores(library):
    report = run(independent(6, seconds=2.0, library=library))
    assert report.makespan_s == near(6.0)
    assert report.utilisation == pytest.approx(1.0, abs=0.01)
    assert (report.tasks, report.executions, report.reexecuted) == (6, 6, 0)


def test_chain_takes_sum_of_tasks():
    """A chain takes as long as its tasks."""
    report = run(generate("chains", 20, fan_in=1, seconds=0.5))
    assert report.makespan_s == near(10.0)
    assert report.utilisation == pytest.approx(0.5, abs=0.01)


def test_task_takes_requested_cores():
    """A task takes as many cores as it asks for."""
    assert run(independent(3, seconds=1.0, library="", cores=2.0)).makespan_s == near(3.0)


def test_streamed_reads_share_storage():
    """What a task streams comes over a storage that all share."""
    storage = Storage(bandwidth=1e6, latency_s=0)
    report = run(independent(2, seconds=1.0, reads=1_000_000), dataclasses.replace(NEAR, storage=storage))
    assert report.makespan_s == near(3.0)
    assert report.bytes_moved["streamed"] == 2_000_000


def test_storage_file_is_fetched_once():
    """A file of the storage is fetched once and passed on."""
    jobs = independent(4, inputs=("data",))
    report = run(jobs, Cluster(workers=2, cores=2, bandwidth=1e6), files=[SimulatedFile("data", 3_000_000)])
    assert report.transfers["storage"] + report.transfers["peers"] == 2
    assert report.transfers["storage"] >= 1
    assert report.makespan_s > 4.0


def test_manager_file_uses_managers_link():
    """A file of the manager comes over its link."""
    jobs = independent(1, inputs=("data",))
    report = run(
        jobs,
        dataclasses.replace(NEAR, manager_bandwidth=1e6),
        files=[SimulatedFile("data", 2_000_000, "manager")],
    )
    assert report.makespan_s == near(3.0)
    assert report.bytes_moved["to_workers"] >= 2_000_000


def test_results_move_between_workers_or_manager():
    """Results go from worker to worker or through the manager."""
    jobs = [
        SimulatedTask("a", size=10**6),
        SimulatedTask("b", size=10**6),
        SimulatedTask("sum", ("a", "b"), size=10),
    ]
    peers = run(jobs, Cluster(workers=2, cores=1))
    assert peers.bytes_moved["peers"] == 10**6
    assert peers.bytes_moved["to_manager"] == 10
    hub = run(jobs, Cluster(workers=2, cores=1, peer_transfers=False, results_to_manager=True))
    assert hub.bytes_moved["peers"] == 0
    assert hub.bytes_moved["to_manager"] == 2 * 10**6 + 10
    assert hub.bytes_moved["to_workers"] == 10**6
    assert peers.max_pair_bytes == 10**6
    assert hub.max_pair_bytes >= 2 * 10**6


def test_uploads_do_not_delay_fetches():
    """What workers bring to the manager does not hold up what they fetch."""
    jobs = [SimulatedTask(f"t{n}", seconds=0.0, size=10**6, wanted=True) for n in range(20)]
    jobs += [SimulatedTask("late", ("data",), seconds=15.0)]
    cluster = dataclasses.replace(NEAR, cores=30, manager_bandwidth=1e6)
    report = run(jobs, cluster, files=[SimulatedFile("data", 10**6)])
    assert report.makespan_s == pytest.approx(20.0, abs=0.5)  # which is what it takes to bring them all


def test_slow_manager_limits_all():
    """A slow manager is what all wait for."""
    report = run(
        independent(200, seconds=0.01), Cluster(workers=10, cores=10), dataclasses.replace(FREE, event_s=0.05)
    )
    assert report.makespan_s > 200 * 2 * 0.05
    assert report.manager_load > 0.95
    assert report.manager_busy_s <= report.makespan_s + 0.1


def test_another_manager_spends_more_on_a_task():
    costs = dataclasses.replace(FREE, task_s=0.1)
    report = run(independent(50, seconds=0.001), costs=costs)
    assert report.makespan_s > 49 * 0.1


def test_processes_pay_start_for_each_task():
    """A process for each task pays for each what a library pays once."""
    costs = dataclasses.replace(FREE, interpreter_s=0.5, imports_s=1.0, fork_s=0.1)
    calls = run(independent(8, seconds=1.0), costs=costs)
    warm = run(independent(8, seconds=1.0, library=""), costs=costs)
    cold = run(independent(8, seconds=1.0, library=""), costs=dataclasses.replace(costs, warm_fork=False))
    assert calls.makespan_s == near(1.5 + 0.1 + 4 * 1.0)
    assert warm.makespan_s == near(0.5 + 1.0 + 4 * (0.1 + 1.0))
    assert cold.makespan_s == near(0.5 + 4 * (0.5 + 1.0 + 1.0))


def test_late_workers_join_in():
    """Late workers take part from when they come."""
    report = run(
        independent(4, seconds=1.0),
        Cluster(workers=2, cores=1, latency_s=0),
        failures=Failures(arrival_window_s=3.0),
    )
    assert report.makespan_s == near(3.0)
    assert (report.workers, report.core_s) == (2, near(4.5))


@pytest.mark.parametrize("library", ["lib", ""])
def test_results_lost_with_worker_are_remade(library):
    """What is lost with a worker is made again."""
    workload = generate("tree", 400, seconds=1.0, size=1e6, library=library)
    report = run(workload, Cluster(workers=5, cores=4), Costs(), BUSY, seed=1)
    assert report.outcome == "success"
    assert report.workers_lost > 0
    assert report.reexecuted > 0
    assert report.useful_core_s == near(400.0)
    assert report.busy_core_s > 400.0


def test_two_replicas_save_work():
    """Two copies of everything save work when workers are lost."""
    workload = generate("chains", 400, seconds=0.5, size=1e6, fan_in=10)
    figures = [
        run(workload, Cluster(workers=5, cores=4, replicas=copies), Costs(), BUSY, seed=1)
        for copies in (1, 2)
    ]
    assert figures[1].reexecuted < figures[0].reexecuted
    assert figures[1].bytes_moved["peers"] > figures[0].bytes_moved["peers"]


def test_the_same_seed_gives_the_same_report():
    really = ("manager_cpu_s", "manager_cpu_us_per_task", "peak_memory_mb", "elapsed_s")

    def figures(seed):
        workload = generate("random", 300, spread=0.5, seed=3)
        said = run(workload, Cluster(workers=5, cores=2), Costs(), BUSY, seed=seed, validate=False).record()
        return {name: value for name, value in said.items() if name not in really}

    assert figures(1) == figures(1) != figures(2)


def test_task_hit_repeatedly_fails():
    """A task that is hit again and again is failed with the evidence."""
    failures = Failures(losses_per_hour=3600, replaced_after_s=0.1)
    report = run(independent(1, seconds=1000.0), failures=failures, retries=2)
    assert report.outcome == "crash"
    assert "t0" in report.reason
    assert "was lost" in report.reason


def test_what_was_running_ends_with_its_worker():
    failures = Failures(losses_per_hour=240, replaced_after_s=0)
    report = run(
        independent(1, seconds=30.0), dataclasses.replace(NEAR, cores=1), failures=failures, retries=1000
    )
    assert report.workers_lost > 0
    assert 30.0 < report.busy_core_s <= report.core_s


def test_run_without_workers_is_reported():
    """When nobody is left and nobody comes it says so."""
    with pytest.raises(SimulationStalled, match="no worker is connected"):
        run(independent(10, seconds=100.0), failures=Failures(losses_per_hour=3600))


def test_small_disk_does_not_fill():
    """A small disk is kept from filling up."""
    workload = generate("tree", 200, seconds=1.0, size=10e6, fan_in=4)
    report = run(workload, Cluster(workers=2, cores=4, disk_mb=200))
    assert report.outcome == "success"
    assert report.peak_disk_bytes <= 200 * 2**20
    plenty = run(workload, Cluster(workers=2, cores=4))
    assert plenty.outcome == "success"


def test_impossible_task_fails_with_numbers():
    """What can never fit fails with the numbers."""
    report = run([SimulatedTask("big", size=10**9)], dataclasses.replace(NEAR, disk_mb=100))
    assert report.outcome != "success"
    assert "big" in report.reason


@pytest.mark.parametrize(
    ("kind", "about", "what"),
    [
        (Cluster, {"workers": 0}, "workers=0: has to be finite and more than 0"),
        (Cluster, {"latency_s": -1}, "latency_s=-1: has to be finite and 0 or more .seconds."),
        (Cluster, {"latency_s": float("inf")}, "latency_s=inf: has to be finite"),
        (Cluster, {"memory_mb": 0}, "memory_mb=0: has to be finite and more than 0 .MB."),
        (Costs, {"imports_s": float("inf")}, "imports_s=inf: has to be finite"),
        (Failures, {"losses_per_hour": float("inf")}, "losses_per_hour=inf: has to be finite"),
        (Cluster, {"scheduler": "best"}, "'best': there are files"),
        (Costs, {"event_s": float("nan")}, "event_s=nan"),
        (Failures, {"arrival_window_s": -1}, "arrival_window_s=-1"),
        (Storage, {"bandwidth": 0}, "bandwidth=0: has to be more than 0 .bytes per second."),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, about, what):
    with pytest.raises(ValueError, match=what):
        kind(**about)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 1.0])
def test_tree_moves_fraction_of_results(monkeypatch, seconds):
    """A tree moves a fraction of what it makes and no more for looking ahead."""
    tree = generate("tree", 1000, fan_in=8, seconds=seconds, spread=0.3, size=1e6)
    cluster = Cluster(workers=8, cores=4)
    ahead = simulate(tree, cluster)
    monkeypatch.setattr(queues, "MAX_PREFETCHED_PER_SLOT", 0)
    monkeypatch.setattr(dispatch, "MAX_CHAINED_PER_SLOT", 0)
    without = simulate(tree, cluster)
    made = 1000 * 1e6
    assert ahead.bytes_moved["peers"] < 0.35 * made
    assert ahead.bytes_moved["peers"] <= 1.05 * without.bytes_moved["peers"]
    assert ahead.makespan_s <= 1.05 * without.makespan_s


def test_killed_slot_starts_nothing():
    """A slot that was killed begins nothing more."""
    world = Simulation(
        Workload(independent(20, seconds=0.0001)), NEAR, FREE, Failures(), retries=5, seed=0, validate=True
    )
    found = None
    while found is None:
        world.clock.run_next()
        slots = [(node, slot) for node in world._nodes.values() for slot in node._slots.values()]
        found = next((pair for pair in slots if pair[1].calls and pair[1].now), None)
    node, slot = found
    begun = world.report.executions
    node.handle(m.Cancel([slot.now.run.task]))
    node._start_next_call(slot)
    assert slot.id not in node._slots
    assert world.report.executions == begun
