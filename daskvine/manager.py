"""`DaskVine`: a vine manager that is a dask scheduler."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask.utils import funcname

from daskvine.annotations import collect_annotations, read_annotations
from daskvine.computation import GraphComputation
from daskvine.execution_settings import ExecutionSettings
from daskvine.graph import Graph, arrange_results, flatten_keys, gc_disabled, to_task_spec_graph
from daskvine.options import Options
from daskvine.shared_state import SharedState
from daskvine.shuffle import SHUFFLE_METHOD, replace_disk_shuffles
from daskvine.tree_reduction import rewrite_wide_reductions
from vinecore import validators
from vinecore.factory import Factory
from vinecore.manager.manager import Manager
from vinecore.manager.startup import DEFAULT_PORT
from vinecore.protocol import temporary_folders
from vinecore.security import shared_secret

log = logging.getLogger("daskvine")

MAX_LOCAL_WORKERS = 10_000
OTHER_SPELLINGS = {
    **dict.fromkeys(("n_workers", "num_workers", "nworkers", "processes"), "workers"),
    **dict.fromkeys(("threads_per_worker", "nthreads", "threads", "ncores"), "cores"),
    **dict.fromkeys(("memory", "memory_limit"), "memory_mb"),
    **dict.fromkeys(("disk", "disk_limit"), "disk_mb"),
    **dict.fromkeys(("local_directory", "scratch_dir"), "workspace"),
}
"""What other ways of starting workers call the options of `DaskVine.local`."""
LOOPBACK = "127.0.0.1"


class DaskVine(Manager):
    """Computes dask collections on the workers that connect to it.

    Parameters
    ----------
    port : int or (int, int)
        The port to which workers connect, as for `vinecore.Manager`.
    name : str or None
        The name by which workers find the manager.
    **more : object
        Further parameters of `vinecore.Manager`.

    Attributes
    ----------
    last_run : GraphComputation or None
        The latest computation: ``vertices`` and ``executed`` are its number of vertices, and of
        those that ran.

    Raises
    ------
    TypeError, ValueError, OSError
        As for `vinecore.Manager`.

    Examples
    --------
    >>> with DaskVine.local(cores=2) as m:  # doctest: +SKIP
    ...     hist.compute(scheduler=m.get, task_mode="function-calls", lib_resources={"slots": 2})
    """

    def __init__(self, port: Any = DEFAULT_PORT, name: str | None = None, **more: Any) -> None:
        super().__init__(port, name, **more)
        self.shared_state = SharedState(self)
        self.last_run: GraphComputation | None = None
        self._computations: set[GraphComputation] = set()
        self.on_close(SHUFFLE_METHOD.enable())
        self.on_close(self.shared_state.folders.close)

    @classmethod
    def local(
        cls,
        workers: int = 1,
        cores: int | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
        *,
        workspace: str | Path | None = None,
        **more: Any,
    ) -> DaskVine:
        """Start a manager on this machine, with workers of its own.

        Parameters
        ----------
        workers : int
            Number of worker processes; one that exits is replaced. With 0 there are none until
            `scale` is called.
        cores : int or None
            Cores of each worker; None for an equal share of the cores of this machine.
        memory_mb, disk_mb : int or None
            Memory and disk of each worker in MB; None for an equal share of this machine's.
        workspace : str, Path or None
            A folder in which the workers keep files for later managers: results of ``reuse=True``,
            and files of the cache level "forever". None keeps nothing.
        **more : object
            Further parameters of `DaskVine`.

        Returns
        -------
        DaskVine
            The manager, for a ``with`` statement, or to be closed with `close`. This ends the
            workers and removes all their files.

        Raises
        ------
        TypeError, ValueError
            An option is unknown, has a wrong type or is out of bounds.
        """
        _refuse_unknown_options(more)
        workers = validators.whole("workers", workers, 0, MAX_LOCAL_WORKERS)
        cores = None if cores is None else validators.whole("cores", cores, 1)
        memory_mb, disk_mb = (
            validators.megabytes("memory_mb", memory_mb),
            validators.megabytes("disk_mb", disk_mb),
        )
        if workspace is not None:
            workspace = validators.path("workspace", workspace)
        folder = Path(temporary_folders.create_folder("daskvine-"))
        secret = folder / "secret"
        if workspace is not None:
            workspace = Path(workspace).expanduser()
            workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
            secret = workspace / "secret"  # a manager with another secret does not get the kept files
        shared_secret.write_secret(secret)
        try:
            # not announced, because no other process has its secret
            own = {"password_file": secret, "registry": False, "catalog": False}
            m = cls(**{"port": 0, "address": LOOPBACK, "shutdown": True, **own, **more})
        except BaseException:
            temporary_folders.remove_folder(str(folder))
            raise
        m.on_close(lambda: temporary_folders.remove_folder(str(folder)))
        m.shared_state.folders.is_local_only = more.get("address", LOOPBACK) == LOOPBACK
        if cores is None:
            cores = max(1, count_available_cores() // max(1, workers))
        try:
            m.factory = Factory(
                "local",
                manager=m,
                min_workers=workers,
                max_workers=workers,
                cores=cores,
                memory=memory_mb,
                disk=disk_mb,
                workspace=workspace,
                keep_workspace=workspace is not None,
            ).start()
        except BaseException:
            m.close()
            raise
        m.on_close(m.factory.stop)
        m.shared_state.workers_survive_manager = workspace is not None
        m.shared_state.workers_stop_with_manager = True
        if m.resume and workspace is None:
            log.warning(
                "resume=True will find no results of these workers, which end with their manager: add workspace='my-cache', or start workers with vine_worker"
            )
        m.expect_workers(workers)
        return m

    # ---- the scheduler for dask

    def get(self, dsk: Any = None, keys: Any = None, **kwargs: Any) -> Any:
        """Compute the keys of a graph, as a scheduler of dask.

        Parameters
        ----------
        dsk : mapping or None
            A graph in any form that dask passes. Without one, this method itself is returned, so
            that ``scheduler=m.get()`` works, too.
        keys : hashable or nested list of hashable
            The keys to compute.
        **kwargs : object
            The options; ``docs/options.md`` lists them.

        Returns
        -------
        object
            The value of the key, or tuples of values nested as the keys are.

        Raises
        ------
        TypeError, ValueError
            An option is unknown, or has a wrong value.
        RuntimeError
            The manager is closed.
        Exception
            The exception of a vertex, with its own type, the remote traceback, and notes that name
            the vertex and the worker.
        """
        if dsk is None:
            return self.get
        self.ensure_open()
        options = Options.parse(kwargs)
        with gc_disabled():
            annotated = collect_annotations(dsk)
            nodes = replace_disk_shuffles(to_task_spec_graph(dsk))
            if options.reconstruct is not False:
                nodes = rewrite_wide_reductions(nodes, options.merge_size if options.reconstruct else None)
            graph = Graph(nodes, flatten_keys(keys))
        annotations = read_annotations(annotated, graph, options)
        settings = ExecutionSettings.prepare(self.shared_state, options)
        run = GraphComputation(graph, settings, annotations, self.category_name)
        self._computations.add(run)
        self.last_run = run
        try:
            results = run.compute()
        finally:
            self._computations.remove(run)
        return arrange_results(keys, _ResultsByKey(graph, results))

    __call__ = get

    def category_name(self, node: Any) -> str:
        """Return the category of a vertex: the name of its function; a subclass may choose another.

        Parameters
        ----------
        node : object
            The vertex, as dask has it in its graph.

        Returns
        -------
        str
            The category, for `set_category_mode`, ``resources_mode`` and reports.
        """
        return str(funcname(getattr(node, "func", type(node))))

    @property
    def when_first_task_completed(self) -> float | None:
        """The time, in seconds since the epoch, at which the latest computation had its first result."""
        return None if self.last_run is None else self.last_run.first_completed_at

    def workflow_summary(self) -> None:
        """Print what the latest computation did: vertices, transfers and time."""
        if self.last_run is None:
            sys.stdout.write("nothing has been computed\n")
        else:
            self.last_run.print_summary()

    def _progress_reports_stalls(self) -> bool:
        # Their progress displays report them.
        return bool(self._computations)


class _ResultsByKey(dict[Any, Any]):
    """Results by any key that was asked for, aliases included."""

    def __init__(self, graph: Graph, results: dict[Any, Any]) -> None:
        super().__init__(results)
        self._graph = graph

    def __missing__(self, key: Any) -> Any:
        return self[self._graph.resolve(key)]


def _refuse_unknown_options(given: Mapping[str, Any]) -> None:
    """Make sure that `DaskVine.local` knows these.

    Raises
    ------
    TypeError
        It does not know one; the message says which one may have been meant.
    """
    own = list(inspect.signature(DaskVine.local).parameters)
    known = [
        name
        for name in (*own, *inspect.signature(Manager.__init__).parameters)
        if name not in ("self", "more")
    ]
    for name in given:
        if name not in known:
            meant = OTHER_SPELLINGS.get(name)
            hint = f"; use {meant}=..." if meant else validators.suggest_name(name, known)
            msg = f"DaskVine.local has no option {name!r}{hint or '; it has: ' + ', '.join(known)}"
            raise TypeError(msg)


def count_available_cores() -> int:
    """Return how many cores this process may use.

    A batch system or a container often allows fewer than the machine has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
