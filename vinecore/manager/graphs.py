"""Graphs of tasks: the fast path into the scheduler for front ends such as `daskvine`.

A front end opens a graph, submits its tasks in slices, and waits for the end, while the server's thread
places the tasks of the first slices. All events of a graph go through its handle:

>>> with manager.open_graph("a histogram", total=2) as graph:  # doctest: +SKIP
...     graph.submit([first, second])
...     graph.submitted()
...     while (outcome := graph.wait(0.1)) is None:
...         print(graph.status())
...     content = graph.result("the name of a result")
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from vinecore.scheduler import events, instructions, queries
from vinecore.scheduler.queries import GraphStatus
from vinecore.scheduler.specs import FileSpec, GraphSpec, TaskSpec

if TYPE_CHECKING:
    from typing_extensions import Self

    from vinecore.manager.files import File
    from vinecore.protocol.transfer.types import Content
    from vinecore.server.server import ManagerServer

GraphOutcome = instructions.GraphFinished
FinishedTask = instructions.GraphTaskFinished


class GraphHandle:
    """A graph of tasks that is being computed; made by `Manager.open_graph`.

    All methods may be called in any thread, those that wait in one at a time.

    Parameters
    ----------
    server : ManagerServer
        The thread that owns the scheduler.
    spec : GraphSpec
        The graph as the scheduler gets it.
    task_numbers : iterator of int
        The numbers of the manager's tasks.
    session : str
        The common part of the names of this manager's own files.
    on_wait : callable
        Called whenever the program waits for the graph.
    on_close : callable
        Called with the graph's number when the handle is closed.

    Attributes
    ----------
    number : int
        The graph's number, which `TaskSpec.run` of its tasks has to be.
    allocate_task_number : callable
        Returns a number that no other task of the manager has, for `TaskSpec.task`.
    """

    def __init__(
        self,
        server: ManagerServer,
        spec: GraphSpec,
        *,
        task_numbers: Iterator[int],
        session: str,
        on_wait: Callable[[], None],
        on_close: Callable[[int], None],
    ) -> None:
        self.number = spec.number
        self.allocate_task_number: Callable[[], int] = task_numbers.__next__
        self._server, self._total, self._session = server, spec.size, session
        self._on_wait, self._on_close = on_wait, on_close
        self._finished = threading.Event()
        self._outcome: GraphOutcome | None = None
        self._finished_tasks: deque[FinishedTask] = deque()
        self._private_environments: list[str] = []
        self._closed = False

    def submit(self, tasks: Sequence[TaskSpec]) -> None:
        """Submit tasks in the order in which they should run.

        The method returns when the scheduler has taken them.

        Tasks may read results of tasks that are submitted later.

        Parameters
        ----------
        tasks : sequence of TaskSpec
            A slice of the graph; a few hundred tasks keep the server's thread responsive.
        """
        self._server.submit(list(tasks))

    def submitted(self) -> None:
        """Tell the scheduler that the last task was submitted; the graph cannot succeed before."""
        self._server.post_event(events.GraphSubmitted(self.number))

    def status(self) -> GraphStatus:
        """Return the progress of the graph, after everything that has been submitted so far.

        Returns
        -------
        GraphStatus
            The numbers of tasks, workers and bytes.
        """
        number, total = self.number, self._total
        return self._server.query(lambda scheduler: queries.graph_status(scheduler, number, total))

    def is_finished(self) -> bool:
        """Return whether the graph has ended.

        Returns
        -------
        bool
            True for any outcome.
        """
        return self._finished.is_set()

    def wait(self, timeout_s: float) -> GraphOutcome | None:
        """Wait until the graph has ended.

        Parameters
        ----------
        timeout_s : float
            Duration in seconds.

        Returns
        -------
        GraphFinished or None
            The outcome; None if the graph has not ended in time.

        Raises
        ------
        RuntimeError
            The manager was closed meanwhile, or has stopped because of a defect.
        """
        if not self._finished.wait(timeout_s):
            self._server.ensure_open()
        self._on_wait()
        return self._outcome

    def finished_tasks(self) -> Iterator[FinishedTask]:
        """Yield the tasks that have ended since the last call.

        These are all tasks if the graph was opened with ``report_each_task``, and otherwise those
        whose workers have sent output for the user.

        Yields
        ------
        GraphTaskFinished
            A task that has ended.
        """
        while self._finished_tasks:
            yield self._finished_tasks.popleft()

    def result(self, name: str) -> Content:
        """Return the content of a file that the manager has.

        Parameters
        ----------
        name : str
            The cache name of the file.

        Returns
        -------
        bytes or str
            The content, or the path of a file with it.

        Raises
        ------
        FileNotFoundError
            The file was not among ``wanted_at_manager`` of any task that has succeeded.
        """
        content = self._server.store.find_object(name)
        if content is None:
            msg = f"the manager has no content of {name}: only files that a task has in wanted_at_manager come to it"
            raise FileNotFoundError(msg)
        return content

    def declare_private_environment(self, archive: File, task: int) -> str:
        """Declare an environment that a worker unpacks for one task, until the graph is closed.

        Parameters
        ----------
        archive : File
            The packed environment.
        task : int
            The number of the task.

        Returns
        -------
        str
            Its cache name, for `TaskSpec.environment`.
        """
        name = f"{archive.cache_name}-for-{self._session}-{task}"
        spec = FileSpec(name, archive=archive.cache_name, directory=True, peer_transfer=False)
        self._server.post_event(events.FilesDeclared([spec]))
        self._private_environments.append(name)
        return name

    def close(self) -> None:
        """Cancel unfinished tasks and release the graph's files. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._server.post_event(events.GraphClosed(self.number))
        self._server.post_event(events.FilesReleased(self._private_environments, prune=False))
        self._on_close(self.number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Called in the server's thread.

    def on_task_finished(self, finished: FinishedTask) -> None:
        """Keep a task that has ended for `finished_tasks`.

        Parameters
        ----------
        finished : GraphTaskFinished
            The task.
        """
        self._finished_tasks.append(finished)

    def on_finished(self, outcome: GraphOutcome) -> None:
        """Keep the outcome and wake up `wait`.

        Parameters
        ----------
        outcome : GraphFinished
            The outcome.
        """
        self._outcome = outcome
        self._finished.set()


class OpenGraphs:
    """The graphs of a manager that are open, which get what the scheduler reports of them.

    Parameters
    ----------
    server : ManagerServer
        The thread that owns the scheduler.
    task_numbers, session, on_wait
        As those of `GraphHandle`.
    """

    def __init__(
        self,
        server: ManagerServer,
        *,
        task_numbers: Iterator[int],
        session: str,
        on_wait: Callable[[], None],
    ) -> None:
        self._server, self._task_numbers, self._session = server, task_numbers, session
        self._on_wait = on_wait
        self._handles: dict[int, GraphHandle] = {}
        self._numbers = itertools.count(1)
        server.subscribe(instructions.GraphFinished, self._on_graph_finished)
        server.subscribe(instructions.GraphTaskFinished, self._on_task_finished)

    def open(self, spec: GraphSpec) -> GraphHandle:
        """Open a graph; the number of the specification is filled in.

        The handle is known before the scheduler gets the graph, so nothing that is reported of it is lost.
        """
        spec = spec._replace(number=next(self._numbers))
        handle = self._handles[spec.number] = GraphHandle(
            self._server,
            spec,
            task_numbers=self._task_numbers,
            session=self._session,
            on_wait=self._on_wait,
            on_close=self._on_closed,
        )
        self._server.post_event(events.GraphOpened(spec))
        return handle

    def _on_closed(self, number: int) -> None:
        self._handles.pop(number, None)

    def _on_graph_finished(self, outcome: GraphOutcome) -> None:
        handle = self._handles.get(outcome.graph)
        if handle is not None:
            handle.on_finished(outcome)

    def _on_task_finished(self, finished: FinishedTask) -> None:
        handle = self._handles.get(finished.graph)
        if handle is not None:
            handle.on_task_finished(finished)
