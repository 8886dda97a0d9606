from __future__ import annotations

import json
import logging
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness.processes import PATIENCE_S, wait_until, worker_summaries
from vinecore import Factory, PythonTask, Task
from vinecore.factory.cli import FLAGS_WITHOUT_EFFECT, command
from vinecore.factory.settings import IGNORED_SETTINGS, FactorySettings, from_json


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_workers", -1, "max_workers=-1: use a whole number of 0 or more"),
        ("max_workers", 1.5, "a whole number"),
        ("max_workers", True, "a whole number"),
        ("max_workers", 1, "min_workers=5, max_workers=1"),
        ("timeout", "soon", "timeout='soon': use a number"),
        ("timeout", float("nan"), "a number"),
        ("timeout", float("inf"), "timeout=inf: use a number of 1 or more .seconds."),
        ("wall_time", 0, "wall_time=0: use a number of 1 or more .seconds."),
        *(
            (name, 1e12, f"{name}=1000000000000.0: use a number of 1,000,000,000 or less .seconds.")
            for name in ("factory_period", "timeout", "wall_time", "factory_timeout")
        ),
        ("cores", 0, "1 or more"),
        ("capacity", "yes", "True or False"),
        ("env", {"A B": "c"}, "use names"),
        ("env", {"A": "b\nc"}, "one line"),
        ("condor_requirements", "a\nb", "one line"),
        ("max_worker", 3, "there is no setting 'max_worker'; did you mean 'max_workers'?"),
        ("xyz", 3, "there are: batch_options, "),
    ],
)
def test_invalid_setting_is_refused_by_name(name, value, words):
    """What makes no sense is refused by name."""
    with pytest.raises(ValueError, match=words.replace("?", "[?]")):
        FactorySettings().changed(**{name: value})


def test_configuration_uses_option_names():
    """A configuration has the names of the options."""
    text = (
        '{"min-workers": 1, "worker-extra-options": "--debug", "cores": 2, "condor-requirements": ["a", "b"]}'
    )
    assert FactorySettings().changed(**from_json(json.loads(text))) == FactorySettings(
        min_workers=1, extra_options="--debug", cores=2, condor_requirements=("a", "b")
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "an object"),
        ({"max-worker": 1}, "did you mean 'max-workers'?"),
        ({"max_workers": 1}, "did you mean 'max-workers'?"),
    ],
)
def test_unreadable_configuration_is_refused(value, words):
    """A configuration that cannot be understood is refused."""
    with pytest.raises(ValueError, match=words.replace("?", "[?]")):
        from_json(value)


def test_deeply_nested_configuration_is_refused(local_cluster):
    """A configuration that is nested too deep is refused."""
    path = local_cluster.path("config.json")
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deep"):
        Factory("local", manager=local_cluster.start_manager(), config_file=path)


def test_changed_configuration_is_read_if_valid(local_cluster, caplog):
    """A configuration is read again when it changes and a broken one changes nothing."""
    m = local_cluster.start_manager()
    config = local_cluster.path("config.json")
    config.write_text('{"min-workers": 0, "max-workers": 1}')
    with Factory("local", manager=m, cores=1, config_file=config) as factory:
        assert (factory.min_workers, factory.max_workers) == (0, 1)
        with caplog.at_level(logging.WARNING, "vinecore"):
            config.write_text('{"min-workers": 2')
            wait_until(
                lambda: "the settings stay as they were" in caplog.text, "a word about the broken file"
            )
            config.write_text('{"min-wrkers": 2}')
            wait_until(lambda: "did you mean 'min-workers'?" in caplog.text, "a word about the unknown name")
        assert (factory.min_workers, factory.max_workers) == (0, 1)
        config.write_text('{"min-workers": 2, "max-workers": 2}')
        m.wait_for_workers(2, PATIENCE_S)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        Factory("local", manager=m, config_file=config)


