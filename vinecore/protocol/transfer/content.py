"""Receiving and sending the bytes of one object, and verifying them.

The receiver computes a digest of each object. It is compared with the digest that was computed when
the object was made, so that a change on a disk is detected as well. Objects without one, such as
small objects and directories, are compared with a digest that the sender computes and sends with its
answer; of a large file it does so if the request says {"prove": true}.

A large file is verified when its transfer is over (`PendingVerification.verify`), because sender,
receiver and digest together may need more processors than there are. If a processor is idle, the
digest is computed while the bytes arrive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Callable, Union

from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.archive import unpack_safely
from vinecore.protocol.transfer.types import CHUNK_BYTES, STALL_TIMEOUT_S, ChecksumMismatch

MAX_SENDFILE_BYTES = 1 << 28


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
