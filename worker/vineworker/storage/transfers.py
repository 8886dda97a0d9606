"""Fetch objects from peers, the manager and addresses, and upload them; blocks helper threads."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from vinecore.protocol import handshake, messages, transfer_tokens, trees
from vinecore.protocol.tls import TlsWrapper
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.archive import unpack_safely
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.protocol.transfer.content import PendingVerification
from vinecore.protocol.transfer.types import IDLE_TIMEOUT_S, ChecksumMismatch, ObjectNotFound, ReceivedObject
from vinecore.protocol.trees import remove_tree
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.storage.cache import Cache
from vineworker.storage.downloads import Downloader
from vineworker.storage.files import tree_size

log = logging.getLogger("vine_worker")

MAX_IDLE_PER_PEER = 2
MAX_IDLE_S = IDLE_TIMEOUT_S / 2


class TransferSource(NamedTuple):
    """The manager, or a peer; a worker that reconnects is another one, at the same address."""

    address: str
    pair_key: str = ""
    fingerprint: str = ""


MANAGER_SOURCE = TransferSource("manager")


class TransferClient:
    """Transfers objects, with a few idle connections to each peer.

    Parameters
    ----------
    cache
        Stores the objects.
    manager
        Address of the manager.
    secret
        The manager's secret.
    number
        The number that the manager has given to this worker.
    key
        Key of the control connection, with which pair keys are masked.
    process_reaper
        Starts the processes of downloads.
    tls_tunnels, fingerprints
        `TlsTunnels` if the manager uses TLS, and the fingerprints of its certificates.
    """

    def __init__(
        self,
        cache: Cache,
        manager: tuple[str, int],
        secret: bytes,
        number: int,
        key: bytes,
        process_reaper: ProcessReaper,
        tls_tunnels: Any = None,
        fingerprints: Sequence[str] = (),
    ) -> None:
        self._cache, self._manager, self._secret, self._number = cache, manager, secret, number
        self._key = key
        self._tls_tunnels, self._fingerprints = tls_tunnels, fingerprints
        self._downloader = Downloader(process_reaper)
        self._idle: dict[TransferSource, list[tuple[float, TransferConnection]]] = {}
        self._busy: set[TransferConnection] = set()
        self._closed = False
        self._lock = threading.Lock()

    def fetch(self, fetch: messages.Fetch, arrived: Callable[[ReceivedObject], None]) -> ReceivedObject:
        """Fetch an object, if there is space for it; the size of a directory is -1.

        Parameters
        ----------
        fetch
            The manager's message.
        arrived
            Called when a large file has arrived that is not verified yet. Peers may read it from
            then on; tasks may when this method returns.

        Raises
        ------
        ObjectNotFound
            The source does not have it.
        ChecksumMismatch
            The content is not the expected one.
        OSError, ValueError
            The transfer failed for another reason.
        """
        with self._cache.reserve_space(fetch.name, fetch.size):
            return self._fetch_and_store(fetch, arrived)

    def _fetch_and_store(
        self, fetch: messages.Fetch, arrived: Callable[[ReceivedObject], None]
    ) -> ReceivedObject:
        path, begun = self._cache.temporary(fetch.name), time.monotonic()
        proof = None
        try:
            if "://" in fetch.source:
                self._downloader.download(fetch.source, path, fetch.size, fetch.validator)
                # the client may have used the umask, or the mode of the source
                os.chmod(path, trees.DEFAULT_FILE_MODE)
                received = ReceivedObject(os.path.getsize(path), digests.hash_file(path))
            else:
                received, proof = self._fetch_from_peer(fetch, path)
            if os.path.isdir(path):
                # what travelled was an archive of it
                received = ReceivedObject(-1, "")
            elif not fetch.digest and 0 <= fetch.size != received.size and not fetch.directory:
                msg = f"{received.size} bytes came, {fetch.size} were announced"
                raise ChecksumMismatch(msg)
            if fetch.size < 0:
                self._cache.check_fits(fetch.name, tree_size(path))
            log.debug("got %s from %s in %.3f s", fetch.name, fetch.source, time.monotonic() - begun)
            # another one may be right, too: copies may differ
            as_long = fetch.size in (-1, received.size)
            if proof is not None and as_long and self._cache.add_unverified(fetch.name, path):
                arrived(received)
                self._verify(fetch.name, path, proof, received.digest)
                return received
            if proof is not None:
                proof.verify()
        except BaseException:
            remove_tree(path)
            raise
        finally:
            if proof is not None:
                proof.close()
        self._cache.store(fetch.name, path, received.digest)
        return received

    def _verify(self, name: str, path: str, proof: PendingVerification, digest: str) -> None:
        """Verify an unverified object, and add it to the cache."""
        try:
            proof.verify()
            self._cache.mark_verified(name, path, digest)
        except BaseException:
            self._cache.discard_unverified(name, path)
            raise

    def _fetch_from_peer(
        self, fetch: messages.Fetch, path: str
    ) -> tuple[ReceivedObject, Optional[PendingVerification]]:
        def bring(
            client: TransferConnection,
        ) -> tuple[ReceivedObject, Optional[PendingVerification]]:
            if not fetch.source_worker:
                return client.get_unverified(fetch.name, path, fetch.digest, fits=fits)
            return client.get_unverified(
                fetch.name, path, fetch.digest, fits=fits, token=fetch.token, expires=fetch.expires
            )

        def fits(size: int) -> None:
            self._cache.check_fits(fetch.name, size)

        pair_key = ""
        if fetch.source_worker:
            pair_key = transfer_tokens.mask_key(
                self._key, fetch.source_worker, bytes.fromhex(fetch.pair_key)
            ).hex()
        received, proof = self._with_connection(
            TransferSource(fetch.source, pair_key, fetch.fingerprint), bring
        )
        return received, proof

    def upload(self, name: str, digest: str) -> None:
        """Send an object to the manager."""
        content = self._cache.find_object(name)
        if content is None:
            raise FileNotFoundError(name)
        self._with_connection(MANAGER_SOURCE, lambda client: client.put(name, content, digest))

    def unpack(self, unpack: messages.Unpack) -> int:
        """Unpack an archive of the cache into a directory."""
        import tarfile
        import zlib

        path = self._cache.temporary(unpack.name)
        os.mkdir(path)
        try:
            with tarfile.open(self._cache.checked_path(unpack.archive)) as archive:
                self._cache.check_fits(unpack.name, sum(member.size for member in archive.getmembers()))
                unpack_safely(archive, path)
            self._cache.check_fits(unpack.name, tree_size(path))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            remove_tree(path)
            msg = f"not an archive that can be unpacked: {str(error).partition(':')[0]}"
            raise ValueError(msg) from error
        except BaseException:
            remove_tree(path)
            raise
        self._cache.store(unpack.name, path)
        return 0

    def _with_connection(self, source: TransferSource, work: Callable[[TransferConnection], Any]) -> Any:
        """Use an idle connection to a source, or a new one if the other end has closed that."""
        client = self._take_idle_connection(source)
        if client is not None:
            try:
                return self._use_connection(source, client, work)
            except handshake.HandshakeRejected:
                raise
            except ConnectionError:
                pass
        return self._use_connection(source, self._open_connection(source), work)

    def _use_connection(
        self, source: TransferSource, client: TransferConnection, work: Callable[[TransferConnection], Any]
    ) -> Any:
        with self._lock:
            self._busy.add(client)
        try:
            if self._closed:
                msg = "this worker is leaving"
                raise InterruptedError(msg)
            answer = work(client)
        except ObjectNotFound:
            self._return_connection(source, client)
            raise
        except BaseException:
            with self._lock:
                self._busy.discard(client)
            client.close()
            raise
        self._return_connection(source, client)
        return answer

    def _take_idle_connection(self, source: TransferSource) -> TransferConnection | None:
        with self._lock:
            self._close_expired()
            idle = self._idle.get(source)
            return idle.pop()[1] if idle else None

    def _close_expired(self) -> None:
        """Close connections that were idle for long, to all peers."""
        now = time.monotonic()
        for source, idle in list(self._idle.items()):
            while idle and now - idle[0][0] > MAX_IDLE_S:
                idle.pop(0)[1].close()
            if not idle:
                del self._idle[source]

    def _open_connection(self, source: TransferSource) -> TransferConnection:
        if source == MANAGER_SOURCE:
            return TransferConnection(*self._manager, self._secret, self._tls_wrapper(self._fingerprints))
        host, _, port = source.address.rpartition(":")
        return TransferConnection(
            host,
            int(port),
            bytes.fromhex(source.pair_key),
            self._tls_wrapper((source.fingerprint,)),
            peer=self._number,
        )

    def _tls_wrapper(self, fingerprints: Sequence[str]) -> Optional[TlsWrapper]:
        if self._tls_tunnels is None:
            return None
        tls_tunnels = self._tls_tunnels
        return lambda sock: tls_tunnels.connect(sock, fingerprints)

    def _return_connection(self, source: TransferSource, client: TransferConnection) -> None:
        with self._lock:
            self._busy.discard(client)
            idle = self._idle.setdefault(source, [])
            if len(idle) < MAX_IDLE_PER_PEER and not self._closed:
                idle.append((time.monotonic(), client))
                return
        client.close()

    def close(self) -> None:
        """Close all connections; running transfers fail."""
        self._downloader.close()
        with self._lock:
            self._closed = True
            for client in self._busy:
                try:
                    client.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            for _since, client in (entry for idle in self._idle.values() for entry in idle):
                client.close()
            self._idle.clear()