def test_attributes_change_running_factory(local_cluster):
    """Attributes are settings and can be changed while it works."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, min_workers=0, max_workers=2, cores=1) as factory:
        assert not m.workers_connected
        factory.min_workers = 1
        m.wait_for_workers(1, PATIENCE_S)
        with pytest.raises(AttributeError, match="did you mean 'min_workers'"):
            factory.min_worker = 3
        with pytest.raises(AttributeError, match="did you mean 'max_workers'"):
            _ = factory.max_worker
        with pytest.raises(ValueError, match="min_workers=3, max_workers=2"):
            factory.min_workers = 3
        assert factory.min_workers == 1


def test_bounds_can_be_set_in_turn(local_cluster):
    """Before the start the bounds are set one after the other, in any order."""
    m = local_cluster.start_manager()
    for first, second in (("min_workers", "max_workers"), ("max_workers", "min_workers")):
        for value in (7, 2):
            factory = Factory("local", manager=m, min_workers=4, max_workers=5, cores=1)
            setattr(factory, first, value)
            setattr(factory, second, value)
            assert (factory.min_workers, factory.max_workers) == (value, value)


def test_password_and_folder_are_set_before_start(local_cluster, tmp_path):
    """A program sets the password file and the folder as attributes; its workers use both."""
    m = local_cluster.start_manager()
    factory = Factory("local", manager_host_port=f"127.0.0.1:{m.port}", cores=1, min_workers=1, max_workers=1)
    factory.password, factory.scratch_dir = m.password_file, tmp_path
    with factory:
        m.wait_for_workers(1, PATIENCE_S)
        assert list(tmp_path.iterdir())
        assert factory.scratch_dir == tmp_path
        with pytest.raises(AttributeError, match="before the factory is started"):
            factory.password = "other"


def test_workers_follow_the_work(local_cluster):
    """Workers come when there is work and go when there is none."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, min_workers=0, max_workers=2, cores=1, timeout=1) as factory:
        gate = local_cluster.path("gate")
        for _ in range(3):
            m.submit(Task(f"until [ -e {gate} ]; do sleep 0.05; done"))
        m.wait_for_workers(2, PATIENCE_S)
        gate.touch()
        for _ in range(3):
            assert m.wait(PATIENCE_S).successful()
        wait_until(lambda: not factory.processes, "the idle workers to leave")


def test_manager_scales_and_releases_idle_only(local_cluster):
    """A manager scales its workers and lets only idle ones go."""
    m = local_cluster.start_manager()
    with pytest.raises(RuntimeError, match="no factory"):
        m.scale(2)
    gate = local_cluster.path("gate")
    with Factory("local", manager=m, cores=1) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        [first] = worker_summaries(m)
        m.submit(Task(f"until [ -e {gate} ]; do sleep 0.05; done"))
        wait_until(lambda: worker_summaries(m)[0]["tasks"], "the task to run")
        m.scale(3)
        m.wait_for_workers(3, PATIENCE_S)
        m.scale(1)
        wait_until(lambda: m.workers_connected == 1, "the idle workers to go")
        assert worker_summaries(m)[0]["id"] == first["id"]
        gate.touch()
        assert m.wait(PATIENCE_S).successful()
        m.adapt(0, 2)
        assert (factory.min_workers, factory.max_workers) == (0, 2)


@pytest.mark.parametrize("name", sorted(IGNORED_SETTINGS))
def test_ignored_taskvine_option_is_explained(name, caplog):
    """An option that means nothing here is accepted, and one line says why."""
    value = [] if name in FLAGS_WITHOUT_EFFECT else ["x"]
    told = CliRunner().invoke(command, ["-T", "local", "localhost", "0", f"--{name}", *value])
    assert "manager_host_port='localhost:0'" in told.output
    assert caplog.messages == [f"--{name} has no effect: {IGNORED_SETTINGS[name]}"]


KEYS = ("manager-name", "master-name", "foremen-name", "min-workers", "max-workers", "workers-per-cycle", "capacity", "timeout", "cores", "memory", "disk",
        "gpus", "autosize", "factory-timeout", "tasks-per-worker", "factory-name", "worker-extra-options", "transfer-port", "condor-requirements",
        "workers-blocked")  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_each_key_of_taskvines_configuration_is_known(key):
    from_json({key: "x"})


def test_worker_options_of_file_reach_workers():
    given = {"transfer-port": 9000, "task-wrapper": "nice -n 5", "single-shot": True, "worker-extra-options": "-v"}  # fmt: skip
    words = from_json(given)["extra_options"]
    assert shlex.split(words) == ["--transfer-port", "9000", "--task-wrapper", "nice -n 5", "--single-shot", "-v"]  # fmt: skip


