"""Results of tasks that programs remember on disk: a folder of contents, and a log of what they are.

A line of the log is a JSON object with the key of a task and the digests of its contents. The line is
written after the contents, under a lock, so several programs may use one cache. A content that is not
what its line says, and a line that cannot be read, are left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from vinecore.protocol import trees
from vinecore.protocol.transfer.digests import CHUNK_BYTES, Digest
from vinecore.scheduler.specs import TaskSpec

log = logging.getLogger("vinecore")

FORMAT_VERSION = 1
# Names that are made of the whole content.
CONTENT_NAME = re.compile(r"(?:untar-)*(?:file|dir|buffer|object)-[0-9a-f]{40}(?:-[0-7]+)?")
# Options that say how a task is carried out, not what it makes.
IGNORED_OPTIONS = frozenset({"outputs", "record", "preload", "once"})


class StoredContent(NamedTuple):
    """A content of an entry: its file in the cache, its digest, and its permission bits."""

    file: str
    sha256: str
    mode: int


class Entry(NamedTuple):
    """A task that is remembered: its result, its outputs in their order, and what it has printed."""

    result: StoredContent | None
    outputs: list[StoredContent]
    printed: dict[str, str]


class NewContent(NamedTuple):
    """A content to be stored: bytes or an open file, and the digest that a worker has computed, or ""."""

    content: bytes | BinaryIO
    digest: str = ""
    mode: int = 0o644


def task_key(spec: TaskSpec, content_name: Callable[[str], str | None], context: str) -> str | None:
    """Return the key of a task; None if it reads something whose content is not known.

    Parameters
    ----------
    spec : TaskSpec
        The task.
    content_name : callable
        Returns the name of a file by its content, or None.
    context : str
        What else the task depends on: packages, modules, its library.

    Returns
    -------
    str or None
        Equal for tasks that are taken to make the same.
    """
    names = [*spec.shared, *spec.inputs, *((spec.environment,) if spec.environment else ())]
    known = [content_name(name) for name in names]
    options = {name: value for name, value in spec.options.items() if name not in IGNORED_OPTIONS}
    options.pop("environment", None)
    mounts = [[content_name(mount[0]), *mount[1:]] for mount in options.pop("mounts", ())]
    if None in known or any(mount[0] is None for mount in mounts):
        return None
    outputs = [[remote, *how] for remote, _name, *how in spec.options.get("outputs", ())]
    about = [FORMAT_VERSION, spec.function, known, mounts, outputs, options, list(spec.request), context]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=repr).encode())
    digest.update(spec.payload)
    return digest.hexdigest()


class TaskCache:
    """Entries on disk, and a thread that writes new ones.

    Parameters
    ----------
    folder
        Holds the contents.
    log_file
        The log.
    """

    def __init__(self, folder: str, log_file: str) -> None:
        self._folder, self._log_file = folder, log_file
        os.makedirs(folder, exist_ok=True)
        os.makedirs(os.path.dirname(log_file), exist_ok=True)
        self._entries: dict[str, Entry] = {}
        self._position = 0
        self._lock = threading.Lock()
        # output of a task that has run here -> the name by its content
        self._content_names: dict[str, str] = {}
        self._unwritten_keys: set[str] = set()
        self._unwritten: queue.Queue[Callable[[], None] | None] = queue.Queue()
        with open(log_file, "ab"):
            pass
        self._read_log()
        self._thread = threading.Thread(target=self._write, name="vine-task-cache", daemon=True)
        self._thread.start()

    def content_name(self, name: str) -> str | None:
        """Return the name of a file by its content; None if the content is not known."""
        if CONTENT_NAME.fullmatch(name):
            return name
        if name not in self._content_names:
            # the task that makes it may have ended just now
            self._unwritten.join()
        return self._content_names.get(name)

    def find(self, key: str) -> tuple[Entry, list[bytes | str]] | None:
        """Return an entry with its contents, the result as bytes and the outputs as paths, or None."""
        if key in self._unwritten_keys:
            self._unwritten.join()
        entry = self._entries.get(key)
        if entry is None:
            self._read_log()
            entry = self._entries.get(key)
            if entry is None:
                return None
        try:
            contents = self._check(entry)
        except (OSError, ValueError) as error:
            log.warning(
                "an entry of the tasks cache in %s is damaged, so its task runs again: %s",
                self._folder,
                error,
            )
            with self._lock:
                self._entries.pop(key, None)
            return None
        return entry, contents

    def _check(self, entry: Entry) -> list[bytes | str]:
        """Return the contents of an entry if they are what they were."""
        contents: list[bytes | str] = []
        for stored in ([entry.result] if entry.result else []) + entry.outputs:
            path = os.path.join(self._folder, stored.file)
            found, parts = hashlib.sha256(), []
            with open(path, "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
                    if stored is entry.result:
                        parts.append(chunk)
            if found.hexdigest() != stored.sha256:
                msg = f"{path} has another content than was written"
                raise ValueError(msg)
            contents.append(b"".join(parts) if stored is entry.result else path)
        return contents

    def add(
        self,
        key: str,
        result: NewContent | None,
        outputs: Sequence[tuple[str, str, NewContent]],
        printed: dict[str, str],
    ) -> None:
        """Have an entry written.

        Parameters
        ----------
        key
            The key of the task.
        result
            The result of a Python function.
        outputs
            For each output its cache name, the kind of its file, and its content.
        printed
            What the task has printed.
        """
        self._unwritten_keys.add(key)
        self._unwritten.put(lambda: self._store(key, result, outputs, printed))

    def close(self) -> None:
        """Write what is to be written, and stop."""
        self._unwritten.put(None)
        self._thread.join()

    def _write(self) -> None:
        while True:
            write = self._unwritten.get()
            try:
                if write is None:
                    return
                write()
            except (OSError, ValueError) as error:
                log.warning("a task cannot be kept in the tasks cache in %s: %s", self._folder, error)
            finally:
                self._unwritten.task_done()

    def _store(
        self,
        key: str,
        result: NewContent | None,
        outputs: Sequence[tuple[str, str, NewContent]],
        printed: dict[str, str],
    ) -> None:
        news = ([result] if result else []) + [content for _name, _kind, content in outputs]
        temporary = [os.path.join(self._folder, f".{key}.{os.getpid()}.{n}") for n in range(len(news))]
        try:
            stored = [
                StoredContent(_file_name(key, n, result), _copy(new, path), new.mode)
                for n, (new, path) in enumerate(zip(news, temporary, strict=True))
            ]
            with open(self._log_file, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._read_log()
                if key not in self._entries:
                    for path, about in zip(temporary, stored, strict=True):
                        os.replace(path, os.path.join(self._folder, about.file))
                    entry = Entry(stored[0] if result else None, stored[1 if result else 0 :], printed)
                    # a line that another program could not complete is ended first
                    file.write(
                        b"\n"
                        + json.dumps({"version": FORMAT_VERSION, "key": key, **_as_json(entry)}).encode()
                        + b"\n"
                    )
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            self._unwritten_keys.discard(key)
            for path in temporary:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        made = stored[1 if result else 0 :]
        for (name, kind, _content), about in zip(outputs, made, strict=True):
            mode = trees.visible_mode(about.mode)
            shown = "" if kind == "buffer" or mode == trees.DEFAULT_FILE_MODE else f"-{mode:o}"
            self._content_names[name] = f"{kind}-{about.sha256[:40]}{shown}"

    def _read_log(self) -> None:
        """Read what any program has added to the log."""
        with self._lock, open(self._log_file, "rb") as file:
            if os.fstat(file.fileno()).st_size < self._position:
                # it was removed, or made anew
                self._entries.clear()
                self._position = 0
            file.seek(self._position)
            data = file.read()
            complete = data.rfind(b"\n") + 1
            self._position += complete
            for key, entry in _parse(data[:complete]):
                self._entries[key] = entry


def _parse(data: bytes) -> Iterator[tuple[str, Entry]]:
    for line in data.splitlines():
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if found["version"] != FORMAT_VERSION:
                continue
            result = found["result"]
            entry = Entry(
                _stored(result) if result else None,
                [_stored(one) for one in found["outputs"]],
                dict(found["printed"]),
            )
            yield str(found["key"]), entry
        except (ValueError, KeyError, TypeError):
            log.warning("the log of the tasks cache has a line that cannot be read: %r", line[:80])


def _stored(found: dict[str, Any]) -> StoredContent:
    about = StoredContent(str(found["file"]), str(found["sha256"]), int(found["mode"]))
    if os.path.basename(about.file) != about.file:
        msg = f"{about.file} is not in the cache"
        raise ValueError(msg)
    return about


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "result": entry.result._asdict() if entry.result else None,
        "outputs": [output._asdict() for output in entry.outputs],
        "printed": entry.printed,
    }


def _file_name(key: str, number: int, result: NewContent | None) -> str:
    return f"{key}.output" if result and number == 0 else f"{key}.{number}.file"


def _copy(new: NewContent, path: str) -> str:
    """Write a content to a file, and return its SHA-256.

    Raises
    ------
    ValueError
        The content is not what the worker has made.
    """
    sha256, digest = hashlib.sha256(), Digest()
    with open(path, "wb") as target, contextlib.ExitStack() as stack:
        if isinstance(new.content, bytes):
            chunks: Iterator[bytes] = iter((new.content,))
        else:
            source = stack.enter_context(new.content)
            chunks = iter(lambda: source.read(CHUNK_BYTES), b"")
        for chunk in chunks:
            sha256.update(chunk)
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    if new.digest and str(digest) != new.digest:
        msg = "an output has been changed since its task has ended"
        raise ValueError(msg)
    return sha256.hexdigest()
