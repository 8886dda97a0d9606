"""Files of rules: in sandboxes, or in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from vinecore.make.parser import parse_rules
from vinecore.make.placement import find_undeclared, job_size, place_files
from vinecore.make.rules import RuleError
from vinecore.make.run import MakeSettings

FOLDER = "/home/me/work"


def place(files, *shared, runs_here=False):
    [rule] = parse_rules(f"\n{files}\n\tcmd\n", {}).rules
    return place_files(rule, FOLDER, shared, runs_here=runs_here)


def test_relative_files_are_in_sandbox():
    found = place("out/a b->x: in ../up->down /opt/tool->tool")
    assert not found.runs_in_folder
    assert found.inputs == (("in", "in"), ("../up", "down"), ("/opt/tool", "tool"))
    assert found.outputs == (("out/a", "out/a"), ("b", "x"))
    assert found.in_place == ()


def test_absolute_files_stay_where_they_are_seen():
    assert place("/data/a: /opt/tool", runs_here=True).in_place == ("/data/a",)
    found = place("/data/a b: /opt/tool in", "/data", "/opt")
    assert (found.inputs, found.outputs, found.in_place) == ((("in", "in"),), (("b", "b"),), ("/data/a",))


def test_shared_folder_of_rules_needs_no_sandbox():
    found = place("a ../b: in /home/x", "/home/")
    assert found.runs_in_folder
    assert (found.inputs, found.outputs, found.in_place) == ((), (), ("a", "../b"))


@pytest.mark.parametrize(
    ("files", "shared", "words"),
    [
        ("a: /opt/tool", (), "write /opt/tool->tool"),
        ("a: ../up", (), "write ../up->up"),
        ("/data/a: x", ("/dat",), "--shared-fs /data"),
        ("a: b->c", ("/home",), "files keep their names"),
        ("a: /opt/tool", ("/home",), "--shared-fs /opt"),
        ("a: b->../c", (), "leads nowhere"),
    ],
)
def test_files_without_place_are_refused(files, shared, words):
    with pytest.raises(RuleError, match=words) as caught:
        place(files, *shared)
    assert caught.value.line == 2


def test_words_of_command_are_compared_with_files():
    [rule] = parse_rules("a->out: in dir\n\t./run.sh <in dir/x lib/y >out 2>'a b'; cat z\n", {}).rules
    assert find_undeclared(rule) == ["run.sh", "lib/y", "2", "b", "cat", "z"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("--mem 8000M -n 4 --mail-user me@example.org -p hera", {"memory": 8000, "cores": 4}),
        ("--mem=4G --cpus-per-task=2 --partition=n1", {"memory": 4000, "cores": 2}),
        (
            "request_memory = 8000 M \n request_cpus = 3 \n request_disk = 1024000",
            {"memory": 8000, "cores": 3, "disk": 1000},
        ),
        ("--mem 1G --mem 2G -c 2 -c3", {"memory": 2000, "cores": 3}),
        ("-p short -t 900", {}),
    ],
)
def test_size_of_job_is_in_batch_options(options, size):
    assert job_size(options) == size


def test_options_of_command_line_come_first():
    """Lines for HTCondor, and words for Slurm, so that the batch system takes those of the rule."""
    [rule] = parse_rules("BATCH_OPTIONS = request_memory = 8 M \\n request_cpus = 2\na:\n\tcmd\n", {}).rules
    settings = MakeSettings(Path("rules.mf"), batch_options=" +Short = true ", batch_type="condor")
    assert settings.job_options(rule) == "+Short = true\nrequest_memory = 8 M \n request_cpus = 2"
    [rule] = parse_rules("a:\n\t@BATCH_OPTIONS=-p n\n\tcmd\n", {"BATCH_OPTIONS": "no"}).rules
    assert (
        MakeSettings(Path("rules.mf"), batch_options="-t 9", batch_type="slurm").job_options(rule)
        == "-t 9 -p n"
    )