def test_file_for_another_batch_system_is_accepted(tmp_path, caplog):
    """One file may serve several batch systems: each setting without effect is named in one line."""
    path = tmp_path / "factory.json"
    path.write_text(
        json.dumps({"max-workers": 3, "condor-requirements": "true", "amazon-config": "c", "cores": 2})
    )
    factory = Factory("local", manager_host_port="localhost:9123", config_file=path)
    assert (factory.max_workers, factory.cores, factory.condor_requirements) == (3, 2, ())
    [first, second] = caplog.messages
    assert first.endswith("condor-requirements has no effect on workers of type 'local'")
    assert "amazon-config has no effect: there is no such batch system here" in second


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("workers_blocked", "node1 node-2.example.org", ("node1", "node-2.example.org")),
        ("workers_blocked", ["a", "b"], ("a", "b")),
        ("workers_blocked", 'a" || true', "is not the name of a machine"),
        ("feature", "fast", ("fast",)),
        ("feature", "pilot:x/1", "is not one word without a slash"),
    ],
)
def test_words_are_checked(name, value, words):
    if isinstance(words, tuple):
        assert getattr(FactorySettings().changed(**{name: value}), name) == words
    else:
        with pytest.raises(ValueError, match=words):
            FactorySettings().changed(**{name: value})


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_options": "+x = 1"},
        {"condor_requirements": "a"},
        {"workers_blocked": "a"},
        {"wrapper_input": "f"},
    ],
)
def test_setting_without_local_effect_is_refused(local_cluster, setting):
    """What has no effect on workers of this machine is refused."""
    m = local_cluster.start_manager()
    [name] = setting
    with pytest.raises(ValueError, match=f"{name}=.* has no effect on workers of type 'local'"):
        Factory("local", manager=m, **setting)
    factory = Factory("local", manager=m)
    with pytest.raises(ValueError, match="has no effect"):
        factory.change(**setting)


def test_configuration_may_name_manager_and_factory(local_cluster, caplog, monkeypatch):
    """A configuration may name the manager and the factory."""
    monkeypatch.setenv("VINE_REGISTRY", str(local_cluster.path("registry")))
    config = local_cluster.path("config.json")
    said = {
        "manager-name": "analysis-.*",
        "factory-name": "night",
        "min-workers": 1,
        "max-workers": 1,
        "cores": 1,
    }
    config.write_text(json.dumps(said))
    m = local_cluster.start_manager(name="analysis-7")
    with Factory("local", config_file=config, password=local_cluster.secret) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        assert factory._id == "night"
        m.submit(Task("echo fine"))
        assert m.wait(PATIENCE_S).output == "fine\n"
        with caplog.at_level(logging.WARNING, "vinecore"):
            config.write_text(json.dumps({**said, "factory-name": "day"}))
            wait_until(
                lambda: "takes effect when the factory is started again" in caplog.text, "a word about it"
            )
    with pytest.raises(ValueError, match=r"factory_name='a b': use letters"):
        Factory("local", manager=m, factory_name="a b")
    config.write_text(json.dumps({"manager-name": "a", "master-name": "b"}))
    with pytest.raises(ValueError, match="are both given"):
        Factory("local", manager=m, config_file=config)


@pytest.mark.parametrize("settings", [{"tasks_per_worker": 4}, {"cores": 4}])
def test_one_worker_is_counted_for_several_tasks(local_cluster, settings):
    m = local_cluster.start_manager()
    gate = local_cluster.path("gate")
    for _ in range(8):
        m.submit(Task(f"until [ -e {gate} ]; do sleep 0.05; done", cores=1))
    with Factory("local", manager=m, min_workers=0, max_workers=8, timeout=60, **settings) as factory:
        m.wait_for_workers(2, PATIENCE_S)
        assert len(factory.processes) == 2
        gate.touch()
        for _ in range(8):
            assert m.wait(PATIENCE_S).successful()


def test_capacity_bounds_started_workers(local_cluster):
    """With capacity no more are started than the manager can keep busy."""
    m = local_cluster.start_manager()
    # the one that stays keeps the last ones waiting, however fast the worker is
    for text in ["true"] * 50 + ["sleep 1000"] + ["true"] * 2000:
        m.submit(Task(text, cores=1))
    with Factory("local", manager=m, min_workers=1, max_workers=1, cores=1) as factory:
        for _ in range(50):
            assert m.wait(PATIENCE_S).successful()
        demand = factory._source.ask(factory._base.changed(max_workers=9), "")
        assert demand.waiting + demand.running == 2001
        assert demand.capacity
        every = factory._scaling.target(factory._base.changed(max_workers=10**6), demand)
        some = factory._scaling.target(factory._base.changed(max_workers=10**6, capacity=True), demand)
        assert some == max(1, min(every, demand.capacity))
        assert some < every
        m.cancel_all()


