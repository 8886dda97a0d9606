"""The secret that a manager and its workers share.

Kept in a file of the user that nobody else may read, where workers of the same user look for it; see the design page, "Security".
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def secret_path() -> Path:
    """Where this user's secret is kept: the same place in which ``vine_worker`` looks."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "daskvine" / "secret"


def load_or_create_user_secret() -> tuple[bytes, Path]:
    """Read this user's secret; make one the first time."""
    path = secret_path()
    try:
        return read_secret(path), path
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(path)
        return read_secret(path), path


def read_secret(path: str | Path) -> bytes:
    """Read a secret.

    Raises
    ------
    ValueError
        The file is empty.
    """
    secret = Path(path).read_bytes().strip()
    if not secret:
        msg = f"the password file {path} is empty"
        raise ValueError(msg)
    return secret


def write_secret(path: Path) -> None:
    """Write a new secret to a file that only its owner may read; an existing file stays."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
