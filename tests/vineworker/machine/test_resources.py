"""What a worker finds on machines that are made of files, and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vineworker.machine import resources
from vineworker.machine.resources import detect_resources, find_cgroups

GB = 1 << 30
V1_UNLIMITED = "9223372036854771712"


class Machine:
    """A root folder with the few files that are read."""

    def __init__(self, root: Path, memory_gb: int = 64) -> None:
        self.root = root
        self.mounts: list[str] = []
        self.write("proc/meminfo", f"MemTotal:       {memory_gb * GB // 1024} kB\nMemFree: 1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mount(self, where: str, kind: str, options: str, seen: str = "/") -> None:
        self.mounts.append(f"32 31 0:29 {seen} {where} rw,nosuid shared:9 - {kind} {kind} {options}\n")
        self.write("proc/self/mountinfo", "".join(self.mounts))

    def v2(self, path: str, seen: str = "/", where: str = "/sys/fs/cgroup") -> None:
        self.mount(where, "cgroup2", "rw,nsdelegate", seen)
        self.write("proc/self/cgroup", f"0::{path}\n")

    def v1(self, path: str) -> None:
        self.mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
        self.mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory")
        self.mount("/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd")
        self.write("proc/self/cgroup", f"9:name=systemd:{path}\n4:memory:{path}\n3:cpu,cpuacct:{path}\n")

    def detect(self, **said: object) -> resources.DetectedResources:
        said = {"environ": {}, "gpus": 0, **said}
        return detect_resources(str(self.root), root=str(self.root), **said)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight cores, all of them allowed, and 64 GB."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Machine(tmp_path)


def test_without_cgroups_it_is_the_machine(machine):
    found = machine.detect()
    assert (found.cores, found.memory_mb) == (8, 64 * 1024)
    assert found.notes == []


def test_the_affinity_counts(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    found = machine.detect()
    assert found.cores == 3
    assert "3 of 8 cores" in found.notes[0]


def test_never_more_cores_than_the_machine_has(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    machine.v2("/job")
    machine.write("sys/fs/cgroup/job/cpu.max", "3200000 100000\n")
    assert machine.detect().cores == 8


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("junk\n", 8),
    ],
)
def test_cgroup_quota_rounds_down_to_core(machine, text, cores):
    """The quota of version 2 is rounded down to one core at least."""
    machine.v2("/job")
    machine.write("sys/fs/cgroup/job/cpu.max", text)
    found = machine.detect()
    assert found.cores == cores
    assert bool(found.notes) == (cores < 8)


def test_lowest_limit_of_ancestors_counts(machine):
    """The lowest limit on the way up counts."""
    machine.v2("/slurm/job_7/step_0")
    machine.write("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000\n")
    machine.write("sys/fs/cgroup/slurm/job_7/cpu.max", "300000 100000\n")
    machine.write("sys/fs/cgroup/slurm/cpu.max", "600000 100000\n")
    machine.write("sys/fs/cgroup/slurm/job_7/step_0/memory.max", f"{10 * GB}\n")
    machine.write("sys/fs/cgroup/slurm/job_7/memory.max", "max\n")
    machine.write("sys/fs/cgroup/slurm/job_7/memory.high", f"{6 * GB}\n")
    machine.write("sys/fs/cgroup/slurm/memory.max", f"{8 * GB}\n")
    found = machine.detect()
    assert (found.cores, found.memory_mb) == (3, 6 * 1024)
    assert len(found.notes) == 2
    assert all("slurm/job_7" in note for note in found.notes)


def test_the_limits_of_version_1(machine):
    machine.v1("/condor/slot1")
    machine.write("sys/fs/cgroup/cpu,cpuacct/condor/slot1/cpu.cfs_quota_us", "-1\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/condor/slot1/cpu.cfs_period_us", "100000\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/condor/cpu.cfs_quota_us", "200000\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/condor/cpu.cfs_period_us", "50000\n")
    machine.write("sys/fs/cgroup/memory/condor/slot1/memory.limit_in_bytes", f"{3 * GB}\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{V1_UNLIMITED}\n")
    found = machine.detect()
    assert (found.cores, found.memory_mb) == (4, 3 * 1024)


def test_version_1_without_limits_is_the_machine(machine):
    machine.v1("/")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{V1_UNLIMITED}\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    found = machine.detect()
    assert (found.cores, found.memory_mb, found.notes) == (8, 64 * 1024, [])


def test_both_versions_side_by_side(machine):
    machine.v1("/a")
    machine.mount("/sys/fs/cgroup/unified", "cgroup2", "rw")
    machine.write("proc/self/cgroup", "4:memory:/a\n0::/b\n")
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{5 * GB}\n")
    machine.write("sys/fs/cgroup/unified/b/cpu.max", "100000 100000\n")
    found = machine.detect()
    assert (found.cores, found.memory_mb) == (1, 5 * 1024)


def test_container_path_is_relative_to_mount(machine):
    """In a container that sees its own part the path is taken from there."""
    machine.v2("/docker/abc/inner", seen="/docker/abc")
    machine.write("sys/fs/cgroup/inner/cpu.max", "500000 100000\n")
    machine.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert machine.detect().cores == 2


@pytest.mark.parametrize("path", ["/kubepods/pod1/gone", "/../../outside"])
def test_invisible_path_means_mount_point(machine, path):
    """A path that is not visible means the mount point."""
    machine.v2(path)
    machine.write("sys/fs/cgroup/memory.max", f"{2 * GB}\n")
    assert machine.detect().memory_mb == 2048
    assert find_cgroups(str(machine.root))[0].folders == [str(machine.root / "sys/fs/cgroup")]


def test_limit_above_machine_memory_is_ignored(machine):
    """A limit above the memory of the machine is none."""
    machine.v2("/")
    machine.write("sys/fs/cgroup/memory.max", f"{640 * GB}\n")
    found = machine.detect()
    assert (found.memory_mb, found.notes) == (64 * 1024, [])


def test_disk_is_half_of_free_space(machine, monkeypatch):
    """Disk is half of what is free even before the workspace exists."""
    asked = []

    def disk_usage(path):
        asked.append(path)
        return type("usage", (), {"free": 300 * (1 << 20)})

    monkeypatch.setattr(resources.shutil, "disk_usage", disk_usage)
    found = detect_resources(str(machine.root / "not" / "yet"), gpus=0, root=str(machine.root), environ={})
    assert found.disk_mb == 150
    assert asked == [str(machine.root)]


def test_given_amount_beats_detected_with_note(machine):
    """What is said counts and more than was found is noted."""
    found = machine.detect(cores=2, memory_mb=1000, disk_mb=5)
    assert (found.cores, found.memory_mb, found.disk_mb, found.notes) == (2, 1000, 5, [])
    over = machine.detect(cores=100)
    assert over.cores == 100
    assert over.notes == ["100 cores are asked for, but only 8 were found here; 100 are offered."]


def test_the_environment_gives_defaults(machine):
    env = {"CORES": "3", "MEMORY": "2000.0", "DISK": "all", "GPUS": "lots"}
    found = machine.detect(environ=env, gpus=None, memory_mb=500)
    assert (found.cores, found.memory_mb, found.gpus) == (3, 500, 0)
    assert found.disk_mb > 0
    assert found.notes == ["GPUS='lots' in the environment is not a whole number, and was ignored."]
    assert machine.detect(environ={"CORES": "9"}).notes[0].startswith("9 cores are set by CORES, but only 8")


def test_less_than_zero_means_find_out(machine):
    assert machine.detect(cores=-1).cores == 8


def test_zero_means_detect_except_for_gpus(machine, nvidia_smi, tmp_path):
    """Zero cores memory or disk mean find out and zero gpus none."""
    usual = machine.detect()
    path = {"PATH": str(tmp_path / "bin")}
    zeros = dict.fromkeys(("CORES", "MEMORY", "DISK", "GPUS"), "0")
    for found in (
        machine.detect(environ={**path, **zeros}, gpus=None),
        machine.detect(cores=0, memory_mb=0, disk_mb=0, gpus=0, environ=path),
    ):
        assert found[:3] == (8, usual.memory_mb, found.disk_mb)
        assert found.disk_mb > 0
        assert (found.gpus, found.notes) == (0, usual.notes)


def test_environment_amounts_may_have_units(machine):
    """Memory and disk of the environment may have a unit."""
    found = machine.detect(environ={"MEMORY": "1GB", "DISK": "2.5 g"})
    assert (found.memory_mb, found.disk_mb) == (1000, 2500)


@pytest.mark.parametrize(
    ("name", "value"),
    [("CORES", "0.5"), ("CORES", "inf"), ("CORES", "1e300"), ("MEMORY", "nan"), ("DISK", "much")],
)
def test_invalid_environment_amounts_are_noted(machine, name, value):
    """What the environment says and is no amount is noted."""
    (note,) = machine.detect(environ={name: value}).notes
    assert note.startswith(f"{name}={value!r} in the environment is not ")


# Gpus


@pytest.fixture
def nvidia_smi(tmp_path):
    """A folder for PATH with an nvidia-smi that lists two devices."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(script: str) -> str:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return str(folder)

    install("echo 'GPU 0: A (UUID: GPU-a)'\necho '  MIG 1g: (UUID: MIG-x)'\necho 'GPU 1: B (UUID: GPU-b)'")
    return install


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        (None, 2),
        ("0", 1),
        ("0,1", 2),
        ("1,1", 1),
        ("0,7,1", 1),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("GPU-a", 1),
    ],
)
def test_gpus_are_those_listed_and_visible(machine, nvidia_smi, tmp_path, visible, gpus):
    env = {"PATH": str(tmp_path / "bin")}
    if visible is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible
    assert machine.detect(gpus=None, environ=env).gpus == gpus


