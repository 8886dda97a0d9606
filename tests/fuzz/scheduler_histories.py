"""Random histories of a simulated cluster by the thousand: `python -m tests.fuzz.scheduler_histories --minutes 10`.

Each runs the state machines of a manager and its workers with messages that are late and workers that are lost, as in
`tests/vinecore/scheduler/property`, from a seed that is printed if an invariant does not hold.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback

import click

from tests.vinecore.scheduler.property.machine import run_history


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=int, default=None, help="The first seed; the default is another one each day.")
@click.option("--most", type=int, default=5, show_default=True, help="Failures to stop after.")
def main(minutes: float, seed: int | None, most: int) -> None:
    """Run histories from seed to seed; fail if any did."""
    started, failed, histories = time.monotonic(), [], 0
    for number in itertools.count(int(time.time()) // 86400 * 1_000_000 if seed is None else seed):
        if len(failed) >= most or time.monotonic() - started > 60 * minutes:
            break
        histories += 1
        try:
            run_history(number)
        except Exception:  # noqa: BLE001 - any is a finding
            failed.append(number)
            print(f"seed {number}:")
            traceback.print_exc()
    print(f"{histories} histories, {len(failed)} failed {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
