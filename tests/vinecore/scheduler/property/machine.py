"""Random histories of a simulated cluster: messages that are late, workers that are lost, jobs that fail, users who cancel."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.vinecore.scheduler.property.job_outcomes import Ending
from tests.vinecore.scheduler.property.model import SimulatedCluster
from tests.vinecore.scheduler.property.random_graphs import BRIEF, DISKS, LARGE, LASTING, MODES, POLICIES
from vinecore.protocol import messages as m

seeds = st.integers(0, 2**16).map(random.Random)
which = st.integers(0, 2**16)
counts = st.sampled_from((1, 1, 2, 5, 50))
endings = st.builds(Ending, st.sampled_from(("well",) * 6 + ("badly", "worse")), st.integers(1, 4))


class ClusterMachine(RuleBasedStateMachine):
    """Does to a cluster whatever could happen."""

    @initialize(
        shape=seeds, workers=st.integers(0, 3), mode=st.sampled_from(MODES), policy=st.sampled_from(POLICIES),
        disks=st.sampled_from((DISKS, (1000,))),
    )  # fmt: skip
    def begin(self, shape, workers, mode, policy, disks):
        self.cluster = SimulatedCluster(mode, policy, disks)
        for _ in range(workers):
            self.cluster.connect_random_worker(shape)
        self.cluster.open_graph(shape)
        self.cluster.send_user_events(3)

    def _worker(self, number):
        return (
            list(self.cluster.workers)[number % len(self.cluster.workers)] if self.cluster.workers else None
        )

    @rule(shape=seeds, alone=st.booleans())
    def submit(self, shape, alone):
        (self.cluster.submit_tasks if alone else self.cluster.open_graph)(shape)

    @rule(count=counts)
    def send_user_events(self, count):
        self.cluster.send_user_events(count)

    @rule(shape=seeds)
    def join(self, shape):
        if len(self.cluster.workers) < 5:
            self.cluster.connect_random_worker(shape)

    @rule(number=which, to=counts, count=counts, now=st.booleans())
    def talk(self, number, to, count, now):
        number = self._worker(number)
        if number is not None:
            self.cluster.deliver_to_worker(number, to)
            self.cluster.deliver_to_scheduler(number, count)
            if now:
                self.cluster.handle_events()

    @rule(jobs=st.lists(st.tuples(which, which, endings), min_size=1, max_size=6))
    def work(self, jobs):
        for number, job, ending in jobs:
            worker = self._worker(number)
            if worker is not None:
                self.cluster.jobs.end_job(worker, job, ending)

    @rule(number=which, jobs=st.integers(1, 20))
    def progress(self, number, jobs):
        """Have a worker end several jobs well."""
        number = self._worker(number)
        if number is not None:
            self.cluster.deliver_to_worker(number, 50)
            for job in range(jobs):
                self.cluster.jobs.end_job(number, job, Ending("well", 2))
            self.cluster.deliver_to_scheduler(number, 50)
            self.cluster.handle_events()

    @rule(number=which, now=st.booleans())
    def lose(self, number, now):
        number = self._worker(number)
        if number is not None:
            self.cluster.lose_worker(number)
            if now:
                self.cluster.handle_events()

    @rule(number=which)
    def leave(self, number):
        number = self._worker(number)
        if number is not None:
            self.cluster.workers[number].outbox.append(m.Draining("idle"))
            self.cluster.deliver_to_scheduler(number, 50)
            self.cluster.handle_events()
            self.cluster.handle_events()

    @rule(number=which, within_s=st.sampled_from((5.0, 60.0)))
    def drain(self, number, within_s):
        number = self._worker(number)
        if number is not None:
            self.cluster.drain_worker(number, within_s)
            self.cluster.deliver_to_scheduler(number, 50)
            self.cluster.handle_events()

    @rule(number=which, shape=seeds)
    def damage(self, number, shape):
        """Have a worker report that an object is damaged."""
        number = self._worker(number)
        worker = self.cluster.workers.get(number)
        if worker is not None and worker.cache and not worker.state.tasks and not worker.state.fork_servers:
            name = shape.choice(list(worker.cache))
            worker.handle_events([m.PurgeObjects([name])])
            worker.outbox.append(m.ObjectsLost([name]))

    @rule(number=which, shape=seeds)
    def alter(self, number, shape):
        """Alter an object on a worker without a message."""
        worker = self.cluster.workers.get(self._worker(number))
        names = [name for name, size in worker.cache.items() if size == LARGE] if worker is not None else []
        if names:
            worker.contents[shape.choice(names)] = "altered"
            self.cluster.expected_failures |= {"input missing", "library"}

    @rule(seconds=st.sampled_from((0.25, 1.0, 20.0)))
    def tick(self, seconds):
        self.cluster.tick(seconds)

    @rule(
        shape=seeds,
        action=st.sampled_from(("hold", "release", "prune", "want", "close", "cancel", "library", "again")),
    )
    def user_acts(self, shape, action):
        cluster = self.cluster
        if action in ("release", "prune"):
            cluster.release_file(shape, prune=action == "prune")
        elif action == "again":
            cluster.toggle_declaration(shape.choice((BRIEF, LASTING)))
        else:
            act = {
                "hold": cluster.pin_result,
                "library": cluster.toggle_library,
                "want": cluster.request_file,
                "close": cluster.close_random_graph,
                "cancel": cluster.cancel_task,
            }
            act[action](shape)

    @invariant()
    def state_is_valid(self):
        if hasattr(self, "cluster"):
            self.cluster.scheduler.validate_state()

    def teardown(self):
        if hasattr(self, "cluster"):
            self.cluster.finish_without_faults()


def take_random_step(machine: ClusterMachine, chance: random.Random) -> None:
    """Take one step without hypothesis, which is a hundred times faster."""

    def shape() -> random.Random:
        return random.Random(chance.getrandbits(32))

    def number() -> int:
        return chance.getrandbits(16)

    def count() -> int:
        return chance.choice((1, 1, 2, 5, 50))

    def ending() -> Ending:
        return Ending(chance.choice(machine.kinds), chance.randint(1, 4))

    now = chance.random() < 0.5
    steps = (
        (6, lambda: machine.submit(shape(), chance.random() < 0.4)),
        (10, lambda: machine.send_user_events(count())),
        (4, lambda: machine.join(shape())),
        (30, lambda: machine.talk(number(), count(), count(), now)),
        (30, lambda: machine.work([(number(), number(), ending()) for _ in range(chance.randint(1, 6))])),
        (20, lambda: machine.progress(number(), chance.randint(1, 20))),
        (machine.losses, lambda: machine.lose(number(), now)),
        (machine.losses / 4, lambda: machine.leave(number())),
        (machine.losses / 2, lambda: machine.drain(number(), chance.choice((5.0, 60.0)))),
        (1, lambda: machine.damage(number(), shape())),
        (machine.losses / 2, lambda: machine.alter(number(), shape())),
        (6, lambda: machine.tick(chance.choice((0.25, 1.0, 20.0)))),
        (machine.user_actions, lambda: machine.user_acts(
            shape(), chance.choice(("hold", "release", "prune", "want", "want", "close", "cancel", "cancel", "library", "again")))),
    )  # fmt: skip
    weights, actions = zip(*steps, strict=True)
    chance.choices(actions, weights)[0]()


def run_history(seed: int) -> None:
    """Run one random history to its end."""
    chance = random.Random(seed)
    machine = ClusterMachine()
    machine.kinds = ("well",) * chance.choice((3, 10, 50)) + chance.choice(
        (("badly", "worse"), ("worse",), ("well",))
    )
    machine.losses = chance.choice((0, 1, 4, 10))
    machine.user_actions = chance.choice((0, 2, 8))
    mode, policy = chance.choice(MODES), chance.choice(POLICIES)
    disks = chance.choice((DISKS, (1000,)))
    machine.begin(random.Random(chance.getrandbits(32)), chance.randint(0, 3), mode, policy, disks)
    for _ in range(chance.choice((20, 60, 200))):
        take_random_step(machine, chance)
    machine.teardown()
