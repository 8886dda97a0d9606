"""The manager as a user sees it: blocking, thread-safe, with TaskVine's names.

Everything is handed to the engine's thread, which makes progress whatever the user's own threads do.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vinecore import errors, keyword_arguments, validators
from vinecore.cache_level import CacheLevel
from vinecore.journal.previous_session import PreviousSession, find_previous_session
from vinecore.journal.writer import JournalWriter
from vinecore.manager import url_metadata
from vinecore.manager.compatibility import (
    REQUIRED_PACKAGES,
    explain_mismatch,
    package_versions,
    python_version,
)
from vinecore.manager.files import File, hash_bytes, hash_path, parse_cache_level
from vinecore.manager.libraries import ContextFunction, LibraryTask
from vinecore.manager.reloaded_modules import Renewals
from vinecore.manager.tasks import PythonTask, Task, check_sandbox_name, declared
from vinecore.manager.url_metadata import RemoteFileInfo
from vinecore.protocol import tls, trees, xrootd
from vinecore.protocol.discovery import manager_record
from vinecore.protocol.discovery.catalog import configured_servers, parse_servers
from vinecore.protocol.discovery.registry import registry_directory
from vinecore.protocol.serialization import random_seeds, unpicklable, values
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.types import Content
from vinecore.resources.amounts import ResourceRequest
from vinecore.resources.categories import parse_mode
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import WORKFLOW, FileSpec
from vinecore.security import certificates
from vinecore.security import shared_secret as password
from vinecore.server.object_store import in_the_way, remove_leftover_staging
from vinecore.server.server import ManagerServer

if TYPE_CHECKING:
    from datetime import timedelta

    from vinecore.factory import Factory

log = logging.getLogger("vinecore")
# at once, because what the program has made before is only guessed
random_seeds.watch_seeding()

DEFAULT_PORT = 9123
PORT_ENVIRONMENT_VARIABLES = {"VINE_PORT", "VINE_LOW_PORT", "VINE_HIGH_PORT", "TCP_LOW_PORT", "TCP_HIGH_PORT"}
PLACEMENT_POLICIES = ("files", "time", "rand", "worst", "disk", "fcfs")
CACHE_NAME_PATTERN = re.compile(
    r"(?:untar-)?((?:xrootd-)?(?:file|dir|url|minitask|buffer)-[0-9a-f]{40}|(?:out|buffer|temp|result)-[0-9a-f]{8}-\d+)(?:-for-[0-9a-f]{8}-\d+)?"
)
MOST_LABELS = 1000
UNPACKED = ("untar", "poncho", "starch")  # files that are always directories
TUNABLE_PARAMETERS = {
    "worker-source-max-transfers": 1,
    "file-source-max-transfers": 1,
    "category-steady-n-tasks": 1,
    "temp-replica-count": 1,
}
"""What can be tuned, and the least value of each."""


class Manager:
    """Runs tasks on the workers that connect to it.

    Parameters
    ----------
    port : int or (int, int)
        Where workers connect; 0 for any free port, a pair for the first free one of a range. For 0 the variables VINE_PORT, or TCP_LOW_PORT and
        TCP_HIGH_PORT (or VINE_LOW_PORT and VINE_HIGH_PORT), say which ports are meant where they are set.
    name : str or None
        A name, by which people know it and workers find it: ``vine_worker -M NAME``. A manager without one is not announced.
    shutdown : bool
        Whether workers shall leave for good when the manager ends, instead of waiting for the next one.
    password_file : path or None
        File with the secret; None for the one of this user, which is made the first time.
    address : str
        Address to listen on; "" for all.
    run_info_path : path, bool or None
        A folder for a journal of what happens (``docs/journal.md``), in a folder named by the time; True for "vine-run-info" here. None
        for what the variable VINE_RUN_INFO_PATH of the environment says; without that, and with False, no journal is written.
    resume : bool
        Whether to go on where a manager with this name (with any, if there is no ``name``) has died that wrote its journal in the same
        ``run_info_path``; and whether workers shall keep for the next one what they have, should this one die. It listens on the same port as
        that one, if ``port`` leaves a choice. What is not run again is on the page ``docs/journal.md``.
    ssl : bool or (path, path)
        Whether all connections are protected by TLS: with a certificate of this user's that is made the first time, or with this key and
        certificate. Both take the extra ``daskvine[ssl]``, because each worker gets a certificate, too. Workers need ``--ssl``; they take no other certificate
        than one whose fingerprint is in the file beside the secret, ``<password file>.fingerprint``, or given as ``--ssl-fingerprint``.
    init_fn : callable or None
        Called with the manager once it is up.
    registry : path, bool or None
        The folder in which a manager that has a name is entered, so that workers of the same user find it; None for what the variable VINE_REGISTRY
        says, or the usual one. With False it is not entered.
    catalog : str, bool or None
        Catalog servers that a manager that has a name reports to, as HOST:PORT, or several with commas; None for what the variable CATALOG_HOST says. Without
        that, and with False, there are none.

    Attributes
    ----------
    resumed : Path or None
        The journal of the manager that this one goes on from, if there is one.
    ssl_fingerprint : str
        Of the certificate; "" without TLS.

    Examples
    --------
    >>> with Manager(port=0) as m:  # doctest: +SKIP
    ...     m.submit(Task("echo hello"))
    ...     print(m.wait().output)
    """

    @keyword_arguments.refuse_unknown
    def __init__(self, port: int | Sequence[int] = DEFAULT_PORT, name: str | None = None, shutdown: bool = False, *,
                 password_file: str | Path | None = None, address: str = "", run_info_path: str | Path | bool | None = None, resume: bool = False,
                 ssl: bool | Sequence[str | Path] = False, init_fn: Callable[[Any], None] | None = None, registry: str | Path | bool | None = None,
                 catalog: str | bool | None = None) -> None:  # fmt: skip
        if not callable(init_fn or callable):
            validators.refuse("init_fn", init_fn, "a function that takes the manager", TypeError)
        ports, address = _port_range(port), validators.text("address", "" if address is None else address)
        self.name = manager_record.check_name(name) if name not in (None, "") else f"vine-{os.getpid()}"
        entered, servers = _registry_folder(registry), _catalog_servers(catalog)
        self._shutdown, self._pid = validators.flag("shutdown", shutdown), os.getpid()
        secret, self.password_file = _secret_of(password_file)
        self._session = secrets.token_hex(4)
        folder = _journal_directory(run_info_path)
        self.resume = resume = validators.flag("resume", resume)
        if resume and folder is None:
            msg = "resume=True needs a journal: say where it is kept, with run_info_path='vine-run-info'"
            raise ValueError(msg)
        past = _past(folder, name) if resume and folder is not None else None
        self.resumed_from = None if past is None else past.journal
        self._scribe = self._make_journal_writer(folder)
        self.ssl_fingerprint = ""
        context = self._make_tls(ssl) if ssl else None
        self._engine = ManagerServer(
            ports, address, secret, self.name, python_version(), REQUIRED_PACKAGES, self._scribe, context,
            session=self._session if resume else "", past=past,
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self._tasks: dict[int, Task] = {}
        self._finished: deque[Task] = deque()
        self._finished_or_obtained = threading.Condition()
        self._waiters = 0
        self._has_absent_inputs = False  # tasks wait for files that may be a mistake, and the mind does not know that the program waits
        self._content_requests: dict[
            str, list[list[str]]
        ] = {}  # files that somebody waits for -> where to write why they cannot be had
        self._libraries: dict[str, tuple[str, list[str]]] = {}
        self._requests: dict[str, ResourceRequest] = {}  # what each of them asks for
        self._labels: dict[str, str] = {}  # full names of libraries -> what the user calls them
        self._renewals = Renewals(lambda library: self._install(library, renewed=True))
        self._kinds: dict[str, str] = {}  # what each of them is, whatever the text of the user's own modules
        self._worker_names: dict[int, str] = {}
        self._display_names: dict[
            str, str
        ] = {}  # cache names -> what the user calls them: paths and addresses
        self._missing = ""
        self._reported_versions: set[frozenset[tuple[str, str]]] = set()
        self._submitted = self._done_count = self._failed = 0
        self._listen()
        self._close_callbacks: list[Callable[[], None]] = []
        if name:
            self._announce(entered, servers)
        self.factory: Factory | None = None
        atexit.register(self.close)
        if init_fn is not None:
            init_fn(self)

    def _listen(self) -> None:
        self._engine.in_words = self.in_words
        self._engine.subscribe(i.TaskFinished, self._on_task_finished)
        self._engine.subscribe(i.FileAvailable, self._on_file_available)
        self._engine.subscribe(i.LibraryStarted, self._on_library_started)
        self._engine.subscribe(i.InputsAbsent, self._inputs_absent)
        self._engine.subscribe(i.Stalled, self._on_stalled)

    @property
    def port(self) -> int:
        """Where workers connect."""
        return self._engine.port

    @property
    def journal(self) -> Path | None:
        """The journal that is written, if ``run_info_path`` asked for one."""
        return None if self._scribe is None else self._scribe.path

    def _make_journal_writer(self, folder: Path | None) -> JournalWriter | None:
        if folder is None:
            return None
        about = {"manager": self.name, "session": self._session, "packages": package_versions()}
        return JournalWriter(folder, durable=self.resume, resumes=str(self.resumed_from or ""), **about)

    def _make_tls(self, ssl: Any) -> Any:
        """Prepare TLS, and tell workers by which certificate they know this manager."""
        certificates.make_certificate()  # if that cannot be, it is said before anything is started: each worker gets one
        if ssl is True:
            key = certificate = certificates.load_or_create_user_certificate()
        else:
            try:
                key, certificate = map(Path, ssl)
            except (TypeError, ValueError):
                msg = f"ssl={ssl!r}: use True, or the paths of a key and of its certificate: ssl=('key.pem', 'certificate.pem')"
                raise ValueError(msg) from None
        self.ssl_fingerprint = f"sha256:{certificates.fingerprint_of(certificate)}"
        try:
            context = tls.server_context(str(certificate), str(key))
        except OSError as error:
            msg = f"ssl: {key} and {certificate} are not a key and its certificate in PEM, without a passphrase: {error}"
            raise ValueError(msg) from error
        try:
            certificates.write_fingerprint(self.ssl_fingerprint, self.password_file)
        except OSError as error:
            log.warning(
                "no file with the fingerprint can be put beside %s (%s): start workers with --ssl-fingerprint %s",
                self.password_file, error.strerror, self.ssl_fingerprint,
            )  # fmt: skip
        return context

    def _announce(self, folder: str, servers: tuple[tuple[str, int], ...]) -> None:
        """Tell where this manager is, from now on until it is closed."""
        from vinecore.discovery.announcer import ManagerAnnouncer, make_record

        engine = self._engine
        about = make_record(
            name=self.name, key=secrets.token_hex(16), bound=engine.bound, port=engine.port, ssl=bool(self.ssl_fingerprint),
        )  # fmt: skip

        def figures() -> dict[str, Any]:
            demand = engine.queue_stats()
            return {
                "tasks_waiting": demand.waiting,
                "tasks_running": demand.running,
                "tasks_on_workers": demand.running,
                "tasks_left": demand.waiting + demand.running,
                "tasks_total_cores": demand.cores,
                "capacity_tasks": demand.capacity,
                "workers": demand.workers,
                "workers_connected": demand.workers,
            }

        self._close_callbacks.append(ManagerAnnouncer(about, figures, folder, servers).close)

    # ---- life

    def close(self) -> None:
        """End: drop what is unfinished, let the workers go, leave nothing behind. A second call does nothing."""
        if os.getpid() != self._pid:  # a forked child that ends must not take away what its parent uses
            return
        atexit.unregister(self.close)
        self._engine.announce_close()
        closers, self._close_callbacks = self._close_callbacks, []
        for closer in reversed(closers):
            closer()
        self._engine.close(release=self._shutdown)
        with self._finished_or_obtained:
            self._finished_or_obtained.notify_all()

    def _end_by_signal(self) -> None:
        """Leave nothing behind; but what another manager is to go on with stays as it would after a death."""
        if self.resume:
            while self._close_callbacks:
                self._close_callbacks.pop()()
            self._engine.store.close()
        else:
            self.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- tasks

    def submit(self, task: Task) -> int:
        """Hand a task over; it runs as soon as its inputs and a worker are there.

        Returns
        -------
        int
            Its number.

        Raises
        ------
        TypeError, ValueError
            It cannot be run as it is; nothing has been submitted.
        """
        self._engine.ensure_open()
        if not isinstance(task, Task):
            msg = f"{task!r} is not a task"
            raise TypeError(msg)
        if task.id is not None and task._outcome is None:
            msg = f"task {task.id} has been submitted already and has not come back yet"
            raise ValueError(msg)
        for file in task.files:
            if file._manager is not self:
                msg = f"{file!r} was declared with another manager: declare it with this one as well"
                raise ValueError(msg)
        number = next(self._numbers)
        spec = task.make_spec(self, number)
        task.id, task._manager, task._outcome = number, self, None
        self._tasks[number] = task
        self._submitted += 1
        self._engine.post_event(e.TasksSubmitted([spec]))
        return number

    def wait(self, timeout: float | timedelta | str | None = "wait_forever") -> Task | None:
        """Give a task that has ended, or None if none does within so many seconds (or a timedelta)."""
        if timeout is not validators.FOREVER:
            timeout = validators.timeout("timeout", timeout)
        try:
            return self._finished.popleft()
        except IndexError:
            return self._wait_for(lambda _task: True, timeout)

    def wait_for_tag(self, tag: str, timeout: float | timedelta | str | None = "wait_forever") -> Task | None:
        """As `wait`, among the tasks with a tag."""
        tag = validators.text("tag", tag)
        return self._wait_for(lambda task: task.tag == tag, timeout)

    def wait_for_task_id(
        self, task_id: int, timeout: float | timedelta | str | None = "wait_forever"
    ) -> Task | None:
        """As `wait`, for one task."""
        task_id = validators.whole("task_id", task_id)
        return self._wait_for(lambda task: task.id == task_id, timeout)

    def _wait_for(
        self, suits: Callable[[Task], bool], timeout: float | timedelta | str | None
    ) -> Task | None:
        self._engine.ensure_open()
        seconds = validators.timeout("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._finished_or_obtained:
            self._waiters += 1
            try:
                while True:
                    over = self._engine.closed or not self._tasks
                    for task in list(self._finished):
                        if suits(task) and self._remove_finished(task):
                            return task
                    self.say_that_it_waits()
                    left = None if deadline is None else deadline - time.monotonic()
                    if (left is not None and left <= 0) or over:
                        return None
                    self._finished_or_obtained.wait(1.0 if left is None else min(left, 1.0))
                    self._engine.ensure_open()
            finally:
                self._waiters -= 1

    def say_that_it_waits(self) -> None:
        """The program waits for tasks: those that read what was not there, and what no task makes, fail. To be called again while it waits."""
        if self._has_absent_inputs:
            self._has_absent_inputs = False
            self._engine.post_event(e.Waited())

    def _inputs_absent(self, _absent: i.InputsAbsent) -> None:
        with self._finished_or_obtained:
            self._has_absent_inputs = True
            self._finished_or_obtained.notify_all()

    def _remove_finished(self, task: Task) -> bool:
        try:
            self._finished.remove(task)
        except ValueError:  # another thread has been faster
            return False
        return True

    def empty(self) -> bool:
        """Whether every submitted task has come back through `wait`."""
        return not self._tasks and not self._finished

    def cancel_by_task_id(self, task_id: int) -> None:
        """Cancel a task; it comes back through `wait` with the result "cancelled"."""
        self._engine.post_event(e.TasksCancelled([validators.whole("task_id", task_id)]))

    def cancel_all(self) -> None:
        """Cancel all tasks that were submitted."""
        self._engine.post_event(e.TasksCancelled(list(self._tasks)))

    def _on_task_finished(self, ended: i.TaskFinished) -> None:
        task = self._tasks.get(ended.task)
        if task is None:
            return
        undelivered = self._engine.store.undelivered
        if undelivered and ended.outcome == "success":
            reasons = [
                undelivered.pop(file.cache_name) for file in task.outputs if file.cache_name in undelivered
            ]
            if reasons:
                ended = ended._replace(
                    outcome="output transfer error", info={**ended.info, "reason": "; ".join(reasons)}
                )
        task._outcome = ended
        self._done_count += 1
        self._failed += ended.outcome != "success"
        self._finished.append(task)
        del self._tasks[
            ended.task
        ]  # last: who sees neither this nor the line above must be right to think that all is over
        if self._waiters:
            with self._finished_or_obtained:
                self._finished_or_obtained.notify_all()

    def load_result(self, task: PythonTask, *, raw: bool) -> tuple[Any, Exception | None]:
        """Load what a Python task has returned; give what its class raised if that went wrong."""
        assert task._outcome is not None
        assert task.id is not None
        content: Content | None = task._outcome.payload
        released = bool(content)  # what came with the news of the end is nowhere else
        if not content:
            name = self.result_name(task.id)
            content = (
                self._find_or_fetch(task.output_file)
                if task.output_file is not None
                else self._engine.store.find_object(name)
            )
            if content is None:
                msg = f"the result of task {task.id} went with the manager: read its output before the manager is closed"
                raise FileNotFoundError(msg)
        value: Any = None
        problem: Exception | None = None
        try:
            if raw:
                value = Path(content).read_bytes() if isinstance(content, str) else content
            else:
                value = values.load_file(content) if isinstance(content, str) else values.loads(content)
        except Exception as error:  # noqa: BLE001 - code of what it returned
            errors.add_note(error, f"task {task.id} has a result that could not be loaded here")
            problem = error
        if task.output_file is None and not released:
            self._engine.post_event(e.FilesReleased([name], prune=False))
        return value, problem

    # ---- files

    @keyword_arguments.refuse_unknown
    def declare_file(
        self,
        path: str | Path,
        cache: bool | str = False,
        peer_transfer: bool = True,
        unlink_when_done: bool = False,
    ) -> File:
        """Name a file or a directory of this machine, as an input, or as the place an output is brought to.

        Parameters
        ----------
        cache
            How long workers keep it: False or "task", until the tasks that need it are over; True or "workflow", until it is undeclared or
            the manager ends; "worker", until the worker ends; "forever", for later workers, too, if they are started with
            ``--workspace DIR --keep-workspace``. The last two are for inputs, which are named by their content.
        peer_transfer
            Whether workers may fetch it from each other.
        unlink_when_done
            Whether the file is to be removed from this machine when it has been undeclared and no task needs it any more, or when the
            manager ends.

        Raises
        ------
        ValueError
            There is no such cache level; or it, or something in the directory, is a pipe, a socket or a device.
        OSError
            It cannot be read.
        """
        level, place = parse_cache_level(cache), Path(validators.path("path", path)).absolute()
        peer_transfer = validators.flag("peer_transfer", peer_transfer)
        unlink_when_done = validators.flag("unlink_when_done", unlink_when_done)
        if place.exists():
            folder = place.is_dir()
            (name, digest), about = hash_path(place), place.stat()
            size, plain = (
                -1 if folder else about.st_size,
                trees.visible_mode(about.st_mode) == trees.DEFAULT_FILE_MODE,
            )
            self._engine.store.declare(name, str(place))
            self._display_names[name] = str(place)
            # what has another mode than most has to stay a file with its mode, however small: its size is not told
            self._declare(
                FileSpec(
                    name,
                    size if plain else -1,
                    at_manager=True,
                    directory=folder,
                    peer_transfer=peer_transfer,
                    digest=digest,
                    level=self._effective_level(name, level),
                )
            )
        else:
            name, size = self._unique_name("out"), -1
            self._display_names[name] = str(place)
            self._engine.store.set_destination(name, str(place))
            number = self._effective_level(name, level)
            self._declare(
                FileSpec(name, peer_transfer=peer_transfer, level=number, awaited=True, absent=True)
            )
        if unlink_when_done:
            self._engine.store.unlink_on_release(name, str(place))
        file = File(self, "file", name, source=str(place), size=size, level=level, peer_transfer=peer_transfer,
                    unlink_when_done=unlink_when_done)  # fmt: skip
        file.has_content = place.exists()
        return file

    @keyword_arguments.refuse_unknown
    def declare_buffer(
        self, buffer: str | bytes | None = None, cache: bool | str = False, peer_transfer: bool = True
    ) -> File:
        """Name some bytes, or, with None, a buffer that a task will fill."""
        level, peer_transfer = parse_cache_level(cache), validators.flag("peer_transfer", peer_transfer)
        if buffer is None:
            name, size = self._unique_name("buffer"), -1
            level_number = self._effective_level(name, level)
            self._declare(FileSpec(name, peer_transfer=peer_transfer, level=level_number, awaited=True))
        else:
            data = _bytes_of(buffer)
            name, size = hash_bytes("buffer", data), len(data)
            self._engine.store.declare(name, data)
            spec = FileSpec(
                name, size, at_manager=True, peer_transfer=peer_transfer, digest=digests.digest_bytes(data)
            )
            self._declare(spec._replace(level=self._effective_level(name, level)))
        file = File(self, "buffer", name, size=size, level=level, peer_transfer=peer_transfer)
        file.has_content = buffer is not None
        return file

    def declare_temp(self) -> File:
        """Name something that a task will make and that stays on the workers."""
        name = self._unique_name("temp")
        self._declare(FileSpec(name, awaited=True))
        return File(self, "temp", name, level="workflow")

    @keyword_arguments.refuse_unknown
    def declare_url(self, url: str, cache: bool | str = False, peer_transfer: bool = True) -> File:
        """Name something that workers fetch from an address: http, https, ftp, file (on the worker's disk) or root (XRootD).

        It is named by the address and by what its server says of the content, so a content that has changed is another file. A server
        that does not answer here may still be one that workers reach.

        Raises
        ------
        ValueError
            It is not such an address.
        """
        level, url = parse_cache_level(cache), validators.label("url", url)
        peer_transfer = validators.flag("peer_transfer", peer_transfer)
        look = url_metadata.stat_url(url)
        name = url_metadata.url_cache_name(url, look)
        if (
            url[:5].lower() == "file:"
        ):  # what other machines have under this path need not be what this one has
            look = RemoteFileInfo()
        size = look.verified_size
        self._display_names[name] = url
        # where nobody says what the content is a copy is worth nothing to a later manager
        number = CacheLevel[level] if look.validator else min(CacheLevel[level], WORKFLOW)
        spec = FileSpec(
            name, size, url=url, peer_transfer=peer_transfer, validator=look.validator, level=number
        )
        self._declare(spec)
        return File(self, "url", name, source=url, size=size, level=level, peer_transfer=peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_untar(self, tarball: File, cache: bool | str = False, peer_transfer: bool = True) -> File:
        """Name the directory that an archive unpacks to; it is unpacked on the workers, once."""
        level, peer_transfer = parse_cache_level(cache), validators.flag("peer_transfer", peer_transfer)
        name = f"untar-{declared(tarball).cache_name}"
        number = self._effective_level(name, level)
        self._declare(
            FileSpec(
                name, archive=tarball.cache_name, directory=True, peer_transfer=peer_transfer, level=number
            )
        )
        return File(self, "untar", name, source=tarball.source, level=level, peer_transfer=peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_poncho(
        self, package: File | str | Path, cache: bool | str = True, peer_transfer: bool = True
    ) -> File:
        """Name an environment: an archive made by poncho, conda-pack or venv-pack, with ``bin/python`` inside.

        Raises
        ------
        FileNotFoundError
            There is no such archive.
        """
        if not isinstance(package, File):
            if not Path(validators.path("package", package)).is_file():
                msg = f"the environment {package} does not exist: pack one with conda-pack, venv-pack or poncho_package_create"
                raise FileNotFoundError(msg)
            package = self.declare_file(package, cache)
        file = self.declare_untar(package, cache, peer_transfer)
        file.kind = "poncho"
        return file

    @keyword_arguments.refuse_unknown
    def declare_minitask(
        self, task: Task, source: str, cache: bool | str = False, peer_transfer: bool = True
    ) -> File:
        """Name a file or directory that a shell command makes on a worker, once it is needed for the first time.

        It is named by the command and all that this reads, so the same command is taken to make the same each time. When all copies are
        lost it is made again. A command that does not return 0 has made nothing.

        Parameters
        ----------
        task
            The command with its inputs; it is not submitted. If it says nothing of its needs it gets one core.
        source
            What it makes: a name in its folder.

        Raises
        ------
        TypeError, ValueError
            It is not a task for that.

        Examples
        --------
        >>> unzip = Task("gunzip < in > out")  # doctest: +SKIP
        >>> unzip.add_input(m.declare_url("https://example.org/data.gz"), "in")
        >>> data = m.declare_minitask(unzip, "out")
        """
        source = check_sandbox_name(source)
        what = f"{source!r} of the mini task {task.command!r}" if isinstance(task, Task) else ""
        return self._declare_on_demand(task, source, "minitask", "", what, cache, peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_xrootd(
        self,
        source: str,
        proxy: File | str | Path | None = None,
        env: File | str | Path | None = None,
        cache: bool | str = False,
        peer_transfer: bool = True,
    ) -> File:
        """Name a file on an XRootD server.

        Parameters
        ----------
        source
            Its address: ``root://server//path``.
        proxy
            A file with an X.509 proxy, which travels to the worker that fetches; None for what workers have by themselves.
        env
            An environment (`declare_poncho`) with ``xrdcp``, or with Python's XRootD; None for the worker's own.

        Raises
        ------
        ValueError
            It is no such address.
        """
        if url_metadata.validate_url(validators.label("source", source)) not in xrootd.SCHEMES:
            msg = f"{source!r} is not the address of a file on an XRootD server: root://server//path"
            raise ValueError(msg)
        if proxy is None and env is None:
            return self.declare_url(source, cache, peer_transfer)
        task = Task(xrootd.script(source, "file", proxy="proxy" if proxy else ""), env=xrootd.SETTINGS)
        if proxy is not None:
            # it belongs to one user: no worker gets it from another one
            file = proxy if isinstance(proxy, File) else self.declare_file(proxy, peer_transfer=False)
            task.add_input(file, "proxy")
        if env is not None:
            task.add_environment(env if isinstance(env, File) else self.declare_poncho(env, cache))
        name = url_metadata.url_cache_name(source, url_metadata.stat_url(source))
        return self._declare_on_demand(task, "file", "xrootd", f"xrootd-{name}", source, cache, peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_starch(
        self, starch: File | str | Path, cache: bool | str = True, peer_transfer: bool = True
    ) -> File:
        """Name the directory that a package made by ``starch`` extracts to; for `Task.add_starch_package`, or as an input.

        Raises
        ------
        FileNotFoundError
            There is no such package.
        """
        if not isinstance(starch, File):
            if not Path(validators.path("starch", starch)).is_file():
                msg = f"the package {starch} does not exist: make one with starch"
                raise FileNotFoundError(msg)
            starch = self.declare_file(starch, cache, peer_transfer)
        task = Task(
            "SFX_DIR=package SFX_EXTRACT_ONLY=1 SFX_EXTRACT_FORCE=1 /bin/sh ./sfx && test -x package/run.sh"
        )
        task.add_input(starch, "sfx")
        what = starch.source or starch.cache_name
        return self._declare_on_demand(task, "package", "starch", "", what, cache, peer_transfer)

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
        self._declare(FileSpec(name, peer_transfer=peer_transfer, level=CacheLevel[level]))
        self._engine.post_event(e.TasksSubmitted([spec]))
        return file

    def undeclare_file(self, file: File) -> None:
        """Say that a file is not needed any more.

        As soon as no task needs it either it is removed from the workers, unless its cache level is "worker" or "forever", and from this
        machine if it was declared with ``unlink_when_done``.
        """
        declared(file)
        self._engine.store.release(file.cache_name, file.source if file.unlink_when_done else "")
        self._engine.post_event(e.FilesReleased([file.cache_name], prune=False))
        if file.unlink_when_done and not self._engine.closed:
            self._engine.query(lambda _mind: None)  # what no task needs is gone on return

    remove_file = undeclare_file

    def prune_file(self, file: File) -> None:
        """Remove all replicas of a file from the workers, whatever its cache level, and keep its name."""
        self._engine.post_event(e.FilesReleased([declared(file).cache_name], prune=True))

    def fetch_file(self, file: File) -> str:
        """Give the content of a file as text."""
        return self.read_file(file).decode()

    def get_file_replica_count(self, file: File) -> int:
        """Count the workers that have a file, also those that still compare it with what was made."""
        declared(file)
        return self._engine.query(
            lambda mind: (
                len(mind.tables.files[file.cache_name].replicas)
                if file.cache_name in mind.tables.files
                else 0
            )
        )

    def read_file(self, file: File) -> bytes:
        """Give the bytes of a file, which is brought here if it is elsewhere.

        Raises
        ------
        FileNotFoundError
            It is nowhere, and nothing can make it; the text has the reason of the task that should have made it.
        IsADirectoryError
            It is a directory.
        """
        if declared(file).kind in UNPACKED:
            raise _is_directory(file)
        if file.kind == "url" and not self.get_file_replica_count(file):  # nobody has it now
            copy = Task("cp in out")
            copy.add_input(file, "in")
            fetched = self._declare_on_demand(
                copy, "out", "minitask", "", f"a copy of {file.source}", False, True
            )
            try:
                return self.read_file(fetched)
            finally:
                self.undeclare_file(fetched)
        content = self._find_or_fetch(file)
        if isinstance(content, str) and Path(content).is_dir():
            raise _is_directory(file)
        return Path(content).read_bytes() if isinstance(content, str) else content

    def _find_or_fetch(self, file: File) -> Content:
        name = file.cache_name
        content = self._engine.store.find_object(name)
        if content is None:
            reason = self._wait_until_available(name)
            content = self._engine.store.find_object(name)
            if content is None:
                msg = (
                    f"{file!r} cannot be had: {self.in_words(reason) or 'it is not at the manager any more'}"
                )
                raise FileNotFoundError(msg)
        return content

    def _wait_until_available(self, name: str) -> str:
        """Wait until a file has been brought here; give the reason if it cannot be."""
        answer: list[str] = []
        with self._finished_or_obtained:
            self._content_requests.setdefault(name, []).append(answer)
        self._engine.post_event(e.FileRequested(name))
        with self._finished_or_obtained:
            while not answer:
                self._engine.ensure_open()
                self.say_that_it_waits()
                self._finished_or_obtained.wait(1.0)
        return answer[0]

    def _on_file_available(self, obtained: i.FileAvailable) -> None:
        with self._finished_or_obtained:
            for answer in self._content_requests.pop(obtained.name, ()):
                answer.append(obtained.reason)
            self._finished_or_obtained.notify_all()

    def check_place(self, file: File) -> None:
        """Make sure that a file can be an output: no directory of the user's is where it is to be put.

        Raises
        ------
        FileExistsError
            There is one, with something in it.
        """
        if not self._engine.store.may_replace(file.source):
            msg = f"{file.source} cannot be the place of an output: {in_the_way(file.source)}"
            raise FileExistsError(msg)

    def rename_for_new_content(self, file: File) -> None:
        """Name a file anew that already has, or will have, a content, because another task fills it: what was sent under its name stays what it was."""
        file.check_place()
        if file.has_content:
            file.cache_name, file.size = self._unique_name(file.kind), -1
            if file.kind == "file":
                self._engine.store.set_destination(file.cache_name, file.source)
                if file.unlink_when_done:
                    self._engine.store.unlink_on_release(file.cache_name, file.source)
            level = self._effective_level(file.cache_name, file.cache_level)
            self._declare(FileSpec(file.cache_name, peer_transfer=file.peer_transfer, level=level))
        file.has_content = True

    def _declare(self, spec: FileSpec) -> None:
        self._engine.ensure_open()
        self._engine.post_event(e.FilesDeclared([spec]))

    def _effective_level(self, name: str, level: str) -> int:
        """How long workers keep a file: of a name that is new in every manager no longer than there is this one."""
        number = CacheLevel[level]
        return min(number, WORKFLOW) if f"-{self._session}-" in name else number

    def _unique_name(self, kind: str) -> str:
        return f"{kind}-{self._session}-{next(self._numbers)}"

    def result_name(self, number: int) -> str:
        """The cache name of what task ``number`` returns."""
        return f"result-{self._session}-{number}"

    def declare_result(self, name: str) -> File:
        """Declare the result of a task as a file of the user's."""
        self._declare(FileSpec(name))
        return File(self, "temp", name, level="workflow")

    def declare_shared(self, value: Any) -> str:
        """Declare a function (or other object) that many tasks use; it travels to a worker once, and is loaded in a slot once.

        Returns
        -------
        str
            Its cache name.
        """
        # serialized each time, because what a function refers to may have changed since
        try:
            data = values.dumps(value, by_value=True)
        except Exception as error:
            errors.add_note(
                error, f"{value!r:.200} cannot be sent to a worker: {unpicklable.describe_unpicklable(value)}"
            )
            raise
        return self.declare_shared_bytes(data)

    def declare_shared_bytes(self, data: bytes) -> str:
        """Declare a serialized object that many tasks use."""
        name = hash_bytes("object", data)
        if not self._engine.store.declared(name) and self._engine.store.declare(name, data):
            self._declare(FileSpec(name, len(data), at_manager=True, digest=digests.digest_bytes(data)))
        return name

    def release_shared_bytes(self, name: str) -> None:
        """Take back what `share_bytes` has declared."""
        self._engine.store.release(name)
        self._engine.post_event(e.FilesReleased([name], prune=False))

    # ---- libraries

    @keyword_arguments.refuse_unknown
    def create_library_from_functions(self, library_name: str, *functions: Callable[..., Any], poncho_env: File | str | None = None,
                                      hoisting_modules: Sequence[Any] | None = None, exec_mode: str = "fork",
                                      library_context_info: ContextFunction | list[Any] | None = None,
                                      context_per_slot: bool = False) -> LibraryTask:  # fmt: skip
        """Make a library of functions, to be installed with `install_library`.

        Parameters
        ----------
        library_name
            What `FunctionCall` names it by.
        poncho_env
            The environment to run in: a declared file, or the path of an archive. None: the worker's own Python.
        hoisting_modules
            Imported once, before the slots are forked.
        exec_mode
            "fork": each call in a child process. "direct": one after another in a slot, which is faster.
        library_context_info
            ``[function, args, kwargs]``: a function that returns the variables to keep in the library.
        context_per_slot
            Build the context in each slot, instead of once before slots are forked: for threads, pools and CUDA, which do not survive a
            fork. Use it with exec_mode="direct": calls of "fork" are forked from their slot.
        """
        context: ContextFunction | None = None
        if library_context_info is not None:
            context = _context(library_context_info)
        library = LibraryTask(
            library_name,
            functions,
            modules=() if hoisting_modules is None else hoisting_modules,
            exec_mode=exec_mode,
            context=context,
            context_per_slot=context_per_slot,
        )
        if poncho_env is not None:
            library.add_environment(
                poncho_env if isinstance(poncho_env, File) else self.declare_poncho(poncho_env)
            )
        return library

    def install_library(self, library: LibraryTask) -> None:
        """Make a library available; workers start it when the first call comes.

        To install it again does nothing, unless one of the user's own modules has been edited: then new processes take the place of the old ones.
        When one has been reloaded, the next function call has that done.

        Raises
        ------
        ValueError
            Another library has that name.
        """
        if not isinstance(library, LibraryTask):
            validators.refuse(
                "library", library, "a LibraryTask, as m.create_library_from_functions makes it", TypeError
            )
        self._renewals.check()
        self._install(library)
        self._renewals.add(library)

    def _install(self, library: LibraryTask, *, renewed: bool = False) -> None:
        library.refresh()
        setup = self.declare_shared_bytes(library.serialize())
        spec = library.make_spec(setup)
        known = self._libraries.get(library.name)
        if (
            known is not None
            and known[0] != spec.name
            and (renewed or self._kinds.get(library.name) == library.kind)
        ):
            # the same, but for the text of the user's own modules
            self._engine.post_event(e.LibraryRetired(known[0]))
        elif known is not None and known[0] != spec.name:
            msg = f"there is another library with the name {library.name!r}: remove it first with m.remove_library({library.name!r})"
            raise ValueError(msg)
        self._kinds[library.name] = library.kind
        self._enter_library(library, spec.name)
        self._engine.post_event(e.LibraryInstalled(spec))

    def _enter_library(self, library: LibraryTask, full_name: str) -> None:
        """Remember what a library is called, and what can be called in it."""
        self._libraries[library.name] = (full_name, library.functions)
        self._requests[library.name] = library.request
        self._labels.pop(full_name, None)
        self._labels[full_name] = library.name
        if len(self._labels) > MOST_LABELS:
            del self._labels[next(iter(self._labels))]

    def remove_library(self, name: str) -> None:
        """Stop a library everywhere; its unfinished calls come back as "missing library"."""
        known = self._libraries.pop(validators.text("name", name), None)
        self._renewals.remove(name)
        if known is not None:
            self._engine.post_event(e.LibraryRemoved(known[0]))

    def restart(self) -> None:
        """Have all that runs from now on run in new processes, on all workers.

        Ends the processes of all libraries, and those that single tasks are forked from: what they have imported, opened or kept in memory
        is gone, and the next call or task starts new ones. Calls that are running are run again there; single tasks that are
        running go on. Edits of your own modules need no restart; an installed package that was changed meanwhile does.
        """
        self._engine.post_event(e.Restarted())

    def check_library_exists(self, name: str) -> bool:
        """Whether a library of that name is installed."""
        return validators.text("name", name) in self._libraries

    def full_library_name(self, library: str, function: str) -> str:
        """Give the full name of an installed library.

        Raises
        ------
        ValueError
            There is no such library, or it has no such function.
        """
        self._renewals.check()
        known = self._libraries.get(library)
        if known is None:
            msg = f"no library {library!r} is installed; installed: {', '.join(self._libraries) or 'none'}"
            raise ValueError(msg)
        if function not in known[1]:
            msg = f"library {library!r} has no function {function!r}; it has: {', '.join(known[1])}"
            raise ValueError(msg)
        return known[0]

    def check_share(self, library: str, needs: ResourceRequest) -> None:
        """Make sure that a call needs no more than its library has.

        Raises
        ------
        ValueError
            It needs more.
        """
        for name, asked, has in zip(ResourceRequest._fields, needs, self._requests[library], strict=True):
            if asked is not None and has is not None and asked > has:
                msg = (
                    f"the call asks for {name}={asked}, but its library {library!r} has {name}={has}, which its calls share: "
                    f"ask for no more, or give the library more with library.set_{name}(...); a PythonTask has resources of its own"
                )
                raise ValueError(msg)

    def _on_library_started(self, up: i.LibraryStarted) -> None:
        """Warn, before the first task, of versions that will not understand each other's pickles: once, however many workers have them."""
        versions = frozenset(up.versions.items())
        if versions in self._reported_versions:
            return
        self._reported_versions.add(versions)
        packages = {name: version for name, version in up.versions.items() if name != "python"}
        text = explain_mismatch(
            {"packages": package_versions()}, {"packages": packages}, f"worker {up.worker}"
        )
        if text is not None:
            log.warning("%s", text)

    # ---- policy

    def set_scheduler(self, name: str) -> None:
        """Choose how workers are chosen: files (most input bytes), time, rand, worst, disk, fcfs."""
        if name not in PLACEMENT_POLICIES:
            msg = f"scheduler {name!r}: use one of {', '.join(PLACEMENT_POLICIES)}"
            raise ValueError(msg)
        self._engine.post_event(e.SettingChanged("scheduler", name))

    def enable_peer_transfers(self) -> None:
        """Let workers fetch from each other (the default)."""
        self._engine.post_event(e.SettingChanged("peer-transfers", True))

    def disable_peer_transfers(self) -> None:
        """Have everything go through the manager."""
        self._engine.post_event(e.SettingChanged("peer-transfers", False))

    def tune(self, name: str, value: float) -> int:
        """Set a number that policy depends on.

        There are worker-source-max-transfers, file-source-max-transfers, category-steady-n-tasks and temp-replica-count.

        Returns
        -------
        int
            0, or -1 for a name that is not known here: then nothing is set, and the log says so.
        """
        if validators.text("name", name) not in TUNABLE_PARAMETERS:
            hint = (
                validators.suggest_name(name, TUNABLE_PARAMETERS)
                or f"; there are: {', '.join(TUNABLE_PARAMETERS)}"
            )
            log.warning("tune(%r, %r) has set nothing: there is no such number here%s", name, value, hint)
            return -1
        self._engine.post_event(
            e.SettingChanged(name, validators.whole(name, value, TUNABLE_PARAMETERS[name]))
        )
        return 0

    def set_category_mode(self, category: str | None, mode: str) -> None:
        """Choose how a category learns what its tasks need: fixed, max, min waste, max throughput, or a bucketing mode."""
        known = parse_mode(validators.text("mode", mode))
        self._engine.post_event(
            e.CategorySet(validators.category("category", category), known, None, None, None)
        )

    def set_category_resources_max(self, category: str, resources: dict[str, float]) -> None:
        """Set what the tasks of a category get at most, and where they say nothing."""
        most = validators.request("resources", resources)
        self._engine.post_event(
            e.CategorySet(validators.category("category", category), None, most, None, None)
        )

    def set_category_resources_min(self, category: str, resources: dict[str, float]) -> None:
        """Set what the tasks of a category get at least."""
        least = validators.request("resources", resources)
        self._engine.post_event(
            e.CategorySet(validators.category("category", category), None, None, least, None)
        )

    # ---- what is going on

    def _on_stalled(self, missing: i.Stalled) -> None:
        self._missing = self.in_words(missing.text)
        if self._missing and not self._progress_reports_stalls():
            log.warning("%s", self._missing)

    def _progress_reports_stalls(self) -> bool:
        """Whether something else tells the user why nothing can run."""
        return False

    @property
    def stalled_reason(self) -> str:
        """Why nothing can run now; "" if something can, or nothing has to."""
        return self._missing

    def worker_name(self, number: int) -> str:
        """The host that a worker runs on."""
        if number not in self._worker_names and not self._engine.closed:
            self._worker_names.update(
                self._engine.query(lambda mind: {w.id: w.name for w in mind.tables.workers.values()})
            )
        return self._worker_names.get(number, f"worker {number}")

    def make_exception(
        self, outcome: str, info: dict[str, Any], payload: bytes, what: str, worker: int
    ) -> BaseException:
        """Make the exception that tells why a task has failed; files go by the names that the user has given them.

        Parameters
        ----------
        outcome, info, payload, worker
            What the mind says of it.
        what
            The task, in the user's words.
        """
        told = {
            "reason": self.in_words(info.get("reason", "")),
            "evidence": [self.in_words(line) for line in info.get("evidence") or ()],
            "library": self._labels.get(info.get("library", ""), info.get("library", "")),
        }
        where = self.worker_name(worker) if worker else ""
        return errors.exception_for(outcome, {**info, **told}, payload, what, where)

    def in_words(self, text: Any) -> str:
        """Call files and libraries in a text by the names that the user has given them."""
        said = CACHE_NAME_PATTERN.sub(
            lambda found: self._display_names.get(found[1]) or _kind_in_words(found[1]), str(text)
        )
        for full_name, label in list(self._labels.items()) if "library" in said else ():
            said = said.replace(full_name, label)
        return said

    @property
    def workers_connected(self) -> int:
        """Count the workers."""
        return self._engine.query(lambda mind: len(mind.tables.workers))

    @keyword_arguments.refuse_unknown
    def wait_for_workers(self, count: int = 1, timeout: float | timedelta | str | None = None) -> None:
        """Wait until so many workers are connected.

        Raises
        ------
        TimeoutError
        """
        count, timeout = validators.whole("count", count), validators.timeout("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.workers_connected < count:
            if deadline is not None and time.monotonic() > deadline:
                msg = f"{self.workers_connected} of {count} workers are connected after {timeout} s"
                raise TimeoutError(msg)
            time.sleep(0.01)

    def scale(self, count: int) -> None:
        """Have so many workers, from now on: its factory submits what lacks, and lets idle ones go that are too many. With 0 there are none.

        Raises
        ------
        RuntimeError
            No factory has been started for this manager.
        """
        count = validators.whole("count", count)
        self.adapt(count, count)

    def adapt(self, minimum: int, maximum: int) -> None:
        """Have as many workers as there is work for, from now on, within these bounds.

        Raises
        ------
        RuntimeError
            No factory has been started for this manager.
        """
        if self.factory is None:
            msg = "no factory brings workers to this manager: start one with Factory('local', manager=m).start(), or 'condor', or 'dask'"
            raise RuntimeError(msg)
        minimum, maximum = validators.whole("minimum", minimum), validators.whole("maximum", maximum)
        self.factory.change(min_workers=minimum, max_workers=maximum)
        if self._engine.query(lambda mind: mind.tables.expected_workers) is not None:
            self._engine.post_event(e.SettingChanged("expected-workers", maximum))

    def summarize_workers(self) -> list[dict[str, Any]]:
        """Describe each worker: id, host, what it has, what is free, how many tasks and files are there."""
        return self._engine.query(lambda mind: [
            {"id": w.id, "host": w.name, "total": w.total._asdict(), "free": w.free._asdict(), "tasks": len(w.tasks), "files": len(w.files),
             "libraries": {n: instance.slots for n, instance in w.libraries.items()}}
            for w in mind.tables.workers.values()
        ])  # fmt: skip

    def __reduce__(self) -> Any:
        msg = f"a {type(self).__name__} cannot be pickled: it stays in the process that made it, so no function that runs elsewhere may refer to it"
        raise TypeError(msg)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} port={self.port}{' closed' if self._engine.closed else ''}>"
        )


