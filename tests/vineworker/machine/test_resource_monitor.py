"""What tasks are measured to use: real processes for what the kernel says, a made-up probe for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from vineworker.machine import resource_monitor
from vineworker.machine.process_info import LinuxProbe, Memory, ProcessSample, PsutilProbe
from vineworker.machine.resource_monitor import LimitExceeded, Peak, ResourceMonitor, sum_file_sizes

from tests.harness.processes import PATIENCE_S

MB = 1 << 20
linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux 4.14")


class Child:
    """A Python process that runs one piece of code after another and answers when each is done."""

    LOOP = (
        "import os, sys, time\n"
        "names = {'os': os, 'sys': sys}\n"
        "for line in sys.stdin:\n"
        "    exec(eval(line), names)\n"
        "    print(names.get('answer', 0), flush=True)\n"
    )

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid

    def run(self, code: str) -> int:
        self.process.stdin.write(repr(code) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def child(monkeypatch):
    """A process, and a sampler that always takes the time to look."""
    monkeypatch.setattr(resource_monitor, "MAX_CPU_FRACTION", 1e9)
    monkeypatch.setattr(resource_monitor, "MAX_CPU_FRACTION_NEAR_LIMIT", 1e9)
    process = Child()
    yield process
    process.close()


# What a fork does here it does until its end of the pipe is closed, with the process that holds the other.
FORK = (
    "r, w = os.pipe()\n"
    "answer = os.fork()\n"
    "if answer == 0:\n"
    "    os.close(w); {code}; os.read(r, 1); os._exit(0)\n"
)


# Real processes


@linux
def test_allocation_of_200_mb_is_measured(child):
    """A process that allocates 200 mb is seen to hold them."""
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {})
    child.run("data = b'x' * (200 << 20)")
    assert sampler.sample() == []
    peak = sampler.remove_task(1)
    assert 200 <= peak.memory_mb < 260
    assert peak.processes == 1
    assert peak.disk_mb is None


@linux
def test_task_above_limit_is_reported_once(child):
    """A task above its limit is told once."""
    sampler = ResourceMonitor()
    sampler.add_task("a", child.pid, {"memory": 100, "disk": None, "command": "ignored"})
    child.run("data = b'x' * (200 << 20)")
    (exceeded,) = sampler.sample()
    assert exceeded[:3] == ("a", "memory", 100)
    assert 200 <= exceeded.peak_mb < 260
    assert sampler.sample() == []


@linux
def test_peak_survives_released_memory(child):
    """The peak is remembered when the memory is given back."""
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {})
    child.run("data = b'x' * (200 << 20)")
    sampler.sample()
    child.run("del data")
    sampler.sample()
    assert sampler.remove_task(1).memory_mb >= 200


@linux
def test_short_task_is_measured_at_end(child):
    """A task too short to be sampled is looked at in the end."""
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {})
    child.run("data = b'x' * (200 << 20)")
    assert sampler.remove_task(1).memory_mb >= 200


@linux
def test_memory_of_library_is_not_forks(child):
    """What a fork has from its library is not its own."""
    sampler = ResourceMonitor()
    child.run("data = bytearray(b'x' * (200 << 20))")
    fork = child.run(FORK.format(code="pass"))
    sampler.add_task(1, fork, {"memory": 100})
    assert sampler.sample() == []
    assert sampler.remove_task(1).memory_mb < 50


@linux
def test_pages_written_by_fork_are_its_own(child):
    """What a fork writes to becomes its own."""
    sampler = ResourceMonitor()
    child.run("data = bytearray(b'x' * (200 << 20))")
    code = "data[:150 << 20] = b'y' * (150 << 20); os.write(w2, b'.')"
    child.run("r2, w2 = os.pipe()")
    fork = child.run(FORK.format(code=code) + "os.read(r2, 1)")
    sampler.add_task(1, fork, {"memory": 100})
    (exceeded,) = sampler.sample()
    assert 150 <= exceeded.peak_mb < 200


@linux
def test_shared_memory_of_forks_counts_once(child):
    """What a task shares with its own forks is counted once."""
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {})
    sampler.sample()
    child.run("data = bytearray(b'x' * (200 << 20))")
    for _ in range(3):
        child.run(FORK.format(code="pass"))
    sampler.sample()
    peak = sampler.remove_task(1)
    assert 195 <= peak.memory_mb < 280
    assert peak.processes == 4


@linux
def test_orphaned_descendant_still_counts(child):
    """A descendant counts even after its parent has gone."""
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {"memory": 100})
    child.run("up, down = os.pipe(), os.pipe()")
    # A child with a child of its own, which allocates when it is told to.
    grandchild = "os.read(down[0], 1); data = b'x' * (200 << 20); os.write(up[1], b'!'); os.read(down[0], 1)"
    middle = f"g = os.fork(); ({grandchild!r} and exec({grandchild!r})) if g == 0 else os.write(up[1], b'.')"
    fork = child.run(FORK.format(code=middle) + "os.read(up[0], 1)")
    assert sampler.sample() == []
    child.run(f"os.close(w); os.kill({fork}, 9); os.waitpid({fork}, 0)")
    child.run("os.write(down[1], b'.'); os.read(up[0], 1)")
    (exceeded,) = sampler.sample()
    assert exceeded.peak_mb >= 200
    child.run("os.write(down[1], b'.')")


@linux
@pytest.mark.parametrize("lists", [True, False])
def test_children_are_found_without_kernel_lists(child, lists):
    """Children are found with and without the lists of the kernel."""
    probe = LinuxProbe()
    probe._lists = lists
    fork = child.run(FORK.format(code="pass"))
    probe.start_round()
    assert probe.children(child.pid) == [fork]
    assert probe.children(fork) == []


@linux
def test_cpu_time_counts_from_watch_start(child):
    """Cpu time is counted from the start of the watch."""
    probe = LinuxProbe()
    spin = "import time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until: pass"
    child.run(spin)
    before = probe.sample(child.pid).cpu_s
    assert before >= 0.18
    sampler = ResourceMonitor(probe)
    sampler.add_task(1, child.pid, {})
    peak = sampler.remove_task(1)
    assert peak.cores_avg * peak.wall_s < 0.1


def test_psutil_sees_the_same(child):
    pytest.importorskip("psutil")
    probe = PsutilProbe()
    fork = child.run(FORK.format(code="pass"))
    probe.start_round()
    assert probe.children(child.pid) == [fork]
    sampler = ResourceMonitor(probe)
    sampler.add_task(1, child.pid, {})
    child.run("data = b'x' * (200 << 20)")
    sampler.sample()
    peak = sampler.remove_task(1)
    assert peak.memory_mb >= 200
    assert peak.processes == 2


def test_vanished_process_is_no_error(child):
    """A process that has gone is no error."""
    child.close()
    sampler = ResourceMonitor()
    sampler.add_task(1, child.pid, {"memory": 1})
    assert sampler.sample() == []
    peak = sampler.remove_task(1)
    assert (peak.memory_mb, peak.cores_avg, peak.processes) == (None, None, 0)


def test_an_unknown_task_was_not_seen():
    assert ResourceMonitor().remove_task("never") == Peak(None, None, None, 0.0, 0)


def test_wall_time_survives_unmeasurable_process(monkeypatch):
    """Where nothing can be measured the wall time still is."""
    monkeypatch.setattr(resource_monitor, "best_probe", lambda: None)
    now = [5.0]
    sampler = ResourceMonitor(clock=lambda: now[0])
    sampler.add_task(1, os.getpid(), {"memory": 1})
    now[0] = 7.5
    assert sampler.sample() == []
    assert sampler.remove_task(1) == Peak(None, None, None, 2.5, 0)


# What the kernel writes


ROLLUP = """5615c3fd5000-7fffdda8d000 ---p 00000000 00:00 0                          [rollup]
Rss:              900000 kB
Pss:              500000 kB
Pss_Anon:          60000 kB
Pss_File:         400000 kB
Pss_Shmem:          5000 kB
Private_Clean:    300000 kB
Private_Dirty:     20000 kB
Anonymous:        100000 kB
Private_Hugetlb:    2048 kB
Swap:               3000 kB
SwapPss:            1000 kB
"""


def test_memory_is_dirty_pages_and_swap(tmp_path):
    """Memory is dirty pages and swap and not mapped files."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7/smaps_rollup").write_text(ROLLUP)
    expected = Memory(private=(20_000 + 2048 + 1000) * 1024, share=66_000 * 1024, inherited=80_000 * 1024)
    assert LinuxProbe(str(tmp_path)).memory(7) == expected


