"""Texts become rules, or an error that names the line."""

from __future__ import annotations

import contextlib
import os.path
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinecore.make.parser import parse_rules
from vinecore.make.rules import RuleError, RuleFile

HERA = """\
# makeflow file generated from config file rtp.toml
# created at 11:22:33 on 28 November 2026
export BATCH_OPTIONS = --mem 8000M -n 1 --mail-user me@example.org -p hera
zen.1.HH.uvh5.ANT_METRICS.out: /lustre/scripts/do_ANT_METRICS.sh setup.out
\t/lustre/work/wrapper_zen.1.HH.uvh5.ANT_METRICS.sh > /lustre/work/zen.1.HH.uvh5.ANT_METRICS.log 2>&1

export BATCH_OPTIONS = --mem 16000M -n 4 -p hera
zen.1.HH.uvh5.XRFI.out: /lustre/scripts/do_XRFI.sh zen.1.HH.uvh5.ANT_METRICS.out
\t/lustre/work/wrapper_zen.1.HH.uvh5.XRFI.sh > /lustre/work/zen.1.HH.uvh5.XRFI.log 2>&1
"""


def parse(text, **environment):
    return parse_rules(text, environment).rules


def only(text, **environment):
    [rule] = parse(text, **environment)
    return rule


def error(text, **environment):
    with pytest.raises(RuleError) as caught:
        parse_rules(text, environment)
    return str(caught.value)


def test_file_of_hera_is_understood():
    first, second = parse(HERA)
    assert first.targets == (RuleFile("zen.1.HH.uvh5.ANT_METRICS.out"),)
    assert [file.path for file in first.sources] == ["/lustre/scripts/do_ANT_METRICS.sh", "setup.out"]
    assert first.command.endswith("wrapper_zen.1.HH.uvh5.ANT_METRICS.sh > /lustre/work/zen.1.HH.uvh5.ANT_METRICS.log 2>&1")  # fmt: skip
    assert first.batch_options == "--mem 8000M -n 1 --mail-user me@example.org -p hera"
    assert second.batch_options == "--mem 16000M -n 4 -p hera"
    assert second.line == 8


def test_files_have_names_in_sandbox():
    rule = only('b  ./c->out : a->in1 dir//x "two words"\n\tcat in1\n')
    assert rule.targets == (RuleFile("b"), RuleFile("c", "out"))
    assert rule.sources == (RuleFile("a", "in1"), RuleFile("dir/x"), RuleFile("two words"))


def test_variables_count_from_their_line_on():
    first, second = parse("N=1\na:\n\techo $(N) ${N} $N >a\nN = 2\nN+=3\nb:\n\techo $N >b\n")
    assert first.command == "echo 1 1 1 >a"
    assert second.command == "echo 2 3 >b"


def test_scoped_variable_is_for_one_rule():
    text = "X=old\na:\n\t@X=new\n\t@CATEGORY=big\n\t@CORES=4\n\techo $(X)\nb:\n\techo $(X)\n"
    first, second = parse(text)
    assert (first.command, second.command) == ("echo new", "echo old")
    assert (first.category, second.category) == ("big", "default")
    assert (first.resources, second.resources) == ({"cores": 4}, {})


def test_names_of_files_are_substituted():
    rule = only("DIR=data\n$(DIR)/out: ${DIR}/in\n\tcp $DIR/in $DIR/out\n")
    assert (rule.name, rule.sources[0].path, rule.command) == ("data/out", "data/in", "cp data/in data/out")


def test_shell_keeps_its_own_variables():
    command = "for i in 1 2; do echo $i ${i} $$i $$ $? '$NF' $(date); done"
    assert only(f"a:\n\t{command}\n").command == command.replace("$$i", "$i").replace("$$", "$", 1)


def test_environment_fills_names_of_make_only():
    assert only("a:\n\techo $(HOME) $HOME\n", HOME="/home/me").command == "echo /home/me $HOME"


