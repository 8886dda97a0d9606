"""The order in which rules start, with limits, failures and retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vinecore.make.parser import parse_rules
from vinecore.make.progress import Progress


def make_rules(edges, count):
    lines = [f"f{n}: {' '.join(f'f{m}' for m in sorted(edges.get(n, ())))}\n\tcmd\n" for n in range(count)]
    return parse_rules("".join(lines), {})


@st.composite
def runs(draw):
    count = draw(st.integers(1, 12))
    edges = {
        n: draw(st.sets(st.integers(0, n - 1), min_size=min(n, 1), max_size=3)) if n > 2 else set()
        for n in range(count)
    }
    pending = set(range(count)) - draw(st.sets(st.integers(0, count - 1), max_size=2))
    bad = draw(st.sets(st.integers(0, count - 1), max_size=2))
    here = draw(st.sets(st.integers(0, count - 1)))
    return (
        count,
        edges,
        pending,
        bad,
        here,
        draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        draw(st.randoms()),
    )


@given(runs())
def test_rules_start_after_prerequisites_and_within_limits(run):
    """Every rule that can run is run, as often as it may, and no other."""
    count, edges, pending, bad, here, retries, most, random = run
    rules = make_rules(edges, count)
    progress = Progress(rules, pending, retries, here.__contains__)
    running, tries, done = [], dict.fromkeys(pending, 0), set()
    while not progress.is_over:
        for number in progress.start_ready(most, None):
            assert not (edges[number] & pending) - done
            tries[number] += 1
            running.append(number)
        assert sum(number in here for number in running) <= most
        number = running.pop(random.randrange(len(running)))
        if number in bad:
            assert progress.fail(number, "bad") == (tries[number] <= retries)
        else:
            done.add(number)
            progress.finish(number)
    blocked = set()
    for number in sorted(pending):
        if edges[number] & pending & (bad | blocked):
            blocked.add(number)
    assert done == pending - bad - blocked
    assert set(progress.failed) == (pending & bad) - blocked
    assert progress.left == pending - done
    assert all(tries[number] == retries + 1 for number in progress.failed)


def test_rules_start_in_order_of_file():
    progress = Progress(make_rules({2: {0}}, 5), range(5), 0, lambda _n: True)
    assert progress.start_ready(2, None) == [0, 1]
    progress.finish(1)
    assert progress.start_ready(2, None) == [3]
