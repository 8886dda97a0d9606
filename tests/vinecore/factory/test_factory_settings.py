from __future__ import annotations

import json
import logging

import pytest

from tests.support import until, workers_of
from vinecore import Factory, Task
from vinecore.factory.settings import Settings, from_json


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_workers", -1, "max_workers=-1: use a whole number of 0 or more"),
        ("max_workers", 1.5, "a whole number"),
        ("max_workers", True, "a whole number"),
        ("max_workers", 1, "min_workers=5, max_workers=1"),
        ("timeout", "soon", "timeout='soon': use a number"),
        ("timeout", float("nan"), "a number"),
        ("cores", 0, "1 or more"),
        ("capacity", "yes", "true or false"),
        ("env", {"A B": "c"}, "use names"),
        ("env", {"A": "b\nc"}, "one line"),
        ("condor_requirements", "a\nb", "one line"),
        ("max_worker", 3, "there is no setting 'max_worker'; did you mean 'max_workers'?"),
        ("xyz", 3, "there are: batch_options, "),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, value, words):
    with pytest.raises(ValueError, match=words.replace("?", "[?]")):
        Settings().changed(**{name: value})


def test_a_configuration_has_the_names_of_the_options():
    text = (
        '{"min-workers": 1, "worker-extra-options": "--debug", "cores": 2, "condor-requirements": ["a", "b"]}'
    )
    assert Settings().changed(**from_json(json.loads(text))) == Settings(
        min_workers=1, extra_options="--debug", cores=2, condor_requirements=("a", "b")
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "an object"),
        ({"max-worker": 1}, "did you mean 'max-workers'?"),
        ({"max_workers": 1}, "did you mean 'max-workers'?"),
        ({"autosize": True}, "'autosize' cannot be set yet"),
    ],
)
def test_a_configuration_that_cannot_be_understood_is_refused(value, words):
    with pytest.raises(ValueError, match=words.replace("?", "[?]")):
        from_json(value)


def test_a_configuration_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(yard, caplog):
    m = yard.manager()
    config = yard.place("config.json")
    config.write_text('{"min-workers": 0, "max-workers": 1}')
    with Factory("local", manager=m, cores=1, config_file=config) as factory:
        assert (factory.min_workers, factory.max_workers) == (0, 1)
        with caplog.at_level(logging.WARNING, "vinecore"):
            config.write_text('{"min-workers": 2')
            until(lambda: "the settings stay as they were" in caplog.text, "a word about the broken file")
            config.write_text('{"min-wrkers": 2}')
            until(lambda: "did you mean 'min-workers'?" in caplog.text, "a word about the unknown name")
        assert (factory.min_workers, factory.max_workers) == (0, 1)
        config.write_text('{"min-workers": 2, "max-workers": 2}')
        m.wait_for_workers(2, 60)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        Factory("local", manager=m, config_file=config)


def test_attributes_are_settings_and_can_be_changed_while_it_works(yard):
    m = yard.manager()
    with Factory("local", manager=m, min_workers=0, max_workers=2, cores=1) as factory:
        assert not m.workers_connected
        factory.min_workers = 1
        m.wait_for_workers(1, 60)
        with pytest.raises(AttributeError, match="did you mean 'min_workers'"):
            factory.min_worker = 3
        with pytest.raises(AttributeError, match="did you mean 'max_workers'"):
            _ = factory.max_worker
        with pytest.raises(ValueError, match="min_workers=3, max_workers=2"):
            factory.min_workers = 3
        assert factory.min_workers == 1


def test_workers_come_when_there_is_work_and_go_when_there_is_none(yard):
    m = yard.manager()
    with Factory("local", manager=m, min_workers=0, max_workers=2, cores=1, timeout=1) as factory:
        gate = yard.place("gate")
        for _ in range(3):
            m.submit(Task(f"until [ -e {gate} ]; do sleep 0.05; done"))
        m.wait_for_workers(2, 60)
        gate.touch()
        for _ in range(3):
            assert m.wait(60).successful()
        until(lambda: not factory.processes, "the idle workers to leave")


def test_a_manager_scales_its_workers_and_lets_only_idle_ones_go(yard):
    m = yard.manager()
    with pytest.raises(RuntimeError, match="no factory"):
        m.scale(2)
    gate = yard.place("gate")
    with Factory("local", manager=m, cores=1) as factory:
        m.wait_for_workers(1, 60)
        [first] = workers_of(m)
        m.submit(Task(f"until [ -e {gate} ]; do sleep 0.05; done"))
        until(lambda: workers_of(m)[0]["tasks"], "the task to run")
        m.scale(3)
        m.wait_for_workers(3, 60)
        m.scale(1)
        until(lambda: m.workers_connected == 1, "the idle workers to go")
        assert workers_of(m)[0]["id"] == first["id"]
        gate.touch()
        assert m.wait(60).successful()
        m.adapt(0, 2)
        assert (factory.min_workers, factory.max_workers) == (0, 2)
