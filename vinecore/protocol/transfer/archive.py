"""Directories as tar streams: packing, unpacking without leaving the folder."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, Union

from vinecore.protocol import trees
from vinecore.protocol.transfer import digests
from vinecore.protocol.transfer.types import ReceivedObject

if TYPE_CHECKING:
    import tarfile


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
