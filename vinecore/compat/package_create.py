"""The module `ndcctools.poncho.package_create`: environments as archives for `declare_poncho`.

An environment that conda has made is packed by conda-pack. Any other one is packed with a copy of
its Python. A specification is made with conda where there is one, else as a venv with pip.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from vinecore.compat.python_archives import pack_environment, pack_with_conda_pack

log = logging.getLogger("vinecore")

NOT_FROM_PIP = {"python", "pip", "conda", "conda-pack", "ndcctools"}
"""Packages of specifications that a venv has already, or that its tasks do not need."""
KNOWN_KEYS = {"conda", "pip", "name", "channels", "dependencies"}
CONDA_VERSION = re.compile(r"(?<![=<>!~])=(?!=)")

__all__ = ["create_conda_spec", "dict_to_env", "pack_env", "pack_env_from_dict"]


def pack_env(
    spec: str | Mapping[str, Any],
    output: str,
    conda_executable: str | None = None,
    download_micromamba: bool = False,
    ignore_editable_packages: bool = False,
) -> str:
    """Pack an environment.

    Parameters
    ----------
    spec : str or mapping
        The folder of an environment, the name of one of conda's, a JSON file with a specification,
        or a specification.
    output : str
        The archive.
    conda_executable : str or None
        The conda that makes the environment of a specification; None to look for one.
    download_micromamba : bool
        Has no effect: without conda, pip makes the environment.
    ignore_editable_packages : bool
        Whether packages that are installed in editable mode are left out.

    Returns
    -------
    str
        The archive.

    Raises
    ------
    ValueError
        The specification has something that is not supported, or asks for another Python than this
        one where there is no conda.
    """
    if not isinstance(spec, str):
        return pack_env_from_dict(
            spec, output, conda_executable, download_micromamba, ignore_editable_packages
        )
    if os.path.isfile(spec):
        with open(spec, encoding="utf-8") as file:
            return pack_env_from_dict(
                json.load(file), output, conda_executable, download_micromamba, ignore_editable_packages
            )
    if os.path.isdir(spec):
        # "." means the environment of this program
        prefix = sys.prefix if os.path.abspath(spec) == os.getcwd() and spec == "." else spec
        pack_environment(prefix, output, ignore_editable=ignore_editable_packages)
    else:
        pack_with_conda_pack(output, ignore_editable_packages, name=spec)
    return output


def pack_env_from_dict(
    spec: Mapping[str, Any],
    output: str,
    conda_executable: str | None = None,
    download_micromamba: bool = False,
    ignore_editable_packages: bool = False,
) -> str:
    """Make the environment of a specification, and pack it.

    Parameters
    ----------
    spec : mapping
        ``{"conda": {"channels": [...], "dependencies": [...]}, "pip": [...]}``; the dependencies may
        be called packages, and have a ``{"pip": [...]}`` of their own.
    output : str
        The archive.
    conda_executable, download_micromamba, ignore_editable_packages
        As for `pack_env`.

    Returns
    -------
    str
        The archive.

    Raises
    ------
    ValueError
        As for `pack_env`.
    """
    del download_micromamba
    channels, packages, from_pip = create_conda_spec(spec)
    with tempfile.TemporaryDirectory(prefix="vine-env-") as folder:
        prefix = os.path.join(folder, "env")
        conda = conda_executable or find_conda()
        if conda:
            options = [word for channel in channels for word in ("-c", channel)]
            _run(conda, "create", "--yes", "--quiet", "--prefix", prefix, *options, *packages)
        else:
            _check_python(packages)
            _run(sys.executable, "-m", "venv", prefix)
            from_pip = [*map(_as_requirement, packages), *from_pip]
            from_pip = [text for text in from_pip if _name_of(text) not in NOT_FROM_PIP]
        if from_pip:
            _run(os.path.join(prefix, "bin", "python"), "-m", "pip", "install", "--quiet", *from_pip)
        pack_environment(prefix, output, ignore_editable=ignore_editable_packages)
    return output


def dict_to_env(
    spec: Mapping[str, Any],
    conda_executable: str | None = None,
    download_micromamba: bool = False,
    ignore_editable_packages: bool = False,
    cache: bool = False,
    cache_path: str = ".poncho_cache",
    force: bool = False,
) -> str:
    """Make the environment of a specification, and pack it under a name made of the specification.

    Parameters
    ----------
    spec, conda_executable, download_micromamba, ignore_editable_packages
        As for `pack_env_from_dict`.
    cache : bool
        Whether the archive is kept in ``cache_path`` and used again for the same specification.
    cache_path : str
        The folder of these archives.
    force : bool
        Whether an archive that is there is made anew.

    Returns
    -------
    str
        The archive.
    """
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = cache_path if cache else "."
    os.makedirs(folder, exist_ok=True)
    output = os.path.join(folder, f"{digest}.tar.gz")
    if not cache or force or not os.path.exists(output):
        pack_env_from_dict(spec, output, conda_executable, download_micromamba, ignore_editable_packages)
    return output


def create_conda_spec(spec: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Return the channels, the packages of conda, and those of pip of a specification.

    Parameters
    ----------
    spec : mapping
        As for `pack_env_from_dict`.

    Returns
    -------
    channels, packages, from_pip

    Raises
    ------
    ValueError
        It has something else, such as data from git.
    """
    unknown = sorted(set(spec) - KNOWN_KEYS)
    if unknown:
        msg = f"an environment has no {', '.join(unknown)} here: declare data as files, such as m.declare_url(...)"
        raise ValueError(msg)
    conda = spec.get("conda", spec)
    entries = [*conda.get("dependencies", ()), *conda.get("packages", ())]
    packages = [entry for entry in entries if isinstance(entry, str)]
    from_pip = [text for entry in entries if isinstance(entry, Mapping) for text in entry.get("pip", ())]
    from_pip += [text for text in spec.get("pip", ()) if text not in from_pip]
    return list(conda.get("channels", ())), packages, from_pip


def find_conda() -> str:
    """Return a command that makes environments of conda; "" if there is none.

    Returns
    -------
    str
        Its path.
    """
    candidates: Sequence[str] = ("mamba", os.environ.get("CONDA_EXE", ""), "conda", "micromamba")
    return next((path for name in candidates if name and (path := shutil.which(name))), "")


def _name_of(requirement: str) -> str:
    return re.split(r"[\s=<>!~;\[@]", requirement.strip(), maxsplit=1)[0].lower()


def _as_requirement(package: str) -> str:
    """Return a package of conda's, ``name=version=build``, as one of pip's."""
    name, *versions = CONDA_VERSION.split(package.rsplit("::", maxsplit=1)[-1])
    return f"{name}=={versions[0]}" if versions else name


def _check_python(packages: Sequence[str]) -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for package in packages:
        wanted = re.match(r"python\s*=+\s*(\d+\.\d+)", package)
        if wanted is not None and wanted[1] != own:
            msg = f"{package!r}: without conda the environment has this Python, {own}; install conda, or start with a Python {wanted[1]}"
            raise ValueError(msg)


def _run(*command: str) -> None:
    log.info("%s", " ".join(command))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        msg = f"{' '.join(command[:4])} ... has failed: {ended.stderr.strip()[-500:]}"
        raise RuntimeError(msg)
