"""Bulk data: whole objects over connections of their own, with blocking sockets.

After the handshake with role "bulk" the client asks, as often as it likes on one connection, and each line is sealed (see `seals`)::

    {"get": name}             ->  {"size": n, "directory": false, "mode": m} and n bytes, or {"gone": reason}
    {"put": name, "size": n, "mode": m, "digest": d}  and n bytes  ->  {"stored": n} or {"altered": text}

A worker answers only a "get" with a ticket of the manager's (see `tickets`), and {"refused": reason} to everything else.

A directory travels as an uncompressed tar stream; what is a file at its source has its mode with it. A file that is being
fetched has a temporary name until its last byte is here: a broken connection never leaves half an object behind under its name.

Whoever receives computes a digest of it. It is compared with the one that was computed when the object was made, so that an alteration on
a disk is found as well; of what has none, such as small objects and directories, with one that the sender computes and says in its answer:
of a large file it does if the request says {"prove": true}. A large file is compared when the transfer is over (`Client.bring`), because sender, receiver and digest together may want more processors than
there are; who has some to spare computes its digest while the bytes arrive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, NamedTuple, Protocol, Union

from vinecore.protocol import INLINE_LIMIT, handshake
from vinecore.protocol.authentication import AuthenticatedLines
from vinecore.protocol.ports import canonical_address
from vinecore.protocol.transfer import digests, trees

if TYPE_CHECKING:
    import tarfile

CHUNK = 1 << 20
SEND_AT_ONCE = 1 << 28
CONNECT_S = 5.0
"""A peer that does not answer for so long cannot be reached: two lost packets are forgiven."""
STALL_S = 60.0
"""A transfer that moves nothing for this long has failed."""
IDLE_S = 60.0
"""A server closes a connection that has asked nothing for this long."""
LOG_INTERVAL_S = 30.0  # after a complaint about what hinders everybody
CLOSE_S = 5.0
HANDSHAKE_GRACE_S = 2.0
"""Who has not proved the secret for so long makes room, where all places are taken and somebody else knocks."""
MAX_UNAUTHENTICATED = 256  # at once
UNAUTHENTICATED_FD_DIVISOR = 8  # of the files that a process may have open, one part for strangers
MAX_LOGGED_REFUSALS = 20  # said in `QUIET_S`; further ones are counted

TlsWrapper = Callable[[socket.socket], socket.socket]
"""Turns a connection into what is spoken on instead, and owns it from then on (see `tls`)."""

Content = Union[bytes, str]
"""An object as it is held: its bytes, or the path of the file or directory."""


class ObjectNotFound(LookupError):
    """The source answered that it does not have the object."""


class ChecksumMismatch(ValueError):
    """What came is not what was made."""


class Unreachable(ConnectionError):
    """Nobody answers at the address of the source, or nothing gets there."""


class ReceivedObject(NamedTuple):
    """What has come."""

    size: int  # as it travelled
    digest: str  # of the bytes as they travelled


class PendingVerification:
    """That a file which is here is what it should be; has still to be found out.

    Parameters
    ----------
    file
        Open for reading and writing; is closed with this.
    size, expected
        What it should be.
    """

    def __init__(self, file: BinaryIO, size: int, expected: str) -> None:
        self.file, self._size, self._expected = file, size, expected
        self._follower = digests.IncrementalHasher(file.fileno())

    def advance(self, end: int) -> None:
        """Say how much of the file is written: if there is a processor to spare it looks at that already."""
        if digests.cpu_to_spare():
            self._follower.advance(end)

    def verify(self) -> None:
        """Look at the file, or at the rest of it.

        Raises
        ------
        Altered
            It is something else.
        OSError
            It cannot be read.
        """
        _check_digest(self._follower.digest(self._size), self._expected)

    def close(self) -> None:
        """Look no further."""
        self._follower.close()
        self.file.close()


class ObjectProvider(Protocol):
    """Where a bulk server finds and puts objects; called from several threads."""

    def find_object(self, name: str) -> Content | None:
        """Give an object, or None."""

    def temporary(self, name: str) -> str:
        """Give a fresh path for something incomplete."""

    def store(self, name: str, path: str, digest: str) -> None:
        """Take over what is complete."""


def serve(
    words: AuthenticatedLines,
    shelf: ObjectProvider,
    objection: Callable[[dict[str, Any]], str] = lambda _request: "",
    *,
    follow: bool = False,
) -> None:
    """Answer requests on one connection until the client closes it.

    Parameters
    ----------
    words
        The connection.
    shelf
        Where the objects are.
    objection
        Says why a request is refused; "" if it is not.
    follow
        Send for links that lead out of a directory what they point to; see `trees.entries`.

    Raises
    ------
    handshake.Refused
        A request was refused, which ends the connection.
    """
    with words.sock:
        while True:
            try:
                request = _next_request(words)
                if request is None:
                    return
                refusal = objection(request)
                if refusal:
                    words.send({"refused": refusal})
                elif "get" in request:
                    content = shelf.find_object(str(request["get"]))
                    _send(words, content, prove=bool(request.get("prove")), follow=follow)
                else:
                    _receive_put(words, shelf, request)
            except ChecksumMismatch as error:
                with contextlib.suppress(OSError):
                    words.send({"altered": str(error)})
                return
            except handshake.HandshakeRejected:
                raise
            except (OSError, ValueError, KeyError):
                return
            if refusal:
                raise handshake.HandshakeRejected(refusal)


def _next_request(words: AuthenticatedLines) -> dict[str, Any] | None:
    sock = words.sock
    sock.settimeout(IDLE_S)
    if not sock.recv(1, socket.MSG_PEEK):
        return None
    request = words.receive(time.monotonic() + STALL_S)
    sock.settimeout(STALL_S)
    return request


def _send(words: AuthenticatedLines, content: Content | None, *, prove: bool, follow: bool) -> None:
    if content is None:
        words.send({"gone": "it is not there any more: it was changed or removed"})
    elif isinstance(content, bytes):
        _send_bytes(words, content, {})
    elif os.path.isdir(content):
        _send_directory(words, content, follow=follow)
    else:
        try:
            file = open(content, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            words.send({"gone": "it is not there any more: it was changed or removed"})
            return
        with file:
            about = os.fstat(file.fileno())
            mode = {"mode": about.st_mode & 0o777}
            if about.st_size <= INLINE_LIMIT:
                _send_bytes(words, file.read(), mode)
            else:
                proof = (
                    {"digest": digests.IncrementalHasher(file.fileno()).digest(about.st_size)}
                    if prove
                    else {}
                )
                words.send({"size": about.st_size, "directory": False, **mode, **proof})
                _send_file(words.sock, file, about.st_size)


def _send_bytes(words: AuthenticatedLines, content: bytes, more: dict[str, Any]) -> None:
    head = {"size": len(content), "directory": False, "digest": digests.digest_bytes(content), **more}
    words.send(head)
    words.sock.sendall(content)


def _send_file(sock: socket.socket, file: BinaryIO, size: int) -> None:
    _set_kernel_timeouts(sock)
    sent = 0
    while sent < size:
        try:
            more = os.sendfile(sock.fileno(), file.fileno(), sent, min(size - sent, SEND_AT_ONCE))
        except BlockingIOError:
            msg = f"nothing could be sent for {STALL_S:.0f} s"
            raise TimeoutError(msg) from None
        if not more:
            msg = f"the file has become {size - sent} bytes shorter while it was sent"
            raise OSError(msg)
        sent += more


def _set_kernel_timeouts(sock: socket.socket) -> None:
    """Have calls wait in the kernel, for a bounded time, which costs less than asking before each whether it would wait."""
    limit = struct.pack("ll", int(STALL_S), int(STALL_S % 1 * 1e6))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _send_directory(words: AuthenticatedLines, folder: str, *, follow: bool) -> None:
    # what is to be followed is the user's own, who wants nothing in it; a cache is where there is room
    with tempfile.TemporaryFile(dir=None if follow else os.path.dirname(folder)) as packed:
        size, digest = _tar(folder, packed, follow=follow)
        words.send({"size": size, "directory": True, "digest": digest})
        _send_file(words.sock, packed, size)


def _tar(folder: str, packed: BinaryIO, *, follow: bool = False) -> ReceivedObject:
    import tarfile  # seldom needed, and long to import

    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(_member(".", os.stat(folder)))
        for entry in trees.entries(folder, follow=follow):
            member = _member(entry.name, entry.about, entry.link)
            if member.isreg():
                with open(entry.path, "rb") as file:
                    archive.addfile(member, file)
            else:
                archive.addfile(member)
    size = packed.tell()
    packed.seek(0)
    packed.flush()
    return ReceivedObject(size, digests.IncrementalHasher(packed.fileno()).digest(size))


def _member(name: str, about: os.stat_result, link: Union[str, None] = None) -> tarfile.TarInfo:
    """Describe a part of a tree to who unpacks it: no more than what tasks may see."""
    import tarfile

    member = tarfile.TarInfo(name)
    member.mtime = about.st_mtime
    if link is not None:
        member.type, member.linkname = tarfile.SYMTYPE, link
    elif stat.S_ISDIR(about.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, trees.folder_mode(about.st_mode)
    else:
        member.mode, member.size = about.st_mode & 0o777 | 0o400, about.st_size
    return member


def _receive_put(words: AuthenticatedLines, shelf: ObjectProvider, request: dict[str, Any]) -> None:
    name, size = str(request["put"]), int(request["size"])
    path = shelf.temporary(name)
    directory, expected = bool(request.get("directory")), str(request.get("digest", ""))
    try:
        digest = receive_content(words.sock, size, directory, path, request.get("mode"), expected)
    except BaseException:
        remove_tree(path)
        raise
    shelf.store(name, path, digest)
    words.send({"stored": size})


def receive_content(
    sock: socket.socket,
    size: int,
    directory: bool,
    path: str,
    mode: Union[int, None] = None,
    expected: str = "",
) -> str:
    """Receive exactly ``size`` bytes into ``path``; unpack them there if they are a directory.

    Returns
    -------
    str
        The digest of the bytes.

    Raises
    ------
    Altered
        It is not the expected one.
    """
    if directory:
        import tarfile

        with tempfile.TemporaryFile(dir=os.path.dirname(path)) as packed:
            digest = _receive_bytes(sock, size, packed.fileno())
            _check_digest(digest, expected)
            packed.seek(0)
            os.mkdir(path)
            try:
                with tarfile.open(fileobj=packed) as archive:
                    unpack_safely(archive, path)
            except tarfile.TarError as error:
                msg = f"what came instead of a directory cannot be unpacked: {error}"
                raise ValueError(msg) from error
        return digest
    with open(path, "w+b", buffering=0) as file:
        digest = _receive_bytes(sock, size, file.fileno())
    _check_digest(digest, expected)
    _set_mode(path, mode)
    return digest


def _set_mode(path: str, mode: Union[int, None]) -> None:
    """Give a file the mode it has at its source; what was no file there has the usual one, whatever the umask is here."""
    with contextlib.suppress(PermissionError):  # some file systems have no modes
        os.chmod(path, 0o644 if mode is None else mode & 0o777 | 0o400)


def _receive_unverified(
    sock: socket.socket, size: int, path: str, mode: Union[int, None], expected: str
) -> PendingVerification:
    """Receive a file whose digest is compared later."""
    proof = PendingVerification(open(path, "w+b", buffering=0), size, expected)  # noqa: SIM115 - closed with the proof
    try:
        _receive_to_file(sock, size, proof.file.fileno(), proof.advance)
        _set_mode(path, mode)
    except BaseException:
        proof.close()
        raise
    return proof


def _check_digest(digest: str, expected: str) -> None:
    if expected and digest != expected:
        msg = f"what came was altered: its digest is {digest}, it should be {expected}"
        raise ChecksumMismatch(msg)


def _receive_bytes(sock: socket.socket, size: int, file: int) -> str:
    if size < 0:
        msg = f"an object of {size} bytes"
        raise ValueError(msg)
    with contextlib.closing(digests.IncrementalHasher(file)) as follower:
        _receive_to_file(sock, size, file, follower.advance)
        return follower.digest(size)


def _receive_to_file(sock: socket.socket, size: int, file: int, follow: Callable[[int], None]) -> None:
    """Have bytes go from a socket to a file; say each time how many are there."""
    _set_kernel_timeouts(sock)
    bring = _receive_by_splice if size > CHUNK and hasattr(os, "splice") else _receive_by_copy
    left = size
    try:
        for came in bring(sock, size, file):
            left -= came
            follow(size - left)
    except BlockingIOError:
        msg = f"nothing has come for {STALL_S:.0f} s, {left} bytes before the end of the object"
        raise TimeoutError(msg) from None
    if left:
        msg = f"the connection ended {left} bytes before the end of the object"
        raise ConnectionError(msg)


def _receive_by_copy(sock: socket.socket, size: int, file: int) -> Iterator[int]:
    """Bring bytes from a socket to a file; say each time how many."""
    view, left = memoryview(bytearray(min(CHUNK, size))), size
    while left and (got := sock.recv_into(view[:left])):
        _write(file, view[:got])
        left -= got
        yield got


def _receive_by_splice(sock: socket.socket, size: int, file: int) -> Iterator[int]:
    """As `_copy`, within the kernel."""
    outlet, inlet = os.pipe()
    try:
        try:
            fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, CHUNK)
        except OSError:  # this user has too many large ones: it will be a small one
            pass
        left = size
        while left and (got := os.splice(sock.fileno(), inlet, min(left, CHUNK))):
            _drain_pipe(outlet, file, got)
            left -= got
            yield got
    finally:
        os.close(inlet)
        os.close(outlet)


def _drain_pipe(outlet: int, file: int, size: int) -> None:
    """Have what is in a pipe go to a file."""
    while size:
        try:
            size -= os.splice(outlet, file, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            data = os.read(outlet, size)  # a file system that cannot do that
            _write(file, memoryview(data))
            size -= len(data)


def _write(file: int, piece: memoryview) -> None:
    while piece:  # a disk that fills up takes a part, and refuses the rest
        piece = piece[os.write(file, piece) :]


def unpack_safely(archive: tarfile.TarFile, folder: str) -> None:
    """Unpack an archive without letting any member leave the folder.

    Raises
    ------
    ValueError
        A member has an absolute name, climbs out, or links to outside.
    """
    import tarfile

    root = os.path.realpath(folder)
    trusted: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
    folders: list[tuple[str, int]] = []
    for member in archive.getmembers():
        # a link may point anywhere inside the folder, and absolute links (a virtual environment's python) are data, not paths we follow
        place = os.path.realpath(os.path.join(root, member.name))
        if place != root and not place.startswith(root + os.sep):
            msg = f"the archive member {member.name!r} would be written outside of its folder"
            raise ValueError(msg)
        if member.isdev():
            msg = f"the archive member {member.name!r} is a device"
            raise ValueError(msg)
        if member.islnk():
            target = os.path.realpath(os.path.join(root, member.linkname))
            if not target.startswith(root + os.sep):
                msg = (
                    f"the archive member {member.name!r} links to {member.linkname!r}, outside of its folder"
                )
                raise ValueError(msg)
        # who unpacks owns it, and can look into it; nothing runs with the rights of somebody else
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        member.mode = member.mode & 0o777 | 0o400
        archive.extract(member, folder, set_attrs=not member.isdir(), **trusted)
        if member.isdir():
            folders.append((place, trees.folder_mode(member.mode)))
    for place, mode in reversed(folders):  # last, because nothing can be put into one that is read-only
        os.chmod(place, mode | os.stat(place).st_mode & stat.S_ISGID)
        os.utime(place, (trees.SINGLE_FILE_TIME_S, trees.SINGLE_FILE_TIME_S))


def remove_tree(path: str) -> None:
    """Remove a file or a tree, whether or not it is there, also where a task has made parts of it unreadable."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        if os.path.isdir(path):
            _open_folders(path)
            shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _open_folders(path: str) -> None:
    """Have all folders of a tree such that they can be looked into and emptied, each before what is in it."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as inner:
                waiting += [entry.path for entry in inner if entry.is_dir(follow_symlinks=False)]
        except OSError:  # somebody else's, or gone meanwhile
            pass


class TransferClient:
    """One bulk connection to another end; closed by the first error.

    Parameters
    ----------
    host, port
        The other end.
    secret
        What both ends know.
    cover
        Puts TLS over the connection, if there is to be any.
    **greeting
        What the other end should know of this one.
    """

    def __init__(
        self, host: str, port: int, secret: bytes, cover: Union[TlsWrapper, None] = None, **greeting: Any
    ) -> None:
        try:
            self.sock = socket.create_connection((host, port), timeout=CONNECT_S)
        except OSError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error  # noqa: EM102 - in the words of the error
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if cover is not None:
                self.sock = cover(self.sock)
            key = handshake.connect(self.sock, secret, "bulk", **greeting)
        except BaseException:
            self.sock.close()
            raise
        self._words = AuthenticatedLines(self.sock, key, "client")
        self.sock.settimeout(STALL_S)

    def get(self, name: str, path: str, expected: str = "") -> ReceivedObject:
        """Fetch an object into ``path``, and compare it.

        Parameters
        ----------
        expected
            The digest of a file as it was made; "" for one of which none is known, and for a directory.

        Raises
        ------
        Gone
            The source does not have it.
        Altered
            All of it came, and it is not what it was.
        OSError, ValueError
            The connection broke, or what came makes no sense; ``path`` may hold a part.
        """
        received, proof = self.get_unverified(name, path, expected)
        if proof is not None:
            with contextlib.closing(proof):
                proof.verify()
        return received

    def get_unverified(
        self,
        name: str,
        path: str,
        expected: str = "",
        fits: Callable[[int], None] = lambda _size: None,
        **ticket: Any,
    ) -> tuple[ReceivedObject, Union[PendingVerification, None]]:
        """As `get`, with what else the request shall say, but leave it to the caller to compare a large file whose digest is known.

        Parameters
        ----------
        fits
            Called with the size that a directory is announced with, which nobody knew before; raises if there is no room for it.
        """
        self._words.send({"get": name, **({} if expected else {"prove": True}), **ticket})
        answer = self._words.receive(time.monotonic() + STALL_S)
        self.sock.settimeout(STALL_S)
        if "refused" in answer:
            raise handshake.HandshakeRejected(handshake.printable(answer["refused"]))
        if "gone" in answer:
            raise ObjectNotFound(str(answer["gone"]))
        size, directory, mode = answer.get("size"), bool(answer.get("directory")), answer.get("mode")
        if not isinstance(size, int) or not isinstance(mode, (int, type(None))):
            msg = f"an answer that makes no sense: {str(answer)[:200]}"
            raise ValueError(msg)  # noqa: TRY004 - what a stranger sent, not an argument
        if directory:
            fits(size)
        later = size > CHUNK and expected and not directory
        if directory or not expected:
            expected = str(answer.get("digest", ""))
        if later:
            return ReceivedObject(size, expected), _receive_unverified(self.sock, size, path, mode, expected)
        return ReceivedObject(size, receive_content(self.sock, size, directory, path, mode, expected)), None

    def put(self, name: str, content: Content, digest: str = "") -> None:
        """Bring an object to the other end; returns when it has all of it.

        Parameters
        ----------
        digest
            Of a file as it was made; "" if none is known.

        Raises
        ------
        Altered
            It came, or is kept here, as something else.
        OSError
            The connection broke, or the other end could not keep it.
        """
        if isinstance(content, bytes):
            head = {"put": name, "size": len(content), "digest": digests.digest_bytes(content)}
            self._words.send(head)
            self.sock.sendall(content)
        elif os.path.isdir(content):
            with tempfile.TemporaryFile(dir=os.path.dirname(content)) as packed:
                size, digest = _tar(content, packed)
                self._words.send({"put": name, "size": size, "directory": True, "digest": digest})
                _send_file(self.sock, packed, size)
        else:
            with open(content, "rb") as file:
                about = os.fstat(file.fileno())
                digest = digest or digests.IncrementalHasher(file.fileno()).digest(about.st_size)
                head = {"put": name, "size": about.st_size, "mode": about.st_mode & 0o777, "digest": digest}
                self._words.send(head)
                _send_file(self.sock, file, about.st_size)
        answer = self._words.receive(time.monotonic() + STALL_S)
        self.sock.settimeout(STALL_S)
        if "refused" in answer:
            raise handshake.HandshakeRejected(handshake.printable(answer["refused"]))
        if "altered" in answer:
            raise ChecksumMismatch(str(answer["altered"]))

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def max_unauthenticated(most: int = MAX_UNAUTHENTICATED) -> int:
    """Give how many strangers may be here at once without taking the descriptors that others need."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if limit == resource.RLIM_INFINITY else max(1, min(most, limit // UNAUTHENTICATED_FD_DIVISOR))


