"""A real Slurm: one machine, in a Debian of its own that shares nothing with this one but the network."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.cluster import debian_container
from tests.cluster.batch_pools import Pool, free_port, furnish
from tests.harness.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGES = ("iproute2", "procps", "slurm-wlm")
CORES = 4

CONFIG = f"""\
ClusterName=vine
SlurmctldHost=HOST(127.0.0.1)
SlurmctldPort=CONTROL_PORT
SlurmdPort=NODE_PORT
SlurmUser=slurm
MailProg=/bin/true
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MaxArraySize=MOST_IN_ARRAY
KillWait=60
ReturnToService=2
NodeName=HOST NodeAddr=127.0.0.1 CPUs={CORES} RealMemory=8000 TmpDisk=16000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
MOST_IN_ARRAY = 3  # so that four pilots are more than one submission can have


class Slurm(Pool):
    """The pool."""

    def queue(self, state: str = "") -> list[str]:
        """The jobs of the pool that have not ended, or those in a state."""
        return self.root.run(
            "squeue", "--noheader", "--array", "--format=%i", *([f"--states={state}"] if state else [])
        ).split()


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[Slurm]:
    """A Slurm that is ready to run jobs; afterwards nothing of it is left."""
    with debian_container.opened(folder / "debian", *PACKAGES) as root:
        furnish(root)
        config = CONFIG
        for name, value in {
            "HOST": socket.gethostname().partition(".")[0],
            "CONTROL_PORT": free_port(),
            "NODE_PORT": free_port(),
            "MOST_IN_ARRAY": MOST_IN_ARRAY,
        }.items():
            config = config.replace(name, str(value))
        (root.path / "etc/slurm/slurm.conf").write_text(config)
        (root.path / "etc/slurm/cgroup.conf").write_text("CgroupPlugin=disabled\n")
        root.run("mungekey", "--create", "--force")
        root.run("mkdir", "--parents", "/run/munge")
        root.run(
            "chown", "munge:munge", "/etc/munge/munge.key", "/run/munge", "/var/lib/munge", "/var/log/munge"
        )
        root.run("chown", "slurm:slurm", "/var/lib/slurm/slurmctld", "/var/log/slurm")
        root.run("munged", user="munge")
        root.run("slurmctld")
        root.run("slurmd")
        wait_until(
            lambda: "idle" in root.run("sinfo", "--noheader", "--format=%t", check=False).split(),
            "the node to be ready",
            120,
        )
        try:
            yield Slurm(root, folder)
        finally:
            subprocess.run(root.command("scontrol", "shutdown"), capture_output=True, check=False, timeout=60)
