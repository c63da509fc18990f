"""Random episodes of the scheduler, one seed after the other: ``python -m tests.scheduler.fuzz --episodes 10000 --seed 0``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from .episodes import Episode


def main() -> int:
    """Run them all, and say how to repeat those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; the others count up from it")
    arguments = parser.parse_args()
    logging.getLogger("vllm").setLevel(logging.ERROR)
    started = time.monotonic()
    failed = [seed for seed in range(arguments.seed, arguments.seed + arguments.episodes) if not _passes(seed)]
    took_s = time.monotonic() - started
    sys.stdout.write(f"{arguments.episodes} episodes in {took_s:.0f} s, failed: {failed or 'none'}\n")
    return 1 if failed else 0


def _passes(seed: int) -> bool:
    try:
        Episode(seed).run()
    except Exception:  # whatever it was, the other seeds are worth a look
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
