"""The settings of a worker, from its command line."""

from __future__ import annotations

from typing import NamedTuple, Optional

from vineworker.machine.resources import DetectedResources


class WorkerSettings(NamedTuple):
    """Settings of one worker process.

    Attributes
    ----------
    parent
        The process that the worker shall not outlive.
    keep_workspace
        Whether objects of the cache level "forever" stay for the next worker in the workspace.
    wall_time_s
        How long the worker may live.
    grace_s
        For handing over objects that only this worker has.
    stdin_heartbeat_s
        The program that has started the worker writes to its standard input at least so often.
    transfer_ports
        The lowest and the highest port for peers; zeros for any.
    contact
        Address that peers are told to connect to, as in `messages.Hello`.
    transfer_address
        Address on which the worker listens for peers; "" for all.
    transfer_threads
        How many objects are fetched at the same time.
    task_wrapper
        A command that runs the processes of tasks and libraries; "" for none.
    backoff_s
        The shortest and the longest pause before the next try to reach a manager.
    """

    secret: bytes
    resources: DetectedResources
    workspace: str
    idle_timeout_s: float = 900.0
    single_shot: bool = False
    features: tuple[str, ...] = ()
    parent: Optional[int] = None
    keep_workspace: bool = False
    connect_timeout_s: float = 900.0
    wall_time_s: Optional[float] = None
    grace_s: float = 25.0
    stdin_heartbeat_s: Optional[float] = None
    transfer_ports: tuple[int, int] = (0, 0)
    contact: str = ""
    transfer_address: str = ""
    transfer_threads: int = 8
    task_wrapper: str = ""
    backoff_s: tuple[float, float] = (0.2, 5.0)
