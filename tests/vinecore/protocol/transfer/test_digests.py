"""Digests of bytes, of files, and of files that are still being written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zlib

import pytest

from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.digests import CHUNK_BYTES, Digest, IncrementalHasher

LUMP = 1 << 20

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, LUMP - 1, LUMP, LUMP + 1, 2 * LUMP + 17]


@pytest.fixture(autouse=True)
def small_lumps(monkeypatch):
    """Files need not be so large for a thread to be started."""
    monkeypatch.setattr(digests, "MIN_BACKGROUND_BYTES", LUMP)


def noise(size):
    return hashlib.shake_128(b"noise").digest(size)


@pytest.mark.parametrize("size", SIZES)
def test_digest_is_independent_of_method(tmp_path, size):
    """Bytes and files have the same digest however it is computed."""
    data, path = noise(size), tmp_path / "file"
    path.write_bytes(data)
    piecewise = Digest()
    for start in range(0, size, 100_000):
        piecewise.update(memoryview(data)[start : start + 100_000])
    assert {digests.digest_bytes(data), digests.hash_file(str(path)), str(piecewise)} == {
        f"{zlib.crc32(data):08x}"
    }


@pytest.mark.parametrize("step", [1000, CHUNK_BYTES + 1, LUMP, LUMP + 1])
def test_growing_file_is_followed(tmp_path, step):
    """A file is followed while it is written."""
    data = noise(2 * LUMP + 17)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        with contextlib.closing(IncrementalHasher(file.fileno())) as follower:
            for start in range(0, len(data), step):
                file.write(data[start : start + step])
                follower.advance(file.tell())
            assert follower.digest(file.tell()) == digests.digest_bytes(data)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == len(data), "the writer's place stays"


def test_small_data_starts_no_thread(tmp_path):
    """No thread is started for little and none is left behind."""

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "vine-digest"]

    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(noise(2 * LUMP))
        with contextlib.closing(IncrementalHasher(file.fileno())) as follower:
            follower.advance(LUMP - 1)
            assert not threads()
            follower.advance(2 * LUMP)
            assert threads()
        assert not threads()


def test_short_file_is_an_error(tmp_path):
    """A file that is shorter than was said is an error."""
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(noise(1000))
        for said in (1001, 2 * LUMP):
            with contextlib.closing(IncrementalHasher(file.fileno())) as follower:
                follower.advance(said)
                with pytest.raises(OSError, match="ends after 1000 bytes"):
                    follower.digest(said)
