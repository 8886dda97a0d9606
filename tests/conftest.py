from __future__ import annotations

import os
import signal
import sys
import tarfile

import pytest
from hypothesis import HealthCheck, settings

# What a property test comes to does not depend on how fast the machine is.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_configure():
    # A shell starts what it puts into the background with interrupts ignored, and so are they in all that starts from there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # nohup starts what it runs with hang-ups ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """An environment as venv-pack makes it: its python is a link. It has a module that nobody else has."""
    folder = tmp_path_factory.mktemp("environment")
    major, minor = sys.version_info[:2]
    packages = folder / "lib" / f"python{major}.{minor}" / "site-packages"
    packages.mkdir(parents=True)
    python = os.path.realpath(sys.executable)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(python)}\n")
    (packages / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    (packages / "only_in_archive.py").write_text("WORD = 'packed'\n")
    archive = tmp_path_factory.mktemp("archives") / "my-env.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive
