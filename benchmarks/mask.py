"""Compare masking by wsfast and by websockets.speedups, in one run and interleaved rounds: `python benchmarks/mask.py`.

Each line shows one size: the time of one call, the median over the rounds, and how many times as fast wsfast is, the
median of the ratios within each round. Both get the same `bytes` and make new ones.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

from wsfast_bench._library import apply_mask, extension_present

SIZES = [16 * 4**power for power in range(9)]  # 16 B to 1 MiB
ROUND = 2_000_000  # nanoseconds for which each of them runs in each round

Mask = Callable[[bytes, bytes], bytes]


def timed(mask: Mask, data: bytes, key: bytes, calls: int) -> float:
    """Return nanoseconds per call."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        mask(data, key)
    return (time.perf_counter_ns() - start) / calls


def compare(ours: Mask, theirs: Mask, size: int, rounds: int) -> tuple[float, float, float]:
    """Return nanoseconds of a call of each, and how many times as fast the first is."""
    data, key = os.urandom(size), os.urandom(4)
    if ours(data, key) != theirs(data, key):
        raise AssertionError(f"they differ at {size} bytes")
    calls = max(int(ROUND / timed(theirs, data, key, 20)), 5)
    times: dict[Mask, list[float]] = {ours: [], theirs: []}
    order = [ours, theirs]
    for _ in range(rounds):
        random.shuffle(order)
        for mask in order:
            times[mask].append(timed(mask, data, key, calls))
    ratio = statistics.median(their / our for our, their in zip(times[ours], times[theirs], strict=True))
    return statistics.median(times[ours]), statistics.median(times[theirs]), ratio


def main() -> int:
    """Print the table; return 1 if there is nothing to compare."""
    parser = argparse.ArgumentParser(description="Compare masking by wsfast and by websockets.speedups.")
    parser.add_argument("--rounds", type=int, default=41, help="rounds for each size (41)")
    rounds: int = parser.parse_args().rounds
    try:
        from websockets.speedups import apply_mask as theirs
    except ImportError:
        print("websockets was built without its extension, speedups", file=sys.stderr)
        return 1
    if not extension_present():
        print("the extension of wsfast is absent or WSFAST_PURE is set: this is its twin", file=sys.stderr)
    print(f"{rounds} rounds")
    print(f"{'bytes':>9}{'wsfast ns':>12}{'websockets ns':>15}{'times faster':>14}")
    for size in SIZES:
        our, their, ratio = compare(apply_mask, theirs, size, rounds)
        print(f"{size:>9}{our:>12.0f}{their:>15.0f}{ratio:>14.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