def _past(folder: Path, name: str | None) -> PreviousSession | None:
    """What the manager that this one goes on from has left; what nobody needs of that is removed."""
    past = find_previous_session(folder, name)
    if past is not None:
        remove_leftover_staging(past.sessions)
        log.info(
            "going on from %s: %d results are known, %d workers may be back soon",
            past.journal, len(past.results), len(past.workers),
        )  # fmt: skip
    return past


def _journal_directory(run_info_path: str | Path | bool | None) -> Path | None:
    """Where folders with journals are, if there are to be any."""
    if run_info_path is None:
        run_info_path = os.environ.get("VINE_RUN_INFO_PATH") or False
    if run_info_path is False:
        return None
    path = "vine-run-info" if run_info_path is True else validators.path("run_info_path", run_info_path)
    return Path(path).expanduser().absolute()


def _secret_of(password_file: Any) -> tuple[bytes, Path]:
    """The secret in a file, or that of this user, and where it is."""
    if password_file is None:
        return password.load_or_create_user_secret()
    path = Path(validators.path("password_file", password_file))
    return password.read_secret(path), path


def _context(given: Any) -> ContextFunction:
    """Understand a function with its arguments."""
    about: list[Any] = list(given) if isinstance(given, list | tuple) else []
    function, args, kwargs = (*about, *(None, [], {})[len(about) :])[:3]
    fits = callable(function) and isinstance(args, list | tuple) and isinstance(kwargs, dict)
    if not fits or len(about) > 3:
        allowed = "[function, args, kwargs], such as [load, ['a.json'], {}]"
        validators.refuse("library_context_info", given, allowed, TypeError)
    return function, list(args), dict(kwargs)


