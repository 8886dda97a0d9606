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

CHUNK_BYTES = 1 << 20
MAX_SENDFILE_BYTES = 1 << 28
CONNECT_TIMEOUT_S = 5.0
"""A peer that does not answer within this time is unreachable; long enough for two lost packets."""
STALL_TIMEOUT_S = 60.0
"""A transfer that moves no byte within this time has failed."""
IDLE_TIMEOUT_S = 60.0
"""A server closes a connection without a request for this long."""
LOG_INTERVAL_S = 30.0
"""Between two log messages about the same obstacle."""
SHUTDOWN_TIMEOUT_S = 5.0
HANDSHAKE_GRACE_S = 2.0
"""An unauthenticated connection that is older than this is closed if its place is needed."""
MAX_UNAUTHENTICATED = 256
"""Unauthenticated connections at a time."""
UNAUTHENTICATED_FD_DIVISOR = 8
"""The part of the process's file descriptors that unauthenticated connections may take."""
MAX_LOGGED_REFUSALS = 20
"""Refusals that are logged in `LOG_INTERVAL_S`; further ones are counted."""

TlsWrapper = Callable[[socket.socket], socket.socket]
"""Wraps a socket into TLS and owns it from then on (see `tls`)."""

Content = Union[bytes, str]
"""An object: its bytes, or the path of a file or directory."""


class ObjectNotFound(LookupError):
    """The source answered that it does not have the object."""


class ChecksumMismatch(ValueError):
    """The digest of a received object differs from that of the object when it was made."""


class Unreachable(ConnectionError):
    """The source does not accept connections, or the network does not reach it."""


class ReceivedObject(NamedTuple):
    """Size and digest of a received object."""

    # both of the bytes as they were transferred: of the tar stream for a directory
    size: int
    digest: str


class PendingVerification:
    """A received file whose digest is still to be compared.

    Parameters
    ----------
    file
        Open for reading and writing; `close` closes it.
    size, expected
        Its size and the digest it must have.
    """

    def __init__(self, file: BinaryIO, size: int, expected: str) -> None:
        self.file, self._size, self._expected = file, size, expected
        self._follower = digests.IncrementalHasher(file.fileno())

    def advance(self, end: int) -> None:
        """Note that the file is written up to ``end``; hash that part already if a processor is idle."""
        if digests.has_spare_cpu():
            self._follower.advance(end)

    def verify(self) -> None:
        """Hash the file, or the rest of it, and compare the digest.

        Raises
        ------
        ChecksumMismatch
            The digest differs.
        OSError
            The file cannot be read.
        """
        check_digest(self._follower.digest(self._size), self._expected)

    def close(self) -> None:
        """Stop hashing and close the file."""
        self._follower.close()
        self.file.close()


class ObjectProvider(Protocol):
    """Where a server finds and stores objects; called from several threads."""

    def find_object(self, name: str) -> Content | None:
        """Return an object, or None if it does not exist."""

    def temporary(self, name: str) -> str:
        """Return a new path for an object that is still incomplete."""

    def store(self, name: str, path: str, digest: str) -> None:
        """Take over a complete object."""


def serve_requests(
    lines: AuthenticatedLines,
    provider: ObjectProvider,
    objection: Callable[[dict[str, Any]], str] = lambda _request: "",
    *,
    follow: bool = False,
) -> None:
    """Answer requests on one connection until the client closes it.

    Parameters
    ----------
    lines
        The connection.
    provider
        Where the objects are.
    objection
        Returns why a request is refused; "" if it is not.
    follow
        Send the targets of links that lead out of a directory; see `trees.iterate_entries`.

    Raises
    ------
    handshake.Refused
        A request was refused, which ends the connection.
    """
    with lines.sock:
        while True:
            try:
                request = _next_request(lines)
                if request is None:
                    return
                refusal = objection(request)
                if refusal:
                    lines.send({"refused": refusal})
                elif "get" in request:
                    content = provider.find_object(str(request["get"]))
                    _send_object(lines, content, prove=bool(request.get("prove")), follow=follow)
                else:
                    _receive_put(lines, provider, request)
            except ChecksumMismatch as error:
                with contextlib.suppress(OSError):
                    lines.send({"altered": str(error)})
                return
            except handshake.HandshakeRejected:
                raise
            except (OSError, ValueError, KeyError):
                return
            if refusal:
                raise handshake.HandshakeRejected(refusal)


