"""The four stacks: what was published of them, what is assumed, and how each is simulated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vinecore.simulate import Cluster, Costs, Storage, Workload, generate
from vinecore.simulate.settings import GBIT, MS

PAPER = (
    "Sly-Delgado, Tovar, Zhou, Thain: Reshaping High Energy Physics Applications for Near-Interactive Execution Using TaskVine, "
    "SC24 (par.nsf.gov/biblio/10567688), and its summary on cclnd.blogspot.com, December 2024"
)
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Assumed:
    """What nobody has published, as far as it was found.

    Attributes
    ----------
    seconds : float
        Mean time a map task computes, on one core.
    result : float
        Bytes of a result.
    """

    seconds: float
    result: float


CENTRAL, LOW, HIGH = Assumed(8.0, 100 * MB), Assumed(2.0, 50 * MB), Assumed(30.0, 200 * MB)
"""The middle, and both ends."""


@dataclass(frozen=True)
class Scale:
    """How large the study is; the published one by default.

    Attributes
    ----------
    tasks, workers, cores : int
        Published: 17,500 tasks, 200 workers of 12 cores.
    input_bytes : float
        Published for DV3 with 17 thousand tasks: 1.5 TB.
    """

    tasks: int = 17_500
    workers: int = 200
    cores: int = 12
    input_bytes: float = 1.5e12

    @property
    def is_published(self) -> bool:
        """Whether the published times are of this."""
        return self == Scale()


PUBLISHED = Scale()
QUICK = Scale(700, 8, 12, 1.5e12 * 700 / 17_500)

SPREAD = 0.5
MERGE_S = 2.0
FAN_IN = 20
LINK = 10 * GBIT
LATENCY_S = 0.2 * MS
HDFS = Storage(bandwidth=10 * GB, stream=100 * MB, latency_s=10 * MS)
VAST = Storage(bandwidth=20 * GB, stream=1 * GB, latency_s=1 * MS)
DISK_MB = 100_000
PEER_RATE = 87.0
"""Vertices per second that TaskVine's DaskVine did on two cores, 67 to 108: what its manager spends on each is this study's other manager."""


@dataclass(frozen=True)
class Stack:
    """A rung of the ladder.

    Attributes
    ----------
    published_s : float or None
        The published makespan.
    published_pair : float or None
        The published most bytes between two machines.
    calls, warm, central : bool
        Whether tasks are function calls; if not, whether they are forked from a warm Python; whether all results go through the manager.
    """

    name: str
    title: str
    published_s: float | None
    published_pair: float | None
    storage: Storage
    central: bool = False
    calls: bool = False
    warm: bool = False

    def workload(self, scale: Scale, assumed: Assumed, seed: int) -> Workload:
        """Map tasks and a tree of merges; equal in all stacks but for how a task is run."""
        return generate(
            "tree",
            scale.tasks,
            seconds=assumed.seconds,
            reduce_seconds=MERGE_S,
            size=assumed.result,
            reads=scale.input_bytes / scale.tasks,
            fan_in=FAN_IN,
            spread=SPREAD,
            library="analysis" if self.calls else "",
            seed=seed,
        )

    def cluster(self, scale: Scale) -> Cluster:
        """Return the machines of this stack."""
        return Cluster(
            scale.workers,
            scale.cores,
            disk_mb=DISK_MB,
            bandwidth=LINK,
            manager_bandwidth=LINK,
            latency_s=LATENCY_S,
            storage=self.storage,
            peer_transfers=not self.central,
            results_to_manager=self.central,
            # Work Queue does not look where a result was made: the manager has them all
            scheduler="worst" if self.central else "files",
        )

    def costs(self, measured: Costs, *, other_manager: bool = False) -> Costs:
        """Return the costs of operations, with this manager or with one as slow as the peer's."""
        return dataclasses.replace(
            measured, warm_fork=self.warm, task_s=1 / PEER_RATE if other_manager else 0.0
        )


STACKS = (
    Stack("1", "all through the manager, HDFS", 3545, 40 * GB, HDFS, central=True),
    Stack("2", "all through the manager, VAST", 3378, None, VAST, central=True),
    Stack("3", "peer transfers, a Python for each task", 730, 4 * GB, VAST),
    Stack("3b", "the same, forked from a warm Python", None, None, VAST, warm=True),
    Stack("4", "peer transfers, function calls", 272, None, VAST, calls=True),
)


def provenance(costs: Costs, modules: tuple[str, ...]) -> list[tuple[str, str, str, str]]:
    """Every number: what it is, how much, whether it was published, measured or assumed, and from where it is."""
    imported = ", ".join(modules) or "nothing: the HEP stack is not installed"
    us, ms = 1e6, 1e3
    return [
        ("tasks, workers, cores of each", "17,500, 200, 12", "published", "the paper"),
        ("input", "1.5 TB", "published", "slides of November 2025 on DV3 with 17 thousand tasks"),
        ("makespans", "3545, 3378, 730, 272 s", "published", "the paper, its summary"),
        ("most between two machines", "40 GB, 4 GB", "published", "the summary: Work Queue, TaskVine"),
        ("interpreter", f"{costs.interpreter_s * ms:.0f} ms", "measured", "CPU time of python -c pass"),
        ("imports", f"{costs.imports_s:.2f} s", "measured", f"CPU time, from a warm disk cache: {imported}"),
        ("a task from a warm Python", f"{costs.fork_s * ms:.1f} ms", "measured", "no-op PythonTasks, one slot"),
        ("a call beside its function", f"{costs.call_s * us:.0f} us", "measured", "no-op FunctionCalls, one slot"),
        ("manager, an event", f"{costs.event_s * us:.0f} us", "measured", "CPU time of its loop, of calls"),
        ("manager, a message", f"{costs.message_s * us:.1f} us", "measured", "encoding of a call"),
        ("manager, a turn of its loop", f"{costs.loop_iteration_s * us:.0f} us", "measured", "calls one by one against calls together"),
        ("another manager, a task", f"{ms / PEER_RATE:.1f} ms", "measured before", f"TaskVine's DaskVine, {PEER_RATE:.0f} vertices/s on two cores"),
        ("a map task computes", f"{CENTRAL.seconds:g} s ({LOW.seconds:g} to {HIGH.seconds:g})", "assumed", "see the README"),
        ("how much that differs", f"sigma {SPREAD}", "assumed", "lognormal"),
        ("a merge computes", f"{MERGE_S:g} s", "assumed", f"{FAN_IN} results"),
        ("results merged at a time", f"{FAN_IN}", "assumed", "Coffea's treereduction"),
        ("a result", f"{CENTRAL.result / MB:.0f} MB ({LOW.result / MB:.0f} to {HIGH.result / MB:.0f})", "assumed", "see the README"),
        ("links of workers and manager", "10 Gbit/s, 0.2 ms", "assumed", ""),
        ("HDFS", "10 GB/s, 100 MB/s a reader, 10 ms", "assumed", ""),
        ("VAST", "20 GB/s, 1 GB/s a reader, 1 ms", "assumed", ""),
        ("workers", "all there from the beginning, none lost", "assumed", ""),
    ]  # fmt: skip