def _registry_folder(registry: Any) -> str:
    """Where a manager with a name is entered; "" for nowhere."""
    usual = registry is None or registry is True
    return (
        ""
        if registry is False
        else registry_directory("" if usual else validators.path("registry", registry))
    )


def _catalog_servers(catalog: Any) -> tuple[tuple[str, int], ...]:
    """The catalog servers that a manager with a name reports to."""
    usual = catalog is None or catalog is True
    return (
        ()
        if catalog is False
        else parse_servers(configured_servers("" if usual else validators.text("catalog", catalog)))
    )


def _is_directory(file: File) -> IsADirectoryError:
    msg = f"{file!r} is a directory, which has no bytes of its own: have a task read it, or declare what you need of it as an output of the task that makes it"
    return IsADirectoryError(msg)


def _kind_in_words(name: str) -> str:
    """Call a file that the user has given no name by what it is."""
    kind, _, rest = name.partition("-")
    if kind == "result":
        return f"the result of task {rest.rpartition('-')[2]}"
    return {"buffer": "a buffer", "temp": "a file of declare_temp"}.get(kind, name)


def _bytes_of(buffer: Any) -> bytes:
    """Give the bytes of a text, or of bytes in any of Python's forms."""
    if isinstance(buffer, str):
        try:
            return buffer.encode()
        except UnicodeEncodeError as error:
            msg = f"this text has no bytes in UTF-8 ({error}): give bytes, such as text.encode(errors='surrogateescape')"
            raise ValueError(msg) from error
    if isinstance(buffer, bytes | bytearray | memoryview):
        return bytes(buffer)
    # A number or an array of NumPy has bytes, too, but they do not say of which type and shape it is.
    msg = (
        f"buffer is of the type {type(buffer).__name__}: use bytes, or text (str), or None for a buffer that a task fills. For another value "
        "give its text, such as str(x) or json.dumps(x), or the bytes that can be read back, such as pickle.dumps(x); for the raw memory of an array, x.tobytes()"
    )
    raise TypeError(msg)


