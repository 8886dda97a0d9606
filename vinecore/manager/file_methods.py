"""The part of `Manager` that declares files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vinecore import keyword_arguments, validators
from vinecore.cache_level import CACHE_LEVELS, parse_cache_level
from vinecore.manager import url_metadata
from vinecore.manager.cache_names import hash_bytes, hash_path
from vinecore.manager.files import File, check_declared
from vinecore.manager.output_methods import OutputMethods
from vinecore.manager.tasks import Task
from vinecore.manager.url_metadata import RemoteFileInfo
from vinecore.protocol import trees, xrootd
from vinecore.protocol.transfer import digests
from vinecore.scheduler.specs import WORKFLOW, FileSpec

log = logging.getLogger("vinecore")


class FileMethods(OutputMethods):
    """Files that the user declares."""

    @keyword_arguments.refuse_unknown
    def declare_file(
        self,
        path: str | Path,
        cache: bool | str = False,
        peer_transfer: bool = True,
        unlink_when_done: bool = False,
    ) -> File:
        """Declare a file or directory of this machine, as an input or as the place of an output.

        Parameters
        ----------
        path : str or Path
            The path of the file. If nothing is there, a task has to make it.
        cache : bool or str
            How long workers keep the file. False or "task": until the tasks that need it have
            ended. True or "workflow": until it is undeclared or the manager ends. "worker": until
            the worker ends. "forever": for later workers, too, if they are started with
            ``--workspace DIR --keep-workspace``. The last two are for inputs, which are named by
            their content.
        peer_transfer : bool
            Whether workers may fetch the file from each other.
        unlink_when_done : bool
            Whether the file is removed from this machine when it has been undeclared and no task
            needs it any more, or when the manager ends.

        Returns
        -------
        File
            The file, for tasks of this manager.

        Raises
        ------
        TypeError
            A value has a wrong type.
        ValueError
            There is no such cache level; or the file, or something in the directory, is a pipe, a
            socket or a device.
        OSError
            The file cannot be read.
        """
        level, place = parse_cache_level(cache), Path(validators.path("path", path)).absolute()
        peer_transfer = validators.flag("peer_transfer", peer_transfer)
        unlink_when_done = validators.flag("unlink_when_done", unlink_when_done)
        if place.exists():
            folder = place.is_dir()
            (name, digest), about = hash_path(place), place.stat()
            size = -1 if folder else about.st_size
            plain = trees.visible_mode(about.st_mode) == trees.DEFAULT_FILE_MODE
            self._server.store.declare(name, str(place))
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
            self._server.store.set_destination(name, str(place))
            number = self._effective_level(name, level)
            self._declare(
                FileSpec(name, peer_transfer=peer_transfer, level=number, awaited=True, absent=True)
            )
        if unlink_when_done:
            self._server.store.unlink_on_release(name, str(place))
        file = File(self, "file", name, source=str(place), size=size, level=level, peer_transfer=peer_transfer,
                    unlink_when_done=unlink_when_done)  # fmt: skip
        file.has_content = place.exists()
        return file

    @keyword_arguments.refuse_unknown
    def declare_buffer(
        self, buffer: str | bytes | None = None, cache: bool | str = False, peer_transfer: bool = True
    ) -> File:
        """Declare some bytes, or a buffer that a task fills.

        Parameters
        ----------
        buffer : str, bytes or None
            The content, text in UTF-8; None for a buffer that a task fills.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The buffer, for tasks of this manager.

        Raises
        ------
        TypeError, ValueError
            The buffer has another type, or is a text without bytes in UTF-8; or there is no such
            cache level.
        """
        level, peer_transfer = parse_cache_level(cache), validators.flag("peer_transfer", peer_transfer)
        if buffer is None:
            name, size = self._unique_name("buffer"), -1
            level_number = self._effective_level(name, level)
            self._declare(FileSpec(name, peer_transfer=peer_transfer, level=level_number, awaited=True))
        else:
            data = _bytes_of(buffer)
            name, size = hash_bytes("buffer", data), len(data)
            self._server.store.declare(name, data)
            spec = FileSpec(
                name, size, at_manager=True, peer_transfer=peer_transfer, digest=digests.digest_bytes(data)
            )
            self._declare(spec._replace(level=self._effective_level(name, level)))
        file = File(self, "buffer", name, size=size, level=level, peer_transfer=peer_transfer)
        file.has_content = buffer is not None
        return file

    def declare_temp(self) -> File:
        """Declare a file that a task makes and that stays on the workers.

        Returns
        -------
        File
            The temporary file, as an output of one task and an input of others.
        """
        name = self._unique_name("temp")
        self._declare(FileSpec(name, awaited=True))
        return File(self, "temp", name, level="workflow")

    @keyword_arguments.refuse_unknown
    def declare_url(self, url: str, cache: bool | str = False, peer_transfer: bool = True) -> File:
        """Declare a file that workers download.

        The cache name consists of the address and of the validator that its server reports (such as
        an ETag), so a content that has changed is another file. The server need not be reachable
        from here.

        Parameters
        ----------
        url : str
            An address with http, https, ftp, file (on the worker's disk) or root (XRootD).
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The file, for tasks of this manager.

        Raises
        ------
        TypeError, ValueError
            The address is not a text, or has another scheme; or there is no such cache level.
        """
        level, url = parse_cache_level(cache), validators.label("url", url)
        peer_transfer = validators.flag("peer_transfer", peer_transfer)
        look = url_metadata.stat_url(url)
        name = url_metadata.url_cache_name(url, look)
        # what other machines have under this path need not be what this one has
        if url[:5].lower() == "file:":
            look = RemoteFileInfo()
        size = look.verified_size
        self._display_names[name] = url
        # a later manager cannot use a copy of a content without a validator
        number = CACHE_LEVELS[level] if look.validator else min(CACHE_LEVELS[level], WORKFLOW)
        spec = FileSpec(
            name, size, url=url, peer_transfer=peer_transfer, validator=look.validator, level=number
        )
        self._declare(spec)
        return File(self, "url", name, source=url, size=size, level=level, peer_transfer=peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_untar(self, tarball: File, cache: bool | str = False, peer_transfer: bool = True) -> File:
        """Declare the directory that an archive unpacks to, once on each worker.

        Parameters
        ----------
        tarball : File
            The archive, a tar file with any compression that Python knows.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The directory, for tasks of this manager.

        Raises
        ------
        TypeError, ValueError
            The archive is not declared, or there is no such cache level.
        """
        level, peer_transfer = parse_cache_level(cache), validators.flag("peer_transfer", peer_transfer)
        name = f"untar-{check_declared(tarball).cache_name}"
        number = self._effective_level(name, level)
        self._declare(
            FileSpec(
                name, archive=tarball.cache_name, directory=True, peer_transfer=peer_transfer, level=number
            )
        )
        return File(self, "untar", name, source=tarball.source(), level=level, peer_transfer=peer_transfer)

    @keyword_arguments.refuse_unknown
    def declare_poncho(
        self, package: File | str | Path, cache: bool | str = True, peer_transfer: bool = True
    ) -> File:
        """Declare an environment: an archive of poncho, conda-pack or venv-pack.

        Parameters
        ----------
        package : File, str or Path
            The archive, which contains ``bin/python``, or its path.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The environment, for `Task.add_environment`.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or there is no such cache level.

        Notes
        -----
        An archive that does not exist is a warning in the log: programs declare one and pack it
        later, or never use it. Tasks that need it fail with its path until it exists.
        """
        if not isinstance(package, File):
            if not Path(validators.path("package", package)).is_file():
                log.warning(
                    "the environment %s does not exist: pack one with conda-pack, venv-pack or poncho_package_create; until then tasks that need it fail",
                    package,
                )
            package = self.declare_file(package, cache)
        file = self.declare_untar(package, cache, peer_transfer)
        file.kind = "poncho"
        return file

    @keyword_arguments.refuse_unknown
    def declare_xrootd(
        self,
        source: str,
        proxy: File | str | Path | None = None,
        env: File | str | Path | None = None,
        cache: bool | str = False,
        peer_transfer: bool = True,
    ) -> File:
        """Declare a file on an XRootD server.

        Parameters
        ----------
        source : str
            The address: ``root://server//path``.
        proxy : File, str, Path or None
            A file with an X.509 proxy, which is sent to the worker that downloads; None if the
            workers have their own credentials.
        env : File, str, Path or None
            An environment (`declare_poncho`) with ``xrdcp``, or with Python's XRootD; None for the
            worker's own.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The file, for tasks of this manager.

        Raises
        ------
        TypeError
            A value has a wrong type.
        ValueError
            The address has another scheme, or there is no such cache level.
        FileNotFoundError
            There is no such environment.
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
        """Declare the directory that a package made by ``starch`` extracts to.

        Parameters
        ----------
        starch : File, str or Path
            The package, or its path.
        cache, peer_transfer : bool or str, bool
            As for `declare_file`.

        Returns
        -------
        File
            The directory, for `Task.add_starch_package`, or as an input.

        Raises
        ------
        TypeError, ValueError
            A value has a wrong type, or there is no such cache level.
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
        what = starch.source() or starch.cache_name
        return self._declare_on_demand(task, "package", "starch", "", what, cache, peer_transfer)

    def declare_result(self, name: str) -> File:
        """Declare the result of a task as a file of the user's.

        Parameters
        ----------
        name : str
            The cache name of the result.

        Returns
        -------
        File
            A temporary file.
        """
        self._declare(FileSpec(name))
        return File(self, "temp", name, level="workflow")


def _bytes_of(buffer: Any) -> bytes:
    """Return the bytes of a text, or of bytes in any of Python's forms."""
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
