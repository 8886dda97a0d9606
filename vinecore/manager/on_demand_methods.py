"""The part of `Manager` that reads and releases files, and declares files that workers make on demand."""

from __future__ import annotations

from pathlib import Path

from vinecore import keyword_arguments, validators
from vinecore.cache_level import CACHE_LEVELS, parse_cache_level
from vinecore.manager.cache_names import hash_bytes
from vinecore.manager.content_methods import ContentMethods
from vinecore.manager.files import File, check_declared
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.tasks import Task
from vinecore.scheduler import events, queries
from vinecore.scheduler.specs import FileSpec

# Kinds of files that are always directories.
UNPACKED = ("untar", "poncho", "starch")


class OnDemandMethods(ContentMethods):
    """Files that exist, or that a command makes when they are needed."""

    @keyword_arguments.refuse_unknown
    def declare_minitask(
        self, task: Task, source: str, cache: bool | str = False, peer_transfer: bool = True
    ) -> File:
        """Declare a file or directory that a shell command makes on a worker when it is needed.

        The cache name consists of the command and of everything that it reads, so equal commands
        are taken to make the same. If all replicas are lost the command runs again. If it does not
        return 0 the file has not been made.

        Parameters
        ----------
        task : Task
            The command with its inputs, which is not submitted. Without a request it gets one core.
        source : str
            The relative path, in the sandbox, of what the command makes.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The file, for tasks of this manager.

        Raises
        ------
        TypeError
            The task is no `Task`, or has outputs.
        ValueError
            The task has been submitted, ``source`` leads out of the sandbox, or there is no such
            cache level.

        Examples
        --------
        >>> unzip = Task("gunzip < in > out")  # doctest: +SKIP
        >>> unzip.add_input(m.declare_url("https://example.org/data.gz"), "in")
        >>> data = m.declare_minitask(unzip, "out")
        """
        source = check_sandbox_name(source)
        what = f"{source!r} of the mini task {task.command!r}" if isinstance(task, Task) else ""
        return self._declare_on_demand(task, source, "minitask", "", what, cache, peer_transfer)

    def _declare_on_demand(
        self, task: Task, source: str, kind: str, name: str, what: str, cache: bool | str, peer_transfer: bool
    ) -> File:
        """Declare what a task makes, and hand the task over to be run when that is needed."""
        level, peer_transfer = parse_cache_level(cache), validators.flag("peer_transfer", peer_transfer)
        if type(task) is not Task or task.outputs:
            msg = (
                f"{task!r} cannot make a file on demand: use a Task, a shell command, that has no outputs yet"
            )
            raise TypeError(msg)
        if task.id is not None:
            msg = f"task {task.id} has been submitted already: a task that makes a file on demand is not"
            raise ValueError(msg)
        name = name or hash_bytes("minitask", f"{source}\n{task.fingerprint()}".encode())
        file = File(self, kind, name, source=what, level=level, peer_transfer=peer_transfer)
        number = next(self._numbers)
        spec = task.make_on_demand_spec(self, number, file, source, what)
        self._display_names[name] = what
        self._declare(FileSpec(name, peer_transfer=peer_transfer, level=CACHE_LEVELS[level]))
        self._server.post_event(events.TasksSubmitted([spec]))
        return file

    def fetch_file(self, file: File) -> str:
        """Return the content of a file as text.

        Parameters
        ----------
        file : File
            The file, declared with this manager.

        Returns
        -------
        str
            The content, decoded from UTF-8. Bytes that are no text become surrogates, as TaskVine
            has them: ``text.encode("utf-8", "surrogateescape")`` is the content; `read_file` returns
            it as it is.

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            As for `read_file`.
        """
        return self.read_file(file).decode("utf-8", "surrogateescape")

    def read_file(self, file: File) -> bytes:
        """Return the content of a file, which is brought to the manager if necessary.

        Parameters
        ----------
        file : File
            The file, declared with this manager.

        Returns
        -------
        bytes
            The content.

        Raises
        ------
        TypeError
            It is no declared file.
        FileNotFoundError
            There is no replica, and no task can make the file; the text has the reason of the task
            that should have made it.
        IsADirectoryError
            The file is a directory.
        """
        if check_declared(file).kind in UNPACKED:
            raise _is_directory(file)
        if file.kind == "url" and not self.get_file_replica_count(file):  # no worker has it now
            copy = Task("cp in out")
            copy.add_input(file, "in")
            fetched = self._declare_on_demand(
                copy, "out", "minitask", "", f"a copy of {file.source()}", False, True
            )
            try:
                return self.read_file(fetched)
            finally:
                self.undeclare_file(fetched)
        content = self._find_or_fetch(file)
        if isinstance(content, str) and Path(content).is_dir():
            raise _is_directory(file)
        return Path(content).read_bytes() if isinstance(content, str) else content

    def get_file_replica_count(self, file: File) -> int:
        """Count the replicas of a file, unverified ones included.

        Parameters
        ----------
        file : File
            The file, declared with this manager.

        Returns
        -------
        int
            The number of workers that have the file.

        Raises
        ------
        TypeError
            It is no declared file.
        """
        check_declared(file)
        return self._server.query(lambda scheduler: queries.count_replicas(scheduler, file.cache_name))

    def undeclare_file(self, file: File) -> None:
        """Release a file that no further task needs.

        When no submitted task needs it either, the file is removed from the workers, unless its
        cache level is "worker" or "forever", and from this machine if it was declared with
        ``unlink_when_done``.

        Parameters
        ----------
        file : File
            The file, declared with this manager.

        Raises
        ------
        TypeError
            It is no declared file.
        """
        check_declared(file)
        self._server.store.release(file.cache_name, file.source() if file.unlink_when_done else "")
        self._server.post_event(events.FilesReleased([file.cache_name], prune=False))
        if file.unlink_when_done and not self._server.closed:
            self._server.query(queries.await_earlier_events)  # what no task needs is gone on return

    remove_file = undeclare_file

    def prune_file(self, file: File) -> None:
        """Remove all replicas of a file of any cache level from the workers, and keep its name.

        Parameters
        ----------
        file : File
            The file, declared with this manager.

        Raises
        ------
        TypeError
            It is no declared file.
        """
        self._server.post_event(events.FilesReleased([check_declared(file).cache_name], prune=True))


def _is_directory(file: File) -> IsADirectoryError:
    msg = f"{file!r} is a directory, which has no bytes of its own: have a task read it, or declare what you need of it as an output of the task that makes it"
    return IsADirectoryError(msg)