def test_written_mapped_file_is_not_memory(tmp_path):
    """A mapped file that was just written is not the processs memory."""
    (tmp_path / "7").mkdir()
    dirty = ROLLUP.replace("Private_Dirty:     20000", "Private_Dirty:    700000").replace(
        "Anonymous:        100000", "Anonymous:         40000"
    )
    (tmp_path / "7/smaps_rollup").write_text(dirty)
    memory = LinuxProbe(str(tmp_path)).memory(7)
    assert memory.private == (40_000 + 5000 + 2048 + 1000) * 1024
    assert memory.inherited == 0


def test_old_kernel_without_share_kinds_works(tmp_path):
    """An older kernel does not tell the shares by kind."""
    (tmp_path / "7").mkdir()
    lines = [line for line in ROLLUP.splitlines() if not line.startswith(("Pss_", "SwapPss"))]
    (tmp_path / "7/smaps_rollup").write_text("\n".join(lines))
    memory = LinuxProbe(str(tmp_path)).memory(7)
    assert memory.private == memory.share == (20_000 + 2048 + 3000) * 1024


def test_a_program_may_have_any_name(tmp_path):
    (tmp_path / "7").mkdir()
    numbers = [0] * 40
    numbers[10:14] = [100, 20, 3, 0]
    numbers[18], numbers[20] = 4242, 10
    (tmp_path / "7/stat").write_text("7 (a) R 1 (b) S " + " ".join(map(str, numbers)))
    ticks = os.sysconf("SC_CLK_TCK")
    look = LinuxProbe(str(tmp_path)).sample(7)
    assert look == ProcessSample(4242.0, pytest.approx(123 / ticks), 10 * os.sysconf("SC_PAGE_SIZE"))


