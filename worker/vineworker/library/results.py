"""Serialize the results of calls, and write them to disk."""

from __future__ import annotations

import os
from typing import Any

from vinecore.protocol.serialization import exceptions, values
from vinecore.protocol.transfer import digests


def write_parts(path: str, parts: list[Any]) -> str:
    """Write an object to a path, complete or not at all; return its digest."""
    part_path, digest = f"{path}.part", digests.Digest()
    try:
        with open(part_path, "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    size = file.write(view[: digests.CHUNK_BYTES])
                    digest.update(view[:size])
                    view = view[size:]
        os.rename(part_path, path)
    except OSError:
        if os.path.exists(part_path):
            # a disk that is full has better uses
            os.unlink(part_path)
        raise
    return str(digest)


def dump_result(result: Any) -> list[Any]:
    """Serialize the result of a call."""
    try:
        return values.dump(result)
    except Exception as error:
        from vinecore.protocol.serialization import unpicklable

        exceptions.add_note(
            error, f"what it returned cannot be sent: {unpicklable.describe_unpicklable(result)}"
        )
        raise


def result_bytes(result: Any) -> bytes:
    """Return the bytes of a result that is not serialized.

    Raises
    ------
    TypeError
        The result is not bytes.
    """
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    msg = (
        f"it returned a {type(result).__name__}: with disable_output_serialization() a function returns bytes"
    )
    raise TypeError(msg)
