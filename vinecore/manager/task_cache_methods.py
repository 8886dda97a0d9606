"""The part of `Manager` that remembers what tasks have made, across programs."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vinecore import validators
from vinecore.manager.cache_names import hash_bytes, hash_path
from vinecore.manager.installed_packages import digest_packages
from vinecore.manager.task_cache import NewContent, StoredContent, TaskCache, task_key
from vinecore.manager.task_methods import TaskMethods
from vinecore.protocol import used_resources, user_modules
from vinecore.protocol.transfer import digests
from vinecore.scheduler import instructions
from vinecore.scheduler.specs import FileSpec
from vinecore.server.connections import WorkerAddress

if TYPE_CHECKING:
    from vinecore.manager.files import File
    from vinecore.manager.libraries import LibraryTask
    from vinecore.manager.tasks import Task
    from vinecore.protocol.transfer.types import Content
    from vinecore.scheduler.specs import TaskSpec
    from vinecore.server.server import ManagerServer

CACHED_WORKER = -1
"""The number in the place of a worker's for tasks whose results were remembered."""
REMEMBERED_OUTPUTS = ("file", "buffer")


class UnrememberedTask(NamedTuple):
    """A task that runs because nothing is remembered of it.

    Attributes
    ----------
    key
        Its key.
    outputs
        Its outputs, with the names that they had at the submission.
    covered
        The resources that its key covers; see `vinecore.protocol.used_resources`.
    has_result
        Whether it is a Python function.
    """

    key: str
    outputs: list[tuple[File, str]]
    covered: frozenset[str]
    has_result: bool