# A made-up machine


class World:
    """Processes as the test wants them, and a clock that a memory look moves on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.processes: dict[int, ProcessSample] = {}
        self.family: dict[int, list[int]] = {}
        self.held: dict[int, Memory] = {}
        self.memory_cost_s = 0.0
        self.memory_looks = 0

    def clock(self) -> float:
        return self.now

    def start_round(self) -> None:
        pass

    def sample(self, pid: int) -> ProcessSample | None:
        return self.processes.get(pid)

    def children(self, pid: int) -> list[int]:
        return self.family.get(pid, [])

    def memory(self, pid: int) -> Memory | None:
        self.memory_looks += 1
        self.now += self.memory_cost_s
        return self.held.get(pid)

    def process(self, pid: int, mb: int, cpu_s: float = 0.0, born: float = 1.0) -> None:
        self.processes[pid] = ProcessSample(born, cpu_s, mb * MB)
        self.held[pid] = Memory(mb * MB, mb * MB, 0)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def sampler(world):
    return ResourceMonitor(world, world.clock, world.clock)


def test_cores_are_cpu_over_wall_time(world, sampler):
    """The cores of a task are its cpu time over its wall time."""
    world.process(7, 10, cpu_s=50.0)
    sampler.add_task(1, 7, {})
    world.now += 10
    world.process(7, 10, cpu_s=65.0)
    sampler.sample()
    del world.processes[7]
    assert sampler.remove_task(1) == Peak(10, None, 1.5, 10.0, 1)


def test_reused_pid_is_not_measured(world, sampler):
    """Another process with the same number is not measured."""
    world.process(7, 10)
    sampler.add_task(1, 7, {"memory": 100})
    sampler.sample()
    world.process(7, 5000, born=2.0)
    world.now += 60
    assert sampler.sample() == []
    assert sampler.remove_task(1).memory_mb == 10


def test_process_ending_in_sample_is_not_blamed(world, sampler):
    """A process that ends while it is looked at is not blamed for what it inherited."""
    world.process(7, 500)
    del world.held[7]
    sampler.add_task(1, 7, {"memory": 100})
    real = world.memory
    world.memory = lambda pid: world.processes.pop(pid) and real(pid)
    assert sampler.sample() == []


def test_early_forks_count_as_own_memory(world, sampler):
    """A task that has forked before it is first looked at has not inherited what it made."""
    world.process(7, 30)
    sampler.add_task(1, 7, {"memory": 100})
    for pid in (7, 8):
        world.processes[pid] = ProcessSample(1.0, 0.0, 230 * MB)
        world.held[pid] = Memory(private=1 * MB, share=115 * MB, inherited=229 * MB)
    world.family[7] = [8]
    assert sampler.sample() == [LimitExceeded(1, "memory", 100, 200)]


def test_unreadable_process_counts_resident_set(world, sampler):
    """A process that may not be looked into counts with its resident set."""
    world.process(7, 500)
    del world.held[7]
    sampler.add_task(1, 7, {"memory": 100})
    assert sampler.sample() == [LimitExceeded(1, "memory", 100, 500)]


def test_memory_samples_are_spaced_by_cost(world, sampler):
    """A look of 10 ms is taken every 200 ms, a twentieth of a core; in doubt about a limit every 50 ms."""
    world.memory_cost_s = 0.01
    for limit, looks in ((None, 50), (50, 200)):
        world.process(7, 100)
        world.held[7] = Memory(10 * MB, 10 * MB, 0)
        world.memory_looks = 0
        sampler.add_task(1, 7, {"memory": limit})
        end = world.now + 10
        while world.now < end:
            sampler.sample()
            world.now += 0.001
        sampler.remove_task(1)
        assert looks * 0.8 <= world.memory_looks <= looks


def test_resident_set_below_peak_is_skipped(world, sampler):
    """A resident set below the peak needs no look."""
    world.process(7, 100)
    sampler.add_task(1, 7, {})
    for _ in range(10):
        sampler.sample()
        world.now += 0.2
    assert world.memory_looks == 1


def test_endless_process_tree_is_bounded(world, sampler, monkeypatch):
    """A tree that grows without end is followed up to a bound."""
    monkeypatch.setattr(resource_monitor, "MAX_PROCESSES", 10)
    for pid in range(1, 100):
        world.process(pid, 1)
        world.family[pid] = [pid + 1]
    sampler.add_task(1, 1, {})
    sampler.sample()
    assert sampler.remove_task(1).processes == 10


def test_unwatched_task_is_not_reported(world, sampler):
    """A task that was unwatched meanwhile is not told."""
    world.process(7, 500)
    sampler.add_task(1, 7, {"memory": 100})
    real = world.memory

    def memory(pid):
        sampler.remove_task(1)
        return real(pid)

    world.memory = memory
    assert sampler.sample() == []


def test_unwatching_does_not_wait_for_sample(world, sampler):
    """Unwatching does not wait for a sample that is taken."""
    world.process(7, 500)
    sampler.add_task(1, 7, {})
    inside, leave = threading.Event(), threading.Event()
    real = world.memory

    def memory(pid):
        inside.set()
        assert leave.wait(PATIENCE_S)
        return real(pid)

    world.memory = memory
    thread = threading.Thread(target=sampler.sample)
    thread.start()
    assert inside.wait(PATIENCE_S)
    assert sampler.remove_task(1).processes == 1
    leave.set()
    thread.join()


def test_many_threads_may_use_one_sampler(world, sampler):
    for pid in range(50):
        world.process(pid, 500)
    watchers_done = threading.Event()

    def sampling():
        while not watchers_done.is_set():
            sampler.sample()

    def watching(numbers):
        for _ in range(50):
            for number in numbers:
                sampler.add_task(number, number, {"memory": 100})
            for number in numbers:
                # None yet, if a sampler is just looking for the first time.
                assert sampler.remove_task(number).processes <= 1

    with ThreadPoolExecutor(5) as pool:
        samplers = [pool.submit(sampling) for _ in range(2)]
        watchers = [pool.submit(watching, range(first, 50, 3)) for first in range(3)]
        wait(watchers)
        watchers_done.set()
    for future in samplers + watchers:
        future.result()
    assert sampler._tasks == {}


# Disk


def test_sandbox_files_are_summed(tmp_path):
    """The files of a sandbox are added up."""
    box = tmp_path / "box"
    (box / "deep" / "er").mkdir(parents=True)
    (box / "a").write_bytes(b"x" * 1000)
    (box / "deep" / "er" / "b").write_bytes(b"x" * 500)
    (box / "link").symlink_to("/")
    with open(box / "sparse", "wb") as file:
        file.truncate(1 << 30)
    assert sum_file_sizes(str(box)) == 1500 + (1 << 30)


def test_linked_inputs_belong_to_cache(tmp_path):
    """Inputs linked from the cache belong to the cache."""
    box = tmp_path / "box"
    box.mkdir()
    (tmp_path / "cached").write_bytes(b"x" * 1000)
    os.link(tmp_path / "cached", box / "input")
    (box / "own").write_bytes(b"x" * 10)
    os.link(box / "own", box / "own too")
    assert sum_file_sizes(str(box)) == 10


def test_huge_sandbox_is_sampled_in_part(tmp_path):
    """A sandbox with very many files is only looked at in part."""
    for number in range(30):
        (tmp_path / str(number)).write_bytes(b"x")
    assert sum_file_sizes(str(tmp_path), max_entries=10) == 10
    assert sum_file_sizes(str(tmp_path / "gone")) == 0


def test_full_sandbox_is_reported_rarely_sampled(world, sampler, tmp_path):
    """A full sandbox is told and looked at seldom."""
    world.process(7, 1)
    sampler.add_task(1, 7, {"disk": 2}, str(tmp_path))
    assert sampler.sample() == []
    Path(tmp_path, "out").write_bytes(b"x" * (3 * MB))
    assert sampler.sample() == []
    world.now += resource_monitor.DISK_INTERVAL_S
    assert sampler.sample() == [LimitExceeded(1, "disk", 2, 3)]
    assert sampler.remove_task(1).disk_mb == 3


def test_without_a_limit_no_sandbox_is_walked(world, sampler, tmp_path):
    Path(tmp_path, "out").write_bytes(b"x")
    world.process(7, 1)
    sampler.add_task(1, 7, {"disk": None}, str(tmp_path))
    sampler.sample()
    assert sampler.remove_task(1).disk_mb is None
