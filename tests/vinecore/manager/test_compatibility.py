"""What keeps pickles from passing between two environments, and how it is said."""

from __future__ import annotations

import sys

import pytest

from vinecore.manager.compatibility import (
    PICKLE_SENSITIVE_PACKAGES,
    describe,
    explain_mismatch,
    package_versions,
    python_version,
)

MANAGER = {
    "python": "3.11",
    "packages": {"cloudpickle": "3.1.2", "dask": "2025.3.1", "numpy": "2.4.6", "awkward": "2.14.0"},
}
WHERE = "worker w1 on host h"


def worker(python: str = "3.11", **packages: str | None) -> dict[str, object]:
    versions = {**MANAGER["packages"], **packages}
    return {"python": python, "packages": {name: v for name, v in versions.items() if v is not None}}


def test_a_process_describes_itself():
    mine = describe()
    assert mine["python"] == python_version() == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert "cloudpickle" in mine["packages"]
    assert set(mine["packages"]) <= set(PICKLE_SENSITIVE_PACKAGES)
    assert explain_mismatch(mine, mine, WHERE) is None


def test_what_is_not_installed_is_absent():
    assert package_versions(["no-such-package-at-all", ""]) == {}


@pytest.mark.parametrize(
    "versions",
    [
        worker(),
        worker("3.11.9"),
        worker(numpy="2.0.0rc1"),
        worker(cloudpickle="3.0.0"),
        worker(dask="2025.3.0"),
        worker(dask="2025.03.0"),
        worker(dask=None, numpy=None, awkward=None),
        worker(pandas="1.0"),
        {"python": "3.11"},
        {},
    ],
)
def test_harmless_differences_are_not_mentioned(versions):
    """Differences that do no harm are not mentioned."""
    assert explain_mismatch(MANAGER, versions, WHERE) is None


def test_other_python_is_explained_with_fix():
    """Another python is one sentence with the fix."""
    assert explain_mismatch(MANAGER, worker("3.12", numpy="1.26"), WHERE) == (
        "worker w1 on host h runs Python 3.12 but the manager runs 3.11: functions pickled by one cannot be "
        "loaded by the other. Start the worker with Python 3.11, or ship an environment with "
        "environment='my-env.tar.gz'."
    )


def test_python_3_1_is_not_3_11():
    assert explain_mismatch(MANAGER, worker("3.1"), WHERE) is not None


BREAKING = [
    ("cloudpickle", "2.2.1"),
    ("dask", "2025.4.0"),
    ("dask", "2026.3.1"),
    ("numpy", "1.26.4"),
    ("awkward", "1.9"),
]


@pytest.mark.parametrize(("name", "version"), BREAKING)
def test_incompatible_package_is_named_with_fix(name, version):
    """A package that breaks pickles is named with what to install."""
    mine = MANAGER["packages"][name]
    assert explain_mismatch(MANAGER, worker(**{name: version}), WHERE) == (
        f"worker w1 on host h has {name} {version} but the manager has {mine}: objects pickled by one may "
        f"not load on the other. Install {name}=={mine} for the worker, or ship an environment with "
        "environment='my-env.tar.gz'."
    )


def test_all_of_them_are_named_at_once():
    text = explain_mismatch(MANAGER, worker(numpy="1.26.4", dask="2024.1.0", cloudpickle=None), WHERE)
    assert "no cloudpickle but the manager has 3.1.2, dask 2024.1.0 but" in text
    assert "and numpy 1.26.4 but the manager has 2.4.6:" in text
    assert "Install cloudpickle==3.1.2, dask==2025.3.1 and numpy==2.4.6 for the worker" in text


def test_a_worker_without_cloudpickle_can_load_nothing():
    assert "no cloudpickle" in explain_mismatch(MANAGER, {"python": "3.11", "packages": {}}, WHERE)
