"""Files of rules run with real workers, are interrupted, and continue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from click.testing import CliRunner

from tests.harness import hera_rules
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.make.cli import command

COMMAND = [sys.executable, "-m", "vinecore.make"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the rules, with the secret and the temporary files of this test beside it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def make(folder, *options, code=0, rules="rules.mf"):
    """Run the command in this process; return what it prints."""
    result = CliRunner().invoke(command, [*options, str(folder / rules)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def write(folder, text, **files):
    (folder / "rules.mf").write_text(text)
    for name, content in files.items():
        (folder / name).write_text(content)


def start(folder, *options, rules="rules.mf"):
    """Start the command as a process; return it, with its output in ``output``."""
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            [*COMMAND, *options, str(folder / rules)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, cwd=folder,
        )  # fmt: skip


def completed(folder, log="rtp.mf.vinelog"):
    path = folder / log
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["rule"] for line in lines]


def test_rules_of_hera_continue_after_kill(folder):
    """Two hundred rules, killed in the middle: the same command runs the rest, and nothing again."""
    targets = hera_rules.write(folder, 40, "--mem 100M -n 1 -p hera", shared=True)
    assert len(targets) == 200
    options = ("--shared-fs", str(folder), "--cores", "4")
    process = start(folder, *options, rules="rtp.mf")
    try:
        wait_until(
            lambda: len(completed(folder)) >= 60 or process.poll() is not None, "some rules to be complete"
        )
    finally:
        process.kill()
        process.wait()
    before = completed(folder)
    assert 60 <= len(before) < 200, (folder / "output").read_text()
    assert start(folder, *options, rules="rtp.mf").wait(PATIENCE_S) == 0, (folder / "output").read_text()
    assert sorted(completed(folder)) == sorted(targets)
    assert all((folder / target).exists() for target in targets)
    ran = Counter((folder / "ran").read_text().split())
    assert len(ran) == 200
    assert {ran[target.removesuffix(".out")] for target in before} == {1}
    assert "nothing left to do" in make(folder, *options, rules="rtp.mf")


def test_changed_rules_run_again_in_sandboxes(folder):
    write(folder, """\
CORES=1
out/sum made: two in->given
\tcat two given > out/sum; mkdir made; cp given made/x
two: one data
\tcat one data/sub/x > two; ls >> listing; echo from two
one:
\tLOCAL echo "$WHO $$WHO $(WHAT)" > one
""", **{"in": "3\n"})  # fmt: skip
    text = f"export WHO=me\nWHAT=it\n{(folder / 'rules.mf').read_text()}"
    write(folder, text)
    (folder / "data/sub").mkdir(parents=True)
    (folder / "data/sub/x").write_text("2\n")
    output = make(folder)
    assert (folder / "out/sum").read_text() == "me me it\n2\n3\n"
    assert (folder / "made/x").read_text() == "3\n"
    assert not (folder / "listing").exists()
    assert "from two" in output
    assert "[3/3] out/sum" in output
    (folder / "in").write_text("4 and more\n")
    output = make(folder)
    assert "1 of 3 rules" in output
    assert (folder / "out/sum").read_text() == "me me it\n2\n4 and more\n"
    write(folder, text.replace("cat one", "cat ./one"))
    assert "2 of 3 rules" in make(folder)
    (folder / "data/sub/x").write_text("two\n")
    (folder / "one").unlink()
    assert "3 of 3 rules" in make(folder)
    assert (folder / "out/sum").read_text() == "me me it\ntwo\n4 and more\n"


def test_failures_name_rule_and_block_others(folder):
    write(folder, f"""\
