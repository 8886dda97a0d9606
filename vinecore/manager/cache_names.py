"""The names of files on workers, made from their contents."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from vinecore.protocol import trees
from vinecore.protocol.transfer import digests

MAX_REMEMBERED_HASHES = 100_000

_hash_cache: dict[tuple[str, int, int, int, int], tuple[str, str]] = {}


def hash_bytes(kind: str, data: bytes) -> str:
    """Name bytes by what they are."""
    return f"{kind}-{hashlib.sha256(data).hexdigest()[:40]}"


def hash_path(path: Path) -> tuple[str, str]:
    """Name a file or a directory tree by all of it that a task can see; what a tree leaves out is said in `trees`.

    Returns
    -------
    name, digest
        The digest is what a file is checked by when it has travelled; "" for a directory.

    Raises
    ------
    ValueError
        It has no content that can travel.
    OSError
        It cannot be read.
    """
    if path.is_dir():
        digest = hashlib.sha256(f"{trees.folder_mode(path.stat().st_mode):o}".encode())
        for entry in trees.iterate_entries(str(path), follow=True):
            mode, what = entry.about.st_mode, ""
            if entry.link is not None:
                about = f"link {entry.link}"
            elif stat.S_ISDIR(mode):
                about = f"folder {trees.folder_mode(mode):o}"
            else:
                about = f"file {trees.visible_mode(mode):o} {entry.about.st_mtime_ns}"
                what = _file_hash(Path(entry.path))[0]
            digest.update(f"{entry.name}\0{about}\0{what}\0\n".encode(errors="surrogateescape"))
        return f"dir-{digest.hexdigest()[:40]}", ""
    mode = path.stat().st_mode
    trees.check_kind(str(path), mode)
    content, checked_by = _file_hash(path)
    shown = trees.visible_mode(mode)
    return f"file-{content}" + ("" if shown == trees.DEFAULT_FILE_MODE else f"-{shown:o}"), checked_by


def _file_hash(path: Path) -> tuple[str, str]:
    about = path.stat()
    key = (str(path.resolve()), about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino)
    known = _hash_cache.get(key)
    if known is None:
        if len(_hash_cache) > MAX_REMEMBERED_HASHES:
            _hash_cache.clear()
        content, digest = hashlib.sha256(), digests.Digest()
        with path.open("rb") as file:
            while chunk := file.read(digests.CHUNK_BYTES):
                content.update(chunk)
                digest.update(chunk)
        known = _hash_cache[key] = content.hexdigest()[:40], str(digest)
    return known
