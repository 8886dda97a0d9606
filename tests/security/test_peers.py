"""What a worker gives to others that fetch from it: what the manager has sent them for, and nothing else."""

from __future__ import annotations

import contextlib
import logging

import pytest

from tests.faults.test_connections import LARGE, made_and_moved
from tests.harness import sample_tasks
from tests.harness.processes import scheduler_state, wait_for_task
from vinecore import PythonTask
from vinecore.protocol import handshake, transfer_tokens
from vinecore.protocol.transfer.client import TransferConnection
from vinecore.security.shared_secret import read_secret


def door_of(m, number):
    """The port on which a worker listens for its peers, and its key."""
    address = scheduler_state(m, lambda scheduler: scheduler.state.workers[number].data_address)
    return int(address.rpartition(":")[2]), m._server._workers[number].key


def test_worker_serves_only_receivers_with_token(local_cluster, tmp_path):
    """A worker gives a file to whom the manager has sent and to nobody else."""
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    task = PythonTask(sample_tasks.make_bytes, LARGE)
    task.enable_temp_output()
    m.submit(task)
    assert wait_for_task(m) is task
    name = task.output_file.cache_name
    port, key = door_of(m, 1)
    good = {"token": transfer_tokens.sign_token(key, 2, name, 60), "expires": 60}
    refused = {
        "a request without a token": {},
        "the token is not for": {"token": transfer_tokens.sign_token(key, 2, "another", 60), "expires": 60},
        "has expired": {"token": transfer_tokens.sign_token(key, 2, name, -1), "expires": -1},
    }

    secret = transfer_tokens.pair_key(key, 2)

    def client(secret=secret):
        return contextlib.closing(TransferConnection("127.0.0.1", port, secret, peer=2))

    for reason, token in refused.items():
        with client() as peer, pytest.raises(handshake.HandshakeRejected, match=reason):
            peer.get_unverified(name, str(tmp_path / "got"), **token)
        worker.wait_for_log(reason)
    for wrong in (read_secret(local_cluster.secret), key, transfer_tokens.pair_key(key, 3)):
        with pytest.raises(handshake.HandshakeRejected, match="wrong secret"):
            client(wrong)
    with client() as peer, pytest.raises(handshake.HandshakeRejected, match="a request without a token"):
        peer.put("planted", b"x")
    with client() as peer:
        received, proof = peer.get_unverified(name, str(tmp_path / "got"), **good)
        assert received.size >= LARGE
        assert proof is None


def test_forging_worker_is_served_by_manager(local_cluster, caplog):
    """A worker that forges tickets gets its input through the manager."""
    caplog.set_level(logging.WARNING, "vinecore")
    m, maker = made_and_moved(local_cluster, None, "forging")
    assert "the token is not for" in caplog.text
    assert scheduler_state(
        m, lambda scheduler: scheduler.state.files[maker.output_file.cache_name].at_manager
    )