def test_exported_variables_are_collected():
    first, second = parse("export PATH=/opt/bin:${PATH}\nexport USER NOWHERE\na:\n\tx\nexport B = 1 2\nb:\n\t@PATH=/bin\n\tx\n", PATH="/bin", USER="me")  # fmt: skip
    assert first.variables == {"PATH": "/opt/bin:/bin", "USER": "me"}
    assert second.variables == {"PATH": "/bin", "USER": "me", "B": "1 2"}


def test_quotes_around_values_are_removed():
    rule = only('A="x $(B)"\n'.replace("$(B)", "y") + "C='$(no) $D'\na:\n\techo $(A) $(C)\n")
    assert rule.command == "echo x y $(no) $D"


def test_resources_belong_to_categories():
    text = """\
CATEGORY="preprocessing"
DISK=500
one: src
\tcmd
CATEGORY="simulation"
CORES=1
MEMORY=400
.MAKEFLOW DISK 2GB
three: src
\tcmd
CATEGORY="preprocessing"
two: src
\tcmd
.MAKEFLOW CATEGORY analysis
.MAKEFLOW GPUS 2
.MAKEFLOW SIZE five 2GB
five: src
\tcmd
"""
    found = {rule.name: (rule.category, rule.resources) for rule in parse(text, MEMORY="800")}
    assert found == {
        "one": ("preprocessing", {"disk": 500, "memory": 800}),
        "three": ("simulation", {"cores": 1, "memory": 400, "disk": 2000}),
        "two": ("preprocessing", {"disk": 500, "memory": 800}),
        "five": ("analysis", {"gpus": 2, "memory": 800}),
    }


def test_local_rules_are_marked():
    first, second = parse("a:\n    LOCAL curl -o a x\nb: a\n\tLOCALE=C sort a >b\n")
    assert (first.is_local, first.command) == (True, "curl -o a x")
    assert (second.is_local, second.command) == (False, "LOCALE=C sort a >b")


def test_lines_are_continued_and_commented():
    text = "# x\na: b \\\n   c  # why\n\n# between\n\techo 1 \\\n\t  2 # of the shell\n"
    rule = only(text)
    assert (rule.line, [file.path for file in rule.sources]) == (2, ["b", "c"])
    assert rule.command.split() == ["echo", "1", "2", "#", "of", "the", "shell"]


def test_colon_of_targets_is_found():
    assert only("x:1.out: in:2\n\tcmd\n").name == "x:1.out"
    assert [file.path for file in only("URL=http://x/y\na:b c\n\tcmd\n").sources] == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"rules": []}', 1, "JX"),
        ("a:\n\tMAKEFLOW child.mf dir\n", 2, "nested files of rules"),
        ("a:\nb:\n\tcmd\n", 1, "has no command"),
        ("a:\n\tcmd\n\tcmd2\n", 3, "join commands with ;"),
        ("\tcmd\n", 1, "no rule above"),
        ("x\n\na b c\n", 1, "neither a rule"),
        ("a:\n\tcmd\na:\n\tcmd\n", 3, "also a target of line 1"),
        ("a: b\n\tcmd\nb: c\n\tcmd\nc: a\n\tcmd\n", 1, "a needs b needs c needs a"),
        ("a: a\n\tcmd\n", 1, "a needs a"),
        ("%.o: x\n\tcmd\n", 1, "patterns"),
        ("a: x*\n\tcmd\n", 1, "patterns"),
        ("a: x\n\tcp $< $@\n", 2, "$< has no value here"),
        ("a a:\n\tcmd\n", 1, "'a' is named twice"),
        ("a: b->x c->x\n\tcmd\n", 1, "'x' is named twice"),
        ("a: b ->x\n\tcmd\n", 1, "without spaces"),
        ("a: 'b\n\tcmd\n", 1, "No closing quotation"),
        ("CORES=many\n", 1, "CORES=many"),
        ("MEMORY=-1\n", 1, "megabytes"),
        (".MAKEFLOW MPI_PROCESSES 4\n", 1, "MPI_PROCESSES: there are CATEGORY"),
        (".MAKEFLOW CORES\n", 1, "needs one value"),
        (".UMBRELLA SPEC x\n", 1, ".UMBRELLA does not exist"),
        ("@X=1\n", 1, "between the files"),
        ("a:\n\t@X 1\n\tcmd\n", 2, "@NAME=value"),
        ("export 1=2\n", 1, "export NAME=value"),
        ("$(NO): x\n\tcmd\n", 1, "'NO' is not defined"),
        (": x\n\tcmd\n", 1, "no target"),
        ("a: root://x/y\n\tcmd\n", 1, "is an address"),
        ("A=\na:\n\t$(A)\n", 3, "the command is empty"),
        ("a: \0\n\tcmd\n", 1, "zero byte"),
        ("a:\n\tcmd\nb: a/x\n\tcmd\n", 3, "'a/x' is in 'a', which a rule makes as a whole"),
        ("./: x\n\tcmd\n", 1, "is no file of its own"),
        ("../..: x\n\tcmd\n", 1, "is no file of its own"),
    ],
)  # fmt: skip
def test_errors_name_line_and_remedy(text, line, words):
    message = error(text)
    assert message.startswith(f"line {line}: ")
    assert words in message


