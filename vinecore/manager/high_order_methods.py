"""The part of `Manager` that calls functions with many arguments: map, pair and reduce."""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vinecore import validators
from vinecore.manager.files import File
from vinecore.manager.python_tasks import FunctionCall, PythonTask
from vinecore.manager.task_cache_methods import TaskCacheMethods
from vinecore.manager.tasks import Task
from vinecore.protocol.chunks import EachElement
from vinecore.scheduler import events


class ReportedTask(Task):
    """A task whose end is reported here instead of through `wait`.

    Attributes
    ----------
    on_end
        Called in the server's thread.
    """

    has_future = True
    on_end: Callable[[], None]

    def end_future(self) -> None:
        """Report the end."""
        self.on_end()


class ChunkTask(ReportedTask, PythonTask):
    """A Python task that calls a function with some of the elements."""


class ChunkCall(ReportedTask, FunctionCall):
    """A call of a library with some of the elements."""


class HighOrderMethods(TaskCacheMethods):
    """Calls of one function with many arguments, which return when all of them have ended."""

    def map(self, fn: Callable[[Any], Any], seq: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """Call a function with each element of a sequence, in Python tasks of one core.

        Parameters
        ----------
        fn : callable
            The function.
        seq : iterable
            The elements.
        chunksize : int
            The number of elements of a task.

        Returns
        -------
        list
            The values, in the order of the elements, as ``list(map(fn, seq))``.

        Raises
        ------
        Exception
            The exception of the function for the first element for which it raises one. The tasks
            of later elements are cancelled.
        TypeError, ValueError
            ``fn`` cannot be called, or ``chunksize`` is no whole number of 1 or more.

        Notes
        -----
        If the program is interrupted, the tasks are cancelled. Other tasks of the manager run
        meanwhile, and are not returned here.
        """
        return self._call_each(fn, seq, chunksize, None)

    def pair(self, fn: Callable[[tuple[Any, Any]], Any], seq1: Iterable[Any], seq2: Iterable[Any],
             chunksize: int = 1, env: File | str | None = None) -> list[Any]:  # fmt: skip
        """Call a function with each pair of an element of one sequence and one of another.

        Parameters
        ----------
        fn : callable
            The function of one argument, a tuple of two elements.
        seq1, seq2 : iterable
            The elements.
        chunksize : int
            The number of pairs of a task.
        env : File, str or None
            The environment in which the tasks run, or the path of its archive.

        Returns
        -------
        list
            The values, as ``list(map(fn, itertools.product(seq1, seq2)))``.

        Raises
        ------
        Exception
            As for `map`.
        FileNotFoundError
            There is no such environment.
        """
        if env is not None and not isinstance(env, File):
            env = self.declare_poncho(env)
        return self._call_each(fn, itertools.product(seq1, seq2), chunksize, env)

    def tree_reduce(self, fn: Callable[[list[Any]], Any], seq: Iterable[Any], chunksize: int = 2) -> Any:
        """Reduce a sequence to one value with a function of a list.

        The function gets lists of neighbouring elements, then lists of its values, until one value
        is left. An element that is alone at the end of a round goes to the next round as it is.

        Parameters
        ----------
        fn : callable
            The function of a list of 2 to ``chunksize`` elements, such as `sum` or `max`.
        seq : iterable
            The elements; a single one is returned as it is.
        chunksize : int
            The largest number of elements of a call.

        Returns
        -------
        object
            The value.

        Raises
        ------
        Exception
            As for `map`.
        ValueError
            The sequence is empty, or ``chunksize`` is no whole number of 2 or more.
        """
        return self._reduce(lambda chunk: ChunkTask(fn, chunk), seq, chunksize)

    def remote_map(
        self, fn: str, seq: Iterable[Any], library: str, name: str, chunksize: int = 1
    ) -> list[Any]:
        """Call a function of a library with lists of elements of a sequence.

        Parameters
        ----------
        fn : str
            The name of the function. It returns a list with a value for each element.
        seq : iterable
            The elements.
        library : str
            The name of the library, which is installed.
        name : str
            The parameter of the function that gets the list.
        chunksize : int
            The number of elements of a call.

        Returns
        -------
        list
            The values, in the order of the elements.

        Raises
        ------
        Exception
            As for `map`.
        TypeError, ValueError
            There is no such library or function, or the function has returned something other than
            a list of as many values.
        """
        return self._call_library_each(fn, seq, library, name, chunksize)

    def remote_pair(self, fn: str, seq1: Iterable[Any], seq2: Iterable[Any], library: str, name: str,
                    chunksize: int = 1) -> list[Any]:  # fmt: skip
        """Call a function of a library with lists of pairs of elements of two sequences.

        Parameters
        ----------
        fn : str
            The name of the function. It gets a list of tuples, and returns a list with a value for
            each.
        seq1, seq2 : iterable
            The elements.
        library : str
            The name of the library, which is installed.
        name : str
            The parameter of the function that gets the list.
        chunksize : int
            The number of pairs of a call.

        Returns
        -------
        list
            The values, in the order of ``itertools.product(seq1, seq2)``.

        Raises
        ------
        Exception
            As for `remote_map`.
        """
        return self._call_library_each(fn, itertools.product(seq1, seq2), library, name, chunksize)

    def remote_tree_reduce(
        self, fn: str, seq: Iterable[Any], library: str, name: str, chunksize: int = 2
    ) -> Any:
        """Reduce a sequence to one value with a function of a library, as `tree_reduce` does.

        Parameters
        ----------
        fn : str
            The name of the function. It gets a list, and returns a value.
        seq : iterable
            The elements.
        library : str
            The name of the library, which is installed.
        name : str
            The parameter of the function that gets the list.
        chunksize : int
            The largest number of elements of a call.

        Returns
        -------
        object
            The value.

        Raises
        ------
        Exception
            As for `map`.
        TypeError, ValueError
            There is no such library or function, the sequence is empty, or ``chunksize`` is no whole
            number of 2 or more.
        """
        name = validators.label("name", name)
        return self._reduce(lambda chunk: ChunkCall(library, fn, **{name: chunk}), seq, chunksize)

    def _call_each(
        self, fn: Callable[[Any], Any], elements: Iterable[Any], chunksize: int, environment: File | None
    ) -> list[Any]:
        if not callable(fn):
            validators.refuse("fn", fn, "a function", TypeError)
        function = EachElement(fn)
        tasks = [ChunkTask(function, chunk) for chunk in _split(elements, chunksize, 1)]
        if environment is not None:
            for task in tasks:
                task.add_environment(environment)
        return [value for values in self._run(tasks) for value in values]

    def _call_library_each(
        self, fn: str, elements: Iterable[Any], library: str, name: str, chunksize: int
    ) -> list[Any]:
        name = validators.label("name", name)
        chunks = list(_split(elements, chunksize, 1))
        found: list[Any] = []
        calls = [ChunkCall(library, fn, **{name: chunk}) for chunk in chunks]
        for chunk, values in zip(chunks, self._run(calls), strict=True):
            if not isinstance(values, list | tuple) or len(values) != len(chunk):
                msg = (
                    f"function {fn!r} of library {library!r} got a list of {len(chunk)} elements as {name!r} and returned "
                    f"{values!r:.200}: it has to return a list with a value for each element"
                )
                raise ValueError(msg)
            found += values
        return found

    def _reduce(
        self, make_task: Callable[[list[Any]], ReportedTask], elements: Iterable[Any], chunksize: int
    ) -> Any:
        elements = list(elements)
        chunksize = validators.whole("chunksize", chunksize, 2)
        if not elements:
            msg = "seq is empty: there is no value to reduce it to"
            raise ValueError(msg)
        while len(elements) > 1:
            chunks = list(_split(elements, chunksize, 2))
            alone = chunks.pop() if len(chunks[-1]) == 1 else []
            elements = self._run([make_task(chunk) for chunk in chunks]) + alone
        return elements[0]

    def _run(self, tasks: Sequence[ReportedTask]) -> list[Any]:
        """Run tasks, and return their values, or raise the exception of the first that has failed."""
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        unfinished: dict[int, int] = {}
        failed = len(tasks)
        try:
            for index, task in enumerate(tasks):
                if isinstance(task, ChunkTask):
                    task.set_cores(1)
                task.on_end = functools.partial(ended.put, index)
                unfinished[index] = self.submit(task)
            while unfinished and (failed == len(tasks) or min(unfinished) < failed):
                index = self._wait_for_one(ended, unfinished)
                if index < failed and tasks[index].error() is not None:
                    failed = index
                    later = [number for other, number in unfinished.items() if other > index]
                    self._server.post_event(events.TasksCancelled(later))
        finally:
            if unfinished:
                with contextlib.suppress(RuntimeError):  # the manager is closed
                    self._server.post_event(events.TasksCancelled(list(unfinished.values())))
                    while unfinished:
                        self._wait_for_one(ended, unfinished)
        if failed < len(tasks):
            error = tasks[failed].error()
            assert error is not None
            raise error
        return [task.output for task in tasks]

    def _wait_for_one(self, ended: queue.SimpleQueue[int], unfinished: dict[int, int]) -> int:
        """Wait until one of the unfinished tasks has ended, and return its index."""
        while True:
            try:
                index = ended.get(timeout=1.0)
            except queue.Empty:
                self._server.ensure_open()
                self.say_that_it_waits()
                continue
            if unfinished.pop(index, None) is not None:
                return index


def _split(elements: Iterable[Any], size: int, least: int) -> Iterable[list[Any]]:
    """Return lists of neighbouring elements, all of this size but the last."""
    size = validators.whole("chunksize", size, least)
    iterator = iter(elements)
    return iter(lambda: list(itertools.islice(iterator, size)), [])