def _next_request(lines: AuthenticatedLines) -> dict[str, Any] | None:
    sock = lines.sock
    sock.settimeout(IDLE_TIMEOUT_S)
    if not sock.recv(1, socket.MSG_PEEK):
        return None
    request = lines.receive(time.monotonic() + STALL_TIMEOUT_S)
    sock.settimeout(STALL_TIMEOUT_S)
    return request


def _send_object(lines: AuthenticatedLines, content: Content | None, *, prove: bool, follow: bool) -> None:
    if content is None:
        lines.send({"gone": "it is not there any more: it was changed or removed"})
    elif isinstance(content, bytes):
        _send_bytes(lines, content, {})
    elif os.path.isdir(content):
        _send_directory(lines, content, follow=follow)
    else:
        try:
            file = open(content, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            lines.send({"gone": "it is not there any more: it was changed or removed"})
            return
        with file:
            about = os.fstat(file.fileno())
            mode = {"mode": about.st_mode & 0o777}
            if about.st_size <= INLINE_LIMIT:
                _send_bytes(lines, file.read(), mode)
            else:
                proof = (
                    {"digest": digests.IncrementalHasher(file.fileno()).digest(about.st_size)}
                    if prove
                    else {}
                )
                lines.send({"size": about.st_size, "directory": False, **mode, **proof})
                send_file(lines.sock, file, about.st_size)


def _send_bytes(lines: AuthenticatedLines, content: bytes, more: dict[str, Any]) -> None:
    head = {"size": len(content), "directory": False, "digest": digests.digest_bytes(content), **more}
    lines.send(head)
    lines.sock.sendall(content)


def send_file(sock: socket.socket, file: BinaryIO, size: int) -> None:
    """Send the first ``size`` bytes of a file, within the kernel.

    Raises
    ------
    OSError
        The connection broke or stalled, or the file became shorter.
    """
    _set_kernel_timeouts(sock)
    sent = 0
    while sent < size:
        try:
            more = os.sendfile(sock.fileno(), file.fileno(), sent, min(size - sent, MAX_SENDFILE_BYTES))
        except BlockingIOError:
            msg = f"nothing could be sent for {STALL_TIMEOUT_S:.0f} s"
            raise TimeoutError(msg) from None
        if not more:
            msg = f"the file has become {size - sent} bytes shorter while it was sent"
            raise OSError(msg)
        sent += more


def _set_kernel_timeouts(sock: socket.socket) -> None:
    """Let calls block in the kernel for a bounded time: cheaper than polling before each call."""
    limit = struct.pack("ll", int(STALL_TIMEOUT_S), int(STALL_TIMEOUT_S % 1 * 1e6))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _send_directory(lines: AuthenticatedLines, folder: str, *, follow: bool) -> None:
    # with `follow` the folder is the user's own and must not be written to; a cache has disk space
    with tempfile.TemporaryFile(dir=None if follow else os.path.dirname(folder)) as packed:
        size, digest = pack_directory(folder, packed, follow=follow)
        lines.send({"size": size, "directory": True, "digest": digest})
        send_file(lines.sock, packed, size)


def pack_directory(folder: str, packed: BinaryIO, *, follow: bool = False) -> ReceivedObject:
    """Write a directory as an uncompressed tar stream; return its size and its digest.

    Parameters
    ----------
    follow
        Store the targets of links that lead out of the directory; see `trees.iterate_entries`.
    """
    # seldom needed, and slow to import
    import tarfile

    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(_make_member(".", os.stat(folder)))
        for entry in trees.iterate_entries(folder, follow=follow):
            member = _make_member(entry.name, entry.about, entry.link)
            if member.isreg():
                with open(entry.path, "rb") as file:
                    archive.addfile(member, file)
            else:
                archive.addfile(member)
    size = packed.tell()
    packed.seek(0)
    packed.flush()
    return ReceivedObject(size, digests.IncrementalHasher(packed.fileno()).digest(size))


def _make_member(name: str, about: os.stat_result, link: Union[str, None] = None) -> tarfile.TarInfo:
    """Describe a part of a tree for the archive, with nothing that tasks may not see."""
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


def _receive_put(lines: AuthenticatedLines, provider: ObjectProvider, request: dict[str, Any]) -> None:
    name, size = str(request["put"]), int(request["size"])
    path = provider.temporary(name)
    directory, expected = bool(request.get("directory")), str(request.get("digest", ""))
    try:
        digest = receive_content(lines.sock, size, directory, path, request.get("mode"), expected)
    except BaseException:
        remove_tree(path)
        raise
    provider.store(name, path, digest)
    lines.send({"stored": size})


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
    ChecksumMismatch
        The digest is not the expected one.
    """
    if directory:
        import tarfile

        with tempfile.TemporaryFile(dir=os.path.dirname(path)) as packed:
            digest = _receive_bytes(sock, size, packed.fileno())
            check_digest(digest, expected)
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
    check_digest(digest, expected)
    _set_file_mode(path, mode)
    return digest


def _set_file_mode(path: str, mode: Union[int, None]) -> None:
    """Give a file the mode that it has at its source, or 0644 if it was no file there, whatever the umask."""
    # some file systems have no modes
    with contextlib.suppress(PermissionError):
        os.chmod(path, 0o644 if mode is None else mode & 0o777 | 0o400)


def receive_unverified(
    sock: socket.socket, size: int, path: str, mode: Union[int, None], expected: str
) -> PendingVerification:
    """Receive a file whose digest is compared later, by `PendingVerification.verify`."""
    proof = PendingVerification(open(path, "w+b", buffering=0), size, expected)  # noqa: SIM115 - closed with the proof
    try:
        _receive_to_file(sock, size, proof.file.fileno(), proof.advance)
        _set_file_mode(path, mode)
    except BaseException:
        proof.close()
        raise
    return proof


def check_digest(digest: str, expected: str) -> None:
    """Compare a digest with the expected one; "" as the expected one matches all.

    Raises
    ------
    ChecksumMismatch
        They differ.
    """
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
    """Write bytes from a socket to a file; call ``follow`` with the number received so far."""
    _set_kernel_timeouts(sock)
    bring = _receive_by_splice if size > CHUNK_BYTES and hasattr(os, "splice") else _receive_by_copy
    left = size
    try:
        for came in bring(sock, size, file):
            left -= came
            follow(size - left)
    except BlockingIOError:
        msg = f"nothing has come for {STALL_TIMEOUT_S:.0f} s, {left} bytes before the end of the object"
        raise TimeoutError(msg) from None
    if left:
        msg = f"the connection ended {left} bytes before the end of the object"
        raise ConnectionError(msg)


def _receive_by_copy(sock: socket.socket, size: int, file: int) -> Iterator[int]:
    """Copy bytes from a socket to a file; yield the size of each piece."""
    view, left = memoryview(bytearray(min(CHUNK_BYTES, size))), size
    while left and (got := sock.recv_into(view[:left])):
        _write_all(file, view[:got])
        left -= got
        yield got


def _receive_by_splice(sock: socket.socket, size: int, file: int) -> Iterator[int]:
    """Do the same as `_receive_by_copy`, within the kernel."""
    outlet, inlet = os.pipe()
    try:
        try:
            fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
        except OSError:
            # the user has reached the limit of large pipes: a small one does as well
            pass
        left = size
        while left and (got := os.splice(sock.fileno(), inlet, min(left, CHUNK_BYTES))):
            _drain_pipe(outlet, file, got)
            left -= got
            yield got
    finally:
        os.close(inlet)
        os.close(outlet)


def _drain_pipe(outlet: int, file: int, size: int) -> None:
    """Move ``size`` bytes from a pipe to a file."""
    while size:
        try:
            size -= os.splice(outlet, file, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # the file system does not support splice
            data = os.read(outlet, size)
            _write_all(file, memoryview(data))
            size -= len(data)


def _write_all(file: int, piece: memoryview) -> None:
    # a disk that fills up takes a part, and refuses the rest
    while piece:
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
        # the unpacking user owns all members and can read them; no member keeps setuid bits
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        member.mode = member.mode & 0o777 | 0o400
        archive.extract(member, folder, set_attrs=not member.isdir(), **trusted)
        if member.isdir():
            folders.append((place, trees.folder_mode(member.mode)))
    # modes are set last, because nothing can be created in a read-only folder
    for place, mode in reversed(folders):
        os.chmod(place, mode | os.stat(place).st_mode & stat.S_ISGID)
        os.utime(place, (trees.SINGLE_FILE_TIME_S, trees.SINGLE_FILE_TIME_S))


def remove_tree(path: str) -> None:
    """Remove a file or a tree, if it exists, even if a task has made parts of it unreadable."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        if os.path.isdir(path):
            _make_folders_accessible(path)
            shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _make_folders_accessible(path: str) -> None:
    """Make all folders of a tree readable and writable, from the top down."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as inner:
                waiting += [entry.path for entry in inner if entry.is_dir(follow_symlinks=False)]
        except OSError:
            # another user's folder, or removed meanwhile
            pass


class TransferClient:
    """A connection for transfers; the first error closes it.

    Parameters
    ----------
    host, port
        The other end.
    secret
        The secret that both ends know.
    cover
        Wraps the connection into TLS; None for a plain one.
    **greeting
        Fields of the greeting, which describe this end to the other.
    """

    def __init__(
        self, host: str, port: int, secret: bytes, cover: Union[TlsWrapper, None] = None, **greeting: Any
    ) -> None:
        try:
            self.sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
        except OSError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error  # noqa: EM102 - in the lines of the error
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if cover is not None:
                self.sock = cover(self.sock)
            key = handshake.connect(self.sock, secret, "bulk", **greeting)
        except BaseException:
            self.sock.close()
            raise
        self._lines = AuthenticatedLines(self.sock, key, "client")
        self.sock.settimeout(STALL_TIMEOUT_S)

    def get(self, name: str, path: str, expected: str = "") -> ReceivedObject:
        """Fetch an object into ``path`` and verify it.

        Parameters
        ----------
        expected
            The digest of a file as it was made; "" for one of which none is known, and for a directory.

        Raises
        ------
        ObjectNotFound
            The source does not have the object.
        ChecksumMismatch
            The object arrived completely, with another digest.
        OSError, ValueError
            The connection broke, or the reply was invalid; ``path`` may hold a part.
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
        """Fetch an object; leave the verification of a large file with a known digest to the caller.

        Parameters
        ----------
        fits
            Called with the announced size of a directory, which is unknown before; raises if the
            disk has no space for it.
        **ticket
            Further fields of the request.
        """
        self._lines.send({"get": name, **({} if expected else {"prove": True}), **ticket})
        answer = self._read_reply()
        if "gone" in answer:
            raise ObjectNotFound(str(answer["gone"]))
        size, directory, mode = answer.get("size"), bool(answer.get("directory")), answer.get("mode")
        if not isinstance(size, int) or not isinstance(mode, (int, type(None))):
            msg = f"an answer that makes no sense: {str(answer)[:200]}"
            raise ValueError(msg)  # noqa: TRY004 - what a stranger sent, not an argument
        if directory:
            fits(size)
        later = size > CHUNK_BYTES and expected and not directory
        if directory or not expected:
            expected = str(answer.get("digest", ""))
        if later:
            return ReceivedObject(size, expected), receive_unverified(self.sock, size, path, mode, expected)
        return ReceivedObject(size, receive_content(self.sock, size, directory, path, mode, expected)), None

    def put(self, name: str, content: Content, digest: str = "") -> None:
        """Send an object to the other end; return when it has stored all of it.

        Parameters
        ----------
        digest
            Of a file as it was made; "" if none is known.

        Raises
        ------
        ChecksumMismatch
            The object arrived with another digest, or changed on the disk here.
        OSError
            The connection broke, or the other end could not store the object.
        """
        if isinstance(content, bytes):
            head = {"put": name, "size": len(content), "digest": digests.digest_bytes(content)}
            self._lines.send(head)
            self.sock.sendall(content)
        elif os.path.isdir(content):
            with tempfile.TemporaryFile(dir=os.path.dirname(content)) as packed:
                size, digest = pack_directory(content, packed)
                self._lines.send({"put": name, "size": size, "directory": True, "digest": digest})
                send_file(self.sock, packed, size)
        else:
            with open(content, "rb") as file:
                about = os.fstat(file.fileno())
                digest = digest or digests.IncrementalHasher(file.fileno()).digest(about.st_size)
                head = {"put": name, "size": about.st_size, "mode": about.st_mode & 0o777, "digest": digest}
                self._lines.send(head)
                send_file(self.sock, file, about.st_size)
        answer = self._read_reply()
        if "altered" in answer:
            raise ChecksumMismatch(str(answer["altered"]))

    def _read_reply(self) -> dict[str, Any]:
        """Receive the reply to a request; raise `HandshakeRejected` if the server refused it."""
        reply = self._lines.receive(time.monotonic() + STALL_TIMEOUT_S)
        self.sock.settimeout(STALL_TIMEOUT_S)
        if "refused" in reply:
            raise handshake.HandshakeRejected(handshake.printable(reply["refused"]))
        return reply

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def max_unauthenticated(most: int = MAX_UNAUTHENTICATED) -> int:
    """Return the limit of unauthenticated connections that leaves file descriptors for the others."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if limit == resource.RLIM_INFINITY else max(1, min(most, limit // UNAUTHENTICATED_FD_DIVISOR))


class AuthenticatingListener:
    """A listening socket that authenticates each connection in a thread of its own.

    Parameters
    ----------
    listener
        A bound, listening socket.
    secret
        Returns the secret to ask for, from the client's greeting.
    welcome
        Called in the connection's thread with the socket, the client's greeting and its address;
        owns the socket from then on. The greeting's "here" is the local address of the connection.
    refused
        Called with the peer's address and the reason.
    most
        Handshakes at a time, but no more than an eighth of the file descriptors of this process.
        Further connections wait in the kernel's queue until a handshake succeeds, fails, or has
        lasted too long.
    cover
        Wraps each connection into TLS; None for plain ones.
    name
        Sent to clients that have proved the secret.
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
        # with fewer places each is held for a shorter time, so a connection waits no longer for one
        self._handshake_grace_s = HANDSHAKE_GRACE_S * self._most / most
        # connection -> when it was accepted, the oldest first
        self._unauthenticated: dict[socket.socket, float] = {}
        self._evicted: set[socket.socket] = set()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        # when refusals were logged lately
        self._recent_refusals: list[float] = []
        self._suppressed_refusals = 0
        self._closing = False
        self._quiet_until = 0.0
        self._thread = threading.Thread(target=self._accept_connections, name="vine-door", daemon=True)
        self._thread.start()

    def _accept_connections(self) -> None:
        while not self._closing:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                # such as too many open files, which may pass
                if not self._closing:
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
                except RuntimeError as error:
                    # the limit of threads is reached, which may pass
                    del self._open[sock], self._unauthenticated[sock]
                    sock.close()
                    self._log_accept_error(OSError(errno.EAGAIN, str(error)))

    def _evict_slow_connection(self) -> None:
        """Wait for a free place; close the oldest unauthenticated connection if that takes too long."""
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
        """Log why connections cannot be accepted, at most once in `LOG_INTERVAL_S`, and pause."""
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
        """Log a refusal; only count further ones if there are many, so that clients cannot fill the disk."""
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
                # authenticated connections do not count against the limit
                with self._room:
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
        """Stop listening and close the connections that are still served."""
        self._closing = True
        try:
            # wakes accept(), which close() alone does not on Linux
            self._listener.shutdown(socket.SHUT_RDWR)
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
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        for thread in (self._thread, *guests.values()):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
