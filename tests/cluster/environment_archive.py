"""This Python as an archive that works wherever it is unpacked, with some of the packages that are installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

LIBC = (2, 41)  # of Debian 13
LARGE = {"test", "idlelib", "tkinter", "ensurepip", "lib2to3", "site-packages", "__pycache__", "turtledemo"}
START = """\
#!/bin/sh
# a Python may have been built to look for its library only where that was installed
bin=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$bin/../lib exec "$bin/python3" "$@"
"""


def write(archive: Path, modules: Iterable[str]) -> Path:
    """Write an archive of this Python and of these modules, as they are installed here."""
    libc, number = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, number.split("."))) > LIBC:
        pytest.skip(f"a Python built for {libc or 'another libc'} {number} does not run in Debian 13")
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"

    def chosen(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        return None if LARGE & set(parts[2:]) or entry.name.endswith(".a") else entry

    def without_tests(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "tests" in Path(entry.name).parts else entry

    start = archive.with_name("start")
    start.write_text(START)
    start.chmod(0o755)
    with tarfile.open(archive, "w") as tar:
        tar.add(start, "bin/python")
        tar.add(os.path.realpath(sys.executable), "bin/python3")
        tar.add(base / "lib" / version, f"lib/{version}", filter=chosen)
        for shared in (base / "lib").glob(f"lib{version}*.so*"):
            tar.add(os.path.realpath(shared), f"lib/{shared.name}")
        for path in sorted(_installed(set(modules))):
            tar.add(path, f"lib/{version}/site-packages/{path.name}", filter=without_tests)
    return archive


def _installed(modules: Iterable[str]) -> set[Path]:
    """All that was installed with these modules; of what is in use from a working copy, the package itself."""
    packages, owners = Path(sysconfig.get_path("purelib")), importlib.metadata.packages_distributions()
    found: set[Path] = set()
    for module in modules:
        for owner in owners.get(module, ()):
            parts = {file.parts[0] for file in importlib.metadata.distribution(owner).files or ()}
            found |= {packages / part for part in parts - {"..", "__pycache__"}}
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            found |= {Path(place) for place in spec.submodule_search_locations}
    return {path for path in found if path.exists()}