a: tries
\techo x >> {folder}/counted; test `wc -l < {folder}/counted` -ge 3 && echo done > a
b: a
\tcat tries extra > b
c: b
\tcat b > c
d: a
\t: > e
f: a
\tcd {folder}; touch f
g:
\texit 7
h: a
\tcat a > h
""", tries="", extra="")  # fmt: skip
    output = make(folder, "-r", "2", "-j", "2", code=1)
    assert (folder / "counted").read_text() == "x\n" * 3
    assert output.count("again: a (line 1): exit code 1") == 2
    assert "failed: b (line 3): exit code 1 of: cat tries extra > b\n  extra, tries is no source" in output.replace("tries, extra", "extra, tries")  # fmt: skip
    assert "failed: d (line 7): " in output
    assert f"f is in {folder}, so the command has written it there itself" in output
    assert "failed: g (line 11): exit code 7 of: exit 7" in output
    assert "1 rules have not run" in output
    assert sorted(completed(folder, "rules.mf.vinelog")) == ["a", "h"]
    assert not (folder / "c").exists()
    (folder / "rules.mf").write_text((folder / "rules.mf").read_text().replace("exit 7", "touch g"))
    assert "4 of 7 rules" not in make(folder, code=1)
    assert (folder / "g").exists()


def test_workers_connect_by_themselves(folder, tmp_path):
    """With -T vine rules run on the worker, and LOCAL ones here."""
    write(folder, "a: in\n\techo $PLACE `cat in` > a\nb: a\n\tLOCAL echo ${PLACE:-here} `cat a` > b\n", **{"in": "1"})  # fmt: skip
    process = start(folder, "-T", "wq", "-Z", str(tmp_path / "port"))
    try:
        port = wait_until(lambda: (tmp_path / "port").exists() and (tmp_path / "port").read_text().strip())
        worker = subprocess.Popen(
            [sys.executable, "-m", "vineworker", "127.0.0.1", port, "--single-shot", "--cores", "1", "--workspace", str(tmp_path / "workers")],
            env={**os.environ, "PLACE": "there", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.wait(PATIENCE_S) == 0, (folder / "output").read_text()
        finally:
            worker.kill()
            worker.wait()
    finally:
        process.kill()
        process.wait()
    assert (folder / "a").read_text() == "there 1\n"
    assert (folder / "b").read_text() == "here there 1\n"


def test_second_process_is_refused(folder):
    write(folder, f"a:\n\t: > {folder}/begun; sleep 1000; touch a\n")
    process = start(folder)
    try:
        wait_until((folder / "begun").exists, "the rule to run")
        assert "another vine_make runs" in make(folder, code=1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert not (folder / "a").exists()


def test_clean_removes_kinds_of_targets(folder):
    write(folder, "a:\n\techo 1 > a\nb made: a\n\tcp a b; mkdir made; touch made/x\n", own="")
    make(folder)
    assert make(folder, "-cintermediates") == "removed a\n"
    assert make(folder, "--clean=outputs") == "removed b\nremoved made\n"
    assert "2 of 2 rules" in make(folder)
    (folder / "made").rename(folder / "kept")
    (folder / "rules.mf.vinelog").unlink()
    (folder / "made").mkdir()
    (folder / "made/mine").touch()
    assert make(folder, "-c") == "removed a\nremoved b\n"
    assert {path.name for path in folder.iterdir()} == {"rules.mf", "own", "kept", "made"}


def test_check_runs_nothing(folder):
    write(folder, "a: in\n\tcp in a\n", **{"in": ""})
    assert "1 rules, no errors" in make(folder, "--check")
    (folder / "in").unlink()
    assert "rules.mf: line 1: in does not exist, and no rule makes it" in make(folder, "-k", code=1)
    write(folder, "a: /etc/hostname\n\tcp /etc/hostname a\n")
    assert "no errors" in make(folder, "-k")
    assert "write /etc/hostname->hostname" in make(folder, "-k", "-T", "vine", code=1)
    assert {path.name for path in folder.iterdir()} == {"rules.mf"}


@pytest.mark.parametrize("option", ["--jx", "-gref_cnt", "--mounts=x", "--docker", "-m"])
def test_options_of_makeflow_are_refused_by_name(folder, option):
    write(folder, "a:\n\ttouch a\n")
    assert f"{option} does not exist here: " in make(folder, option, code=2)