def test_without_nvidia_smi_there_are_no_gpus(machine):
    found = machine.detect(gpus=None, environ={"PATH": str(machine.root)})
    assert (found.gpus, found.notes) == (0, [])


@pytest.mark.parametrize("script", ["exit 9", "exec sleep 60"])
def test_failing_nvidia_smi_is_noted(machine, nvidia_smi, monkeypatch, script):
    """An nvidia smi that fails or hangs is noted."""
    monkeypatch.setattr(resources, "NVIDIA_SMI_TIMEOUT_S", 0.2)
    path = nvidia_smi(script) + os.pathsep + os.environ["PATH"]
    found = machine.detect(gpus=None, environ={"PATH": path})
    assert found.gpus == 0
    assert "nvidia-smi failed" in found.notes[0]


# This machine


def in_a_process(*prefix: str, before: str = "") -> dict[str, object]:
    code = (
        f"import json, os; from vineworker.machine.resources import detect_resources; {before}\n"
        "print(json.dumps(detect_resources('.', gpus=0, environ={})._asdict()))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(resources.__file__).parents[1])}
    done = subprocess.run([*prefix, sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def test_this_machine_has_something_to_offer():
    found = detect_resources(".", gpus=0, environ={})
    assert 1 <= found.cores <= os.cpu_count()
    assert found.memory_mb > 0
    assert found.disk_mb > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_process_bound_to_core_finds_one():
    """A process that is bound to one core finds one."""
    found = in_a_process(before="os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])")
    assert found["cores"] == 1