class TaskCacheMethods(TaskMethods):
    """The cache of tasks.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        self._task_cache: TaskCache | None = None
        self._unremembered: dict[int, UnrememberedTask] = {}
        # library that records what its calls use -> its files, and what its name covers
        self._recording_libraries: dict[str, tuple[list[str], list[str]]] = {}
        self._packages = ""

    def enable_tasks_cache(
        self, cache_dir: str | Path = "vine-cache-outputs", log_file: str | Path = "vine-cache.txlog"
    ) -> None:
        """Remember what tasks make, in this program and in others that use the same cache.

        A task that was run before is not run again, and has the hostname "CACHED". It is the same
        task if its command or function, its arguments, the contents of its inputs, its variables,
        its resources, its environment or library, the packages of this Python and the user's own
        modules are the same. ``docs/tasks-cache.md`` says which tasks are not remembered. Enable
        the cache before libraries are installed.

        Parameters
        ----------
        cache_dir : str or Path
            The folder for the results.
        log_file : str or Path
            The file with the keys.

        Raises
        ------
        TypeError, ValueError
            A path is not one.
        RuntimeError
            The cache is enabled already.
        OSError
            The folder or the file cannot be written.
        """
        if self._task_cache is not None:
            msg = "the tasks cache is enabled already: use one for each manager"
            raise RuntimeError(msg)
        folder = os.path.abspath(validators.path("cache_dir", cache_dir))
        cache = TaskCache(folder, os.path.abspath(validators.path("log_file", log_file)))
        self._packages = digest_packages()
        self._server.worker_addresses[CACHED_WORKER] = WorkerAddress("CACHED", "")
        self._server.subscribe(instructions.TaskFinished, self._on_remembered_task_finished)
        self._task_cache, self._look_up_task = cache, self._find_remembered

    def _install(self, library: LibraryTask, *, renewed: bool = False) -> None:
        if self._task_cache is not None:
            library.set_env_var(used_resources.RECORDS, "1")
        super()._install(library, renewed=renewed)

    def _enter_library(self, library: LibraryTask, full_name: str) -> None:
        super()._enter_library(library, full_name)
        recordable = all(map(is_recordable, library.definition["functions"].values()))
        if self._task_cache is not None and not library.program and recordable:
            files = [file.cache_name for file in library.files]
            self._recording_libraries[full_name] = files, library.covered_resources()

    def _close_task_cache(self) -> None:
        if self._task_cache is not None:
            self._task_cache.close()

    def _find_remembered(
        self, task: Task, spec: TaskSpec
    ) -> tuple[TaskSpec, instructions.TaskFinished | None]:
        """Return what a task has made before, or the specification with which it is to be run."""
        cache = self._task_cache
        assert cache is not None
        outputs = [(file, file.cache_name) for file in task.outputs]
        if any(file.kind not in REMEMBERED_OUTPUTS for file, _name in outputs):
            return spec, None
        if spec.result and "once" not in spec.options:
            # the result is a file
            return spec, None
        function = getattr(task, "called_function", None)
        if spec.python and not spec.library and not is_recordable(function):
            return spec, None
        context, covered = [spec.library], set[str]()
        if spec.library:
            files, variables = self._recording_libraries.get(spec.library, (None, []))
            if files is None or None in map(cache.content_name, files):
                return spec, None
            covered.update(variables)
        if spec.python:
            context += [sys.version, self._packages, user_modules.digest_own_modules()]
            covered.update(
                used_resources.describe_file(source)
                for module in user_modules.find_own_modules()
                if (source := user_modules.source_path(module))
            )
            covered.update(
                used_resources.describe_variable(*pair) for pair in spec.options.get("env", {}).items()
            )
        key = task_key(spec, cache.content_name, repr(context))
        if key is None:
            return spec, None
        found = cache.find(key)
        if found is None:
            self._unremembered[spec.task] = UnrememberedTask(
                key, outputs, frozenset(covered), bool(spec.result)
            )
            if spec.python:
                spec = spec._replace(options={**spec.options, "record": True})
            return spec, None
        entry, contents = found
        result = contents.pop(0) if entry.result else b""
        assert isinstance(result, bytes)
        for (file, _name), stored, path in zip(outputs, entry.outputs, contents, strict=True):
            assert isinstance(path, str)
            self._fill(file, stored, path)
        info = {**entry.printed, "exit_code": 0}
        return spec, instructions.TaskFinished(spec.task, "success", CACHED_WORKER, info, result)

    def _fill(self, file: File, stored: StoredContent, path: str) -> None:
        """Give an output the content that is remembered."""
        with open(path, "rb") as source:
            data = source.read()
        if file.kind == "buffer":
            name, content, digest = hash_bytes("buffer", data), data, digests.digest_bytes(data)
            self._server.store.declare(name, content)
        else:
            place = os.path.abspath(file.source())
            os.makedirs(os.path.dirname(place), exist_ok=True)
            temporary = f"{place}.vine-{os.getpid()}"
            with open(temporary, "wb") as target:
                target.write(data)
            os.chmod(temporary, stored.mode)
            os.replace(temporary, place)
            name, digest = hash_path(Path(place))
            self._server.store.declare(name, place)
        file.cache_name, file.size, file.has_content = name, len(data), True
        self._declare(
            FileSpec(name, len(data), at_manager=True, peer_transfer=file.peer_transfer, digest=digest)
        )

    def _on_remembered_task_finished(self, ended: instructions.TaskFinished) -> None:
        """Keep what a task has made, before the program gets it; called in the server's thread."""
        task = self._unremembered.pop(ended.task, None)
        good = ended.outcome == "success" and not ended.info.get("exit_code", 0)
        # if it has used more than its key tells, it may do something else the next time
        if task is not None and good and task.covered.issuperset(ended.info.get("used", ())):
            # an output may have gone meanwhile
            with contextlib.suppress(OSError):
                self._keep(task, ended)
        self._on_task_finished(ended)

    def _keep(self, task: UnrememberedTask, ended: instructions.TaskFinished) -> None:
        assert self._task_cache is not None
        info, store = ended.info, self._server.store
        kept: list[tuple[str, str, NewContent]] = []
        for file, name in task.outputs:
            digest = info.get("digests", {}).get(name)
            content = store.find_object(name) if file.kind == "buffer" else file.source()
            if not digest or content is None:
                # a folder, or an output that was not made
                return
            kept.append((name, file.kind, _open_content(content, digest)))
        result = None
        if task.has_result:
            content = ended.payload or store.find_object(self.result_name(ended.task))
            if not content:
                return
            digest = info.get("digest", "") if isinstance(content, str) else ""
            result = _open_content(content, digest)
        printed = {name: info[name] for name in ("output", "errors") if info.get(name)}
        self._task_cache.add(task.key, result, kept, printed)


def is_recordable(function: object) -> bool:
    """Return whether it is seen what a function uses: not if it is written in C, such as `time.time`.

    Parameters
    ----------
    function : object
        The function of a task.

    Returns
    -------
    bool
        Whether it is a function or a method in Python.
    """
    return hasattr(function, "__code__")


def _open_content(content: Content, digest: str) -> NewContent:
    """Describe a content for the thread that writes it; a file may be replaced before."""
    if isinstance(content, str):
        file = open(content, "rb")  # noqa: SIM115 - the thread that copies it closes it
        return NewContent(file, digest, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    return NewContent(bytes(content), digest)
