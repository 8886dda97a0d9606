"""What HTCondor's commands say, and when they are called; a real pool is in tests/cluster."""

from __future__ import annotations

import json
import os

import pytest
from vineworker import options

from vinecore.factory import condor
from vinecore.factory.adaptive import IDLE


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands of HTCondor that note how they are called; gives what the queue says, and what was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("condor_submit", "condor_q", "condor_rm"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\ntest {name} = condor_q && cat {tmp_path}/queue\ntrue\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def queue(**job):
        (tmp_path / "queue").write_text(json.dumps([{"ClusterId": 1, "ProcId": 0, **job}]))

    return queue, lambda: (tmp_path / "calls").read_text().splitlines()


@pytest.fixture
def pilots(commands, tmp_path):
    """One that was submitted."""
    found = condor.HTCondor(tmp_path, leftover="vine-1")
    found._live.add("1.0")
    return found


def test_job_waiting_without_reason_has_none(commands, pilots):
    """A job that waits without a reason has none."""
    queue, _called = commands
    queue(JobStatus=1, HoldReason=None, HoldReasonCode=None, RemoveReason=None)
    assert pilots.status() == {"1.0": condor.JobStatus(IDLE)}


def test_only_stubborn_jobs_are_removed_forcibly(commands, pilots, monkeypatch):
    """Only what does not end by itself is taken out by force."""
    queue, called = commands
    queue(JobStatus=3)
    monkeypatch.setattr(condor, "CLOSE_S", 1.0)
    pilots.close()
    assert not [line for line in called() if "-forcex" in line]
    monkeypatch.setattr(condor, "FORCE_S", 0.0)
    pilots.close()
    assert len([line for line in called() if "-forcex" in line]) == 1


def test_worker_drains_before_forced_removal():
    """A worker has handed over what it has before its job is taken out by force."""
    assert 2 * options.DEFAULT_GRACE_S < condor.FORCE_S < condor.CLOSE_S