def test_wrapper_and_features_reach_worker(local_cluster):
    """A wrapper runs the worker and features are said."""
    m = local_cluster.start_manager()
    wrapper = f"sh -c 'touch {local_cluster.path('wrapped')}; exec \"$@\"' wrapper"
    with Factory(
        "local", manager=m, cores=1, wrapper=wrapper, feature=["fast", "near"], extra_options="--feature odd"
    ):
        m.wait_for_workers(1, PATIENCE_S)
        assert local_cluster.path("wrapped").exists()
        [peer] = m._server._workers.values()
        assert {"fast", "near", "odd"} <= set(peer.hello.features)


def test_local_workers_run_in_environment(local_cluster, packed):
    """Workers of this machine run in an environment."""
    m = local_cluster.start_manager()
    with Factory("local", manager=m, cores=1, python_env=str(packed)) as factory:
        m.wait_for_workers(1, PATIENCE_S)
        program = Path(f"/proc/{factory.processes[0].pid}/cmdline").read_text().split("\0")[0]
        assert program.endswith("/bin/python")
        assert program.startswith(str(local_cluster.folder))
        m.submit(PythonTask(lambda: __import__("only_in_archive").WORD))
        assert m.wait(PATIENCE_S).output == "packed"
    local_cluster.path("no-archive").write_text("x")


def test_an_environment_that_is_none_is_told(local_cluster, caplog):
    m = local_cluster.start_manager()
    local_cluster.path("no-archive").write_text("x")
    with Factory("local", manager=m, cores=1, python_env=str(local_cluster.path("no-archive"))):
        wait_until(lambda: "cannot be used" in caplog.text, "a word about it")


def test_taskvine_attributes_have_their_effect(local_cluster, tmp_path, caplog):
    """A factory as programs for TaskVine set it up, one attribute after another."""
    m = local_cluster.start_manager()
    log = tmp_path / "factory.log"
    factory = Factory("local", manager=m, factory_binary="/bin/vine_factory", log_file=str(log))
    factory.cores = 1
    factory.task_wrapper = "env WRAPPED=yes"
    factory.single_shot = True
    factory.debug = "all"
    factory.amazon_config = "aws.json"
    assert [text.partition(" has no effect")[0] for text in caplog.messages] == [
        "factory_binary",
        "debug",
        "amazon_config",
    ]
    assert factory.extra_options.split()[-1] == "--single-shot"
    with factory:
        m.submit(Task("echo $WRAPPED"))
        assert m.wait(PATIENCE_S).output == "yes\n"
        with pytest.raises(AttributeError, match="before the factory is started"):
            factory.debug_file = "late.log"
    assert "vine_factory: submitted 1" in log.read_text()
    with pytest.raises(AttributeError, match="there is no setting 'corse'; did you mean 'cores'"):
        factory.corse = 2


def test_workers_run_in_set_environment(local_cluster, packed):
    m = local_cluster.start_manager()
    factory = Factory("local", manager=m, cores=1)
    factory.set_environment(m.declare_poncho(packed))
    assert factory.python_env == str(packed)
    with pytest.raises(ValueError, match="there is no such archive"):
        factory.set_environment("nowhere.tar.gz")


@pytest.mark.parametrize("is_attribute", [False, True])
def test_workers_are_the_given_program(local_cluster, is_attribute):
    """The program gets the command line of a worker, and is what runs."""
    m = local_cluster.start_manager()
    program = local_cluster.path("my_worker")
    program.write_text(
        f'#!/bin/sh\necho started "$@" >> {local_cluster.path("starts")}\n'
        f'exec {sys.executable} -m vineworker "$@"\n'
    )
    program.chmod(0o755)
    given = {} if is_attribute else {"worker_binary": program}
    factory = Factory("local", manager=m, cores=1, **given)
    if is_attribute:
        factory.worker_binary = str(program)
    with factory:
        m.submit(Task("echo ran"))
        assert m.wait(PATIENCE_S).output == "ran\n"
    assert local_cluster.path("starts").read_text().startswith("started --single-shot")


def test_worker_program_that_is_none_is_refused(local_cluster):
    m = local_cluster.start_manager()
    with pytest.raises(ValueError, match="no such program on this machine"):
        Factory("local", manager=m, worker_binary="/no/such/worker")
    with pytest.raises(ValueError, match="it has no effect on workers of type 'slurm'"):
        Factory("slurm", manager=m, worker_binary=sys.executable)
