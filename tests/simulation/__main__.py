"""`python -m tests.simulation --seed N --steps M`: tells one seed's story, step by step, as the tests ran it."""

import argparse
import sys
import traceback

from tests.simulation.story import STEPS, tell
from tests.simulation.world import START, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="as the failed test printed it")
    parser.add_argument("--steps", type=int, default=STEPS, help="until all faults cease")
    parser.add_argument("--count", type=int, default=1, help="so many seeds, the following ones")
    given = parser.parse_args()
    for seed in range(given.seed, given.seed + given.count):
        try:
            world = tell(seed, given.steps, say if given.count == 1 else None)
        except AssertionError:
            traceback.print_exc()
            say_line(f"seed {seed} fails; alone: python -m tests.simulation --seed {seed} --steps {given.steps}")
            return 1
        record = world.job()
        say_line(f"seed {seed}: {record.status if record else 'gone'} after {world.steps} steps")
    return 0


def say(world: World, text: str) -> None:
    say_line(f"{world.steps:6} {world.now - START:10.3f}  {text}")


def say_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
