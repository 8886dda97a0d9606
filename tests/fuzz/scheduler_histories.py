"""Lives of a simulated vine by the thousand: `python -m tests.fuzz.scheduler_histories --minutes 10`.

Each is a manager's mind and the minds of its workers in a world where everything may be late, lost or broken, as in
`tests/vinecore/scheduler/test_random_histories.py`, from a seed that is printed if something does not hold.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback

import click

from tests.vinecore.scheduler.test_random_histories import live


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=int, default=None, help="The first seed; the default is another one each day.")
@click.option("--most", type=int, default=5, show_default=True, help="Failures to stop after.")
def main(minutes: float, seed: int | None, most: int) -> None:
    """Live from seed to seed; fail if any life did."""
    started, failed, lives = time.monotonic(), [], 0
    for number in itertools.count(int(time.time()) // 86400 * 1_000_000 if seed is None else seed):
        if len(failed) >= most or time.monotonic() - started > 60 * minutes:
            break
        lives += 1
        try:
            live(number)
        except Exception:  # noqa: BLE001 - any is a finding
            failed.append(number)
            print(f"seed {number}:")
            traceback.print_exc()
    print(f"{lives} lives, {len(failed)} failed {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