class AuthenticatingListener:
    """A listening socket whose connections prove the secret, each in a thread of its own, before they count.

    Parameters
    ----------
    listener
        A bound, listening socket.
    secret
        A function that gives the secret to ask for now, from who greets like that.
    welcome
        Called in the connection's thread with the socket, the client's greeting and its address; owns the socket from then on. The
        greeting also says as "here" which address of this machine the client has dialled.
    refused
        Called with the peer's address and the reason.
    most
        Handshakes at once, but no more than an eighth of the files that this process may have open. Further ones wait in the kernel's queue, until somebody
        has proved the secret, has been refused, or has taken long.
    cover
        Puts TLS over each connection, if there is to be any.
    name
        What is told to who has proved the secret.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: Callable[[dict[str, Any]], bytes],
        welcome: Callable[[socket.socket, dict[str, Any], str], None],
        refused: Callable[[str, str], None],
        most: int = MAX_UNAUTHENTICATED,
        cover: Union[TlsWrapper, None] = None,
        name: str = "",
    ) -> None:
        self._cover, self._name = cover, name
        self._listener, self._secret, self._welcome, self._refused = listener, secret, welcome, refused
        self._most = max_unauthenticated(most)
        self._handshake_grace_s = (
            HANDSHAKE_GRACE_S * self._most / most
        )  # fewer places: then nobody waits longer for one
        self._unauthenticated: dict[
            socket.socket, float
        ] = {}  # since when they are here, the first of them first
        self._evicted: set[socket.socket] = set()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._recent_refusals: list[float] = []  # when the last refusals were said
        self._suppressed_refusals = 0
        self._closing = False
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._accept, name="vine-door", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if not self._closing:  # such as too many open files: that may pass
                    self._log_accept_error(error)
                continue
            guest = threading.Thread(
                target=self._authenticate,
                args=(sock, canonical_address(str(address[0]))),
                name="vine-guest",
                daemon=True,
            )
            with self._room:
                self._evict_slow_connection()
                if self._closing:
                    sock.close()
                    return
                self._open[sock], self._unauthenticated[sock] = guest, time.monotonic()
                try:
                    guest.start()
                except RuntimeError as error:  # no more threads: that may pass
                    del self._open[sock], self._unauthenticated[sock]
                    sock.close()
                    self._log_accept_error(OSError(errno.EAGAIN, str(error)))

    def _evict_slow_connection(self) -> None:
        """Wait until there is a place for one more; if that takes long, who has had one for longest goes."""
        while len(self._unauthenticated) >= self._most and not self._closing:
            oldest, since = next(iter(self._unauthenticated.items()))
            patience = since + self._handshake_grace_s - time.monotonic()
            if patience > 0:
                self._room.wait(patience)
                continue
            del self._unauthenticated[oldest]
            self._evicted.add(oldest)
            try:
                oldest.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _log_accept_error(self, error: OSError) -> None:
        """Say why, but not again and again, and have those who knock wait."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_INTERVAL_S
            reason = str(error)
            if error.errno == errno.EMFILE:
                limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
                reason = (
                    f"this process may have no more than {limit} files open, connections among them, and has that many: allow more with "
                    f"'ulimit -n {most}' before it starts. Who knocks now has to wait"
                )
            self._refused("somebody", reason)
        time.sleep(0.1)

    def _log_refusal(self, address: str, reason: str) -> None:
        """Say that somebody was refused; where there are many they are only counted, so that nobody fills a disk with what is said of him."""
        now = time.monotonic()
        with self._lock:
            self._recent_refusals = [at for at in self._recent_refusals if now - at < LOG_INTERVAL_S]
            if len(self._recent_refusals) >= MAX_LOGGED_REFUSALS:
                self._suppressed_refusals += 1
                if self._suppressed_refusals > 1:
                    return
                address, reason = (
                    "many",
                    f"{MAX_LOGGED_REFUSALS} have been refused in {LOG_INTERVAL_S:.0f} s; further ones are counted",
                )
            else:
                self._recent_refusals.append(now)
                if self._suppressed_refusals:
                    reason += f" (and {self._suppressed_refusals} others before)"
                    self._suppressed_refusals = 0
        self._refused(address, reason)

    def _authenticate(self, outer: socket.socket, address: str) -> None:
        sock = outer
        try:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._cover is not None:
                    sock = self._cover(sock)
                greeting = handshake.serve(sock, self._secret, self._name)
                greeting["here"] = canonical_address(str(outer.getsockname()[0]))
            finally:
                with self._room:  # who has proved the secret takes no place from those who still have to
                    self._unauthenticated.pop(outer, None)
                    self._room.notify()
            self._welcome(sock, greeting, address)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes lead to is the stranger's problem
            sock.close()
            if not self._closing:
                reason = str(error) or type(error).__name__
                if outer in self._evicted:
                    reason = f"it has said too little for {self._handshake_grace_s:.2g} s, and others were waiting for its place"
                self._log_refusal(address, reason)
        finally:
            with self._lock:
                del self._open[outer]
                self._evicted.discard(outer)

    def close(self) -> None:
        """Stop listening and cut what is still being served."""
        self._closing = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); close() alone does not on Linux
        except OSError:
            pass
        self._listener.close()
        with self._room:
            guests = dict(self._open)
            self._room.notify_all()
        for sock in guests:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        deadline = time.monotonic() + CLOSE_S
        for thread in (self._thread, *guests.values()):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