def _port_range(port: int | Sequence[int]) -> tuple[int, int]:
    if port == 0 and os.environ.keys() & PORT_ENVIRONMENT_VARIABLES:
        return _port_range_of_environment()
    allowed = "a number from 0 (any) to 65535, or a pair such as (9000, 9100)"
    pair = list(port) if isinstance(port, Sequence) and not isinstance(port, str | bytes) else [port, port]
    if len(pair) != 2:
        validators.refuse("port", port, allowed)
    try:
        low, high = (validators.whole("port", one, 0, 65535) for one in pair)
    except (TypeError, ValueError) as error:
        validators.refuse("port", port, allowed, type(error))
    if low > high:
        validators.refuse("port", port, allowed)
    return low, high


def _port_range_of_environment() -> tuple[int, int]:
    """Read the ports that "any" means where this runs, under the names that cctools have for them."""
    found = {
        name: os.environ[name].strip() for name in sorted(PORT_ENVIRONMENT_VARIABLES) if name in os.environ
    }
    for name, text in found.items():
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            msg = f"the variable {name} is {text!r}: set it to a port from 1 to 65535, or unset it"
            raise ValueError(msg)
    if "VINE_PORT" in found:
        return int(found["VINE_PORT"]), int(found["VINE_PORT"])
    low = int(found.get("TCP_LOW_PORT") or found.get("VINE_LOW_PORT") or 1024)
    high = int(found.get("TCP_HIGH_PORT") or found.get("VINE_HIGH_PORT") or 65535)
    if low > high:
        msg = f"the variables {' and '.join(found)} leave no port: {low} is above {high}"
        raise ValueError(msg)
    return low, high
