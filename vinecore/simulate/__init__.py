"""The scheduler with simulated workers, clock, network and failures.

`simulate` runs the manager's real `Scheduler` and, for every worker, the worker's real state machine. Simulated is what surrounds them: messages
take time, links are shared, tasks last as long as the workload says, processes and imports cost what they were measured to cost, and
workers come late or are lost. Nothing is computed and nothing is moved, so a thousand workers fit into one process.

``python -m vinecore.simulate --help`` is the same from the command line.
"""

from vinecore.simulate.generators import GRAPHS, generate
from vinecore.simulate.replay import RecordedRun, load_recording
from vinecore.simulate.report import Report
from vinecore.simulate.settings import Cluster, Costs, Failures, Storage
from vinecore.simulate.simulation import SimulationStalled, simulate
from vinecore.simulate.workload import SimulatedFile, SimulatedTask, Workload, WorkloadError, load

__all__ = [
           "GRAPHS",
           "Cluster",
           "Costs",
           "Failures",
           "RecordedRun",
           "Report",
           "SimulatedFile",
           "SimulatedTask",
           "SimulationStalled",
           "Storage",
           "Workload",
           "WorkloadError",
           "generate",
           "load",
           "load_recording",
           "simulate",
]  # fmt: skip