def test_intermediates_are_read_or_not_named():
    text = "a: in\n\tcmd\nb: a\n\tcmd\nc: b\n\tcmd\n"
    assert parse_rules(text, {}).intermediates() == {"a", "b"}
    assert parse_rules(f"MAKEFLOW_OUTPUTS=b ./c\n{text}", {}).intermediates() == {"a"}


def test_long_chain_needs_no_recursion():
    text = "".join(f"f{n + 1}: f{n}\n\tcp f{n} f{n + 1}\n" for n in range(5000))
    assert len(parse_rules(text, {}).rules) == 5000


NAMES = st.text(string.ascii_letters + string.digits + "._-é:", min_size=1, max_size=8).filter(
    lambda name: "->" not in name and "://" not in name and not name.endswith(":") and name not in {".", ".."}
)
WORDS = st.text(string.ascii_letters + "$ #'\"\\;=:@%(){}>", min_size=1, max_size=12)


@st.composite
def written_rules(draw):
    """Rules as data, with targets that are different."""
    targets = draw(st.lists(NAMES, min_size=1, max_size=12, unique_by=os.path.normpath))
    rules = []
    while targets:
        count = draw(st.integers(1, len(targets)))
        made, targets = targets[:count], targets[count:]
        sources = draw(st.lists(NAMES, max_size=4, unique_by=os.path.normpath))
        earlier = {os.path.normpath(target) for rule in rules for target in rule[0]}
        own = {os.path.normpath(target) for target in [*made, *targets]}
        sources = [
            name for name in sources if os.path.normpath(name) in earlier or os.path.normpath(name) not in own
        ]
        rules.append((made, sources))
    return rules


@given(written_rules(), st.booleans())
def test_written_rules_are_read_back(rules, tight):
    text = "".join(
        f"{' '.join(targets)}{'' if tight else ' '}: {' '.join(sources)}\n\techo {number}\n"
        for number, (targets, sources) in enumerate(rules)
    )
    parsed = parse(text)
    found = [
        ([f.path for f in rule.targets], [f.path for f in rule.sources], rule.command) for rule in parsed
    ]
    assert found == [
        (
            [os.path.normpath(name) for name in targets],
            [os.path.normpath(name) for name in sources],
            f"echo {number}",
        )
        for number, (targets, sources) in enumerate(rules)
    ]


@given(st.lists(st.sampled_from(["a", "b", " ", "\t", ":", "\n", "=", "->", "$(", ")", "export ", ".MAKEFLOW ", "CORES", "CATEGORY", "LOCAL ", "MAKEFLOW ", "@", "#", "'", '"', "\\", "\\\n", "1", "+=", "${", "}", "$", "%", "\0", "\r\n", "\x85"]), max_size=40).map("".join) | st.text())  # fmt: skip
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(RuleError):
        assert all(rule.command.strip() and rule.targets for rule in parse_rules(text, {}).rules)
