"""``vine_submit_workers``; a real HTCondor pool is in ``tests/cluster``."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness.processes import wait_for_task
from vinecore import Task
from vinecore.factory.submit_workers import command, split_words

QSUB = """\
#!/bin/sh
# runs what it reads, as a node of Grid Engine does
echo "$@" >> {log}
cat > {script}
TMPDIR={folder} setsid sh {script} > {log}.err 2>&1 &
echo 17
"""


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Run the command, and return what it prints."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("VINE_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.delenv("CATALOG_HOST", raising=False)

    def run(*words, status=0):
        result = CliRunner().invoke(command, words)
        assert result.exit_code == status, result.output
        return result.output

    return run


def test_dry_run_prints_condor_jobs(submit, tmp_path):
    extra = tmp_path / "proxy.pem"
    extra.touch()
    environment = tmp_path / "env.tar.gz"
    environment.touch()
    printed = submit(
        *("-T", "condor", "-M", "my-coffea", "--python-env", str(environment), "-t", "700", "--dry-run"),
        *("--cores", "4", "--memory", "16000", "--disk", "100000", "--class-ad", 'JobFlavour="longlunch"'),
        *("-r", "HasSSD", "-r", "Memory > 10", "--extra-file", str(extra), "--docker-universe", "python:3.12"),
        *("--spool", "-p", "-name schedd7", "--wrapper", "nice -n 5", "--gpus", "1", "-E", "--grace 3"),
        *("--scratch-dir", str(tmp_path / "scratch"), "10"),
    )  # fmt: skip
    lines = [line.strip() for line in printed.splitlines()]
    for line in (
        "condor_submit -name schedd7 -spool with", "request_cpus = 4", "request_memory = 16000", "request_disk = 102400000",
        "request_gpus = 1", "requirements = (HasSSD) && (Memory > 10)", '+JobFlavour="longlunch"', "universe = docker",
        "docker_image = python:3.12", "queue 10",
    ):  # fmt: skip
        assert line in lines
    [inputs] = [line for line in lines if line.startswith("transfer_input_files")]
    assert {str(extra), str(environment)} <= {*inputs.replace(",", "").split()}
    [start] = [line for line in lines if line.startswith("exec ")]
    assert start.startswith('exec nice -n 5 "$python"')
    words = shlex.split(lines[lines.index(start) + 1])
    assert words[words.index("-M") + 1] == "my-coffea"
    assert words[words.index("--timeout") + 1] == "700.0"
    assert words[-2:] == ["--grace", "3"]
    assert not list((tmp_path / "scratch").iterdir())


def test_dry_run_prints_slurm_array(submit):
    printed = submit(
        *("-T", "slurm", "--cores", "2", "--memory", "4G", "--dry-run", "-C", "catalog.org:9097"),
        *("-M", "my-coffea", "-p", "--account avery --qos avery --time 0:30:00", "-d", "all", "-w", "4", "3"),
    )  # fmt: skip
    [sbatch] = [line for line in printed.splitlines() if line.startswith("sbatch")]
    assert "--cpus-per-task=2 --mem=4000M --account avery --qos avery --time 0:30:00 --array=0-2" in sbatch
    assert "-M my-coffea" in printed
    assert "--catalog catalog.org:9097" in printed
    assert "--debug all --tcp-window-size 4" in printed


def test_dry_run_shows_no_secret(submit, tmp_path):
    for batch_type in ("condor", "slurm", "uge"):
        printed = submit("-T", batch_type, "localhost", "9123", "2", "--dry-run")
        [secret] = (tmp_path / "config").rglob("secret")
        assert secret.read_text().strip() not in printed


def test_workers_of_grid_engine_compute(local_cluster, submit, tmp_path, monkeypatch):
    m = local_cluster.start_manager()
    folder = tmp_path / "bin"
    folder.mkdir()
    qsub = folder / "qsub"
    qsub.write_text(QSUB.format(log=tmp_path / "qsub.log", script=tmp_path / "job.sh", folder=tmp_path))
    qsub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    printed = submit("-T", "uge", "-j", "127.0.0.1", str(m.port), "1", "-P", str(local_cluster.secret), "-p", "-q long",
                     "-E", "--single-shot --task-wrapper 'env NODE=node7'")  # fmt: skip
    assert "1 job(s) submitted: 17. Remove them with: qdel 17" in printed
    assert "-q long -t 1-1" in (tmp_path / "qsub.log").read_text()
    m.submit(Task('echo "on $NODE"'))
    assert wait_for_task(m).output == "on node7\n"
    m.close()
    script = (tmp_path / "job.sh").read_text()
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "name", "found"),
    [
        (["host", "9123", "5"], None, ("host", 9123, 5)),
        (["host:9123", "5"], None, ("host", 9123, 5)),
        (["[::1]:9123", "5"], None, ("::1", 9123, 5)),
        (["7"], "mine", ("", 0, 7)),
    ],
)
def test_address_and_number_are_understood(words, name, found):
    assert split_words(words, name) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "does not end with the number of workers"),
        (["host", "9123"], "'host' is not an address"),
        (["host", "0"], "does not end with the number of workers"),
        (["-M", "mine", "host", "9123", "4"], "give either the manager's address, host 9123, or its name"),
        (["host", "9123", "4", "--spool"], "--spool is for -T condor: leave it out"),
        (["-M", "(", "4"], "neither a name nor a regular expression"),
        (["host", "9123", "4", "--ssl"], "no fingerprint at"),
    ],
)
def test_invalid_words_are_refused_with_remedy(submit, words, said):
    printed = submit("-T", "uge", *words, status=2)
    assert said in " ".join(printed.split())


def test_missing_command_is_reported(submit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    for batch_type, name in (("condor", "condor_submit"), ("slurm", "sbatch"), ("uge", "qsub")):
        printed = submit("-T", batch_type, "h:1", "1", "--scratch-dir", str(tmp_path), status=1)
        assert f"there is no command {name} here" in " ".join(printed.split())
