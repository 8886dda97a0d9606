"""The part of `Manager` that declares files and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vinecore import keyword_arguments, validators
from vinecore.cache_level import CACHE_LEVELS, parse_cache_level
from vinecore.manager import url_metadata
from vinecore.manager.cache_names import hash_bytes, hash_path
from vinecore.manager.content_methods import ContentMethods
from vinecore.manager.files import File
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.manager.tasks import Task, declared
from vinecore.manager.url_metadata import RemoteFileInfo
from vinecore.protocol import trees, xrootd
from vinecore.protocol.transfer import digests
from vinecore.scheduler import events, queries
from vinecore.scheduler.specs import WORKFLOW, FileSpec

# Kinds of files that are always directories.
UNPACKED = ("untar", "poncho", "starch")  # files that are always directories


class FileMethods(ContentMethods):
    """Files that the user declares."""

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
            size = -1 if folder else about.st_size
            plain = trees.visible_mode(about.st_mode) == trees.DEFAULT_FILE_MODE
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
        number = CACHE_LEVELS[level] if look.validator else min(CACHE_LEVELS[level], WORKFLOW)
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
        self._declare(FileSpec(name, peer_transfer=peer_transfer, level=CACHE_LEVELS[level]))
        self._engine.post_event(events.TasksSubmitted([spec]))
        return file

    def declare_result(self, name: str) -> File:
        """Declare the result of a task as a file of the user's."""
        self._declare(FileSpec(name))
        return File(self, "temp", name, level="workflow")

    def undeclare_file(self, file: File) -> None:
        """Say that a file is not needed any more.

        As soon as no task needs it either it is removed from the workers, unless its cache level is "worker" or "forever", and from this
        machine if it was declared with ``unlink_when_done``.
        """
        declared(file)
        self._engine.store.release(file.cache_name, file.source if file.unlink_when_done else "")
        self._engine.post_event(events.FilesReleased([file.cache_name], prune=False))
        if file.unlink_when_done and not self._engine.closed:
            self._engine.query(queries.await_earlier_events)  # what no task needs is gone on return

    remove_file = undeclare_file

    def prune_file(self, file: File) -> None:
        """Remove all replicas of a file from the workers, whatever its cache level, and keep its name."""
        self._engine.post_event(events.FilesReleased([declared(file).cache_name], prune=True))

    def fetch_file(self, file: File) -> str:
        """Give the content of a file as text."""
        return self.read_file(file).decode()

    def get_file_replica_count(self, file: File) -> int:
        """Count the workers that have a file, also those that still compare it with what was made."""
        declared(file)
        return self._engine.query(lambda scheduler: queries.count_replicas(scheduler, file.cache_name))

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


def _is_directory(file: File) -> IsADirectoryError:
    msg = f"{file!r} is a directory, which has no bytes of its own: have a task read it, or declare what you need of it as an output of the task that makes it"
    return IsADirectoryError(msg)


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
