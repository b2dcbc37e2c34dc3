"""Times taken side by side, and their ratios."""

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

MIN_SECONDS = 0.01  # The scheduler disturbs much shorter timings.
# Where a round takes over a second: as many rounds as fit into 7 s, but at least 5.
SLOW_SECONDS, FEWEST_ROUNDS = 7, 5


class Run(NamedTuple):
    """A piece of work that is timed.

    Attributes:
        do: Does it once, and waits for the result.
        clock: Returns the time; it may stand still while nothing is to be timed.
        graph: Returns the concrete function that runs, where there is one.
    """

    do: Callable[[], Any]
    clock: Callable[[], float] = perf_counter
    graph: Callable[[], Any] | None = None


def seconds(run, calls=1):
    """Returns the time of so many calls."""
    start = run.clock()
    for _ in range(calls):
        run.do()
    return run.clock() - start


def take_turns(runs, rounds, seed=0, min_seconds=MIN_SECONDS):
    """Times runs side by side.

    Args:
        runs: Dict from the name to the run.
        rounds: The largest number of rounds, fewer if one takes over a second.
        seed: The seed of the order within the rounds.
        min_seconds: Of one timing of the first run; if it is shorter, each timing is
            of several calls.

    Returns:
        How many calls are in a timing, and a dict from the name to the seconds of a
        call in each round.
    """
    for run in runs.values():
        run.do()  # The first call traces and compiles.
    once = {name: seconds(run) for name, run in runs.items()}
    first = next(iter(runs))
    shortest = once[first]
    if shortest < min_seconds:
        shortest = min(shortest, *(seconds(runs[first]) for _ in range(3)))
    calls = math.ceil(min_seconds / shortest)
    a_round = sum(once.values()) * calls
    if a_round > 1:
        rounds = min(rounds, max(FEWEST_ROUNDS, int(SLOW_SECONDS / a_round)))
    rng = np.random.default_rng(seed)
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            if calls > 1:
                runs[name].do()  # Untimed, while the threads of the last run settle.
            times[name].append(seconds(runs[name], calls) / calls)
    return calls, times


def timed_case(runs, rounds, steps=1, seed=0, min_seconds=MIN_SECONDS):
    """Returns the entries of a case in a JSON file that the times give.

    Args:
        runs: As in `take_turns()`.
        rounds: As in `take_turns()`.
        steps: The number of steps in one call of a run. The times are for one step.
        seed: As in `take_turns()`.
        min_seconds: As in `take_turns()`.
    """
    calls, times = take_turns(runs, rounds, seed, min_seconds)
    times = {name: [t / steps for t in of_calls] for name, of_calls in times.items()}
    return {
        "rounds": len(next(iter(times.values()))),
        "calls": calls,
        "steps": steps,
        "seconds": times,
        "median_ms": {name: 1e3 * np.median(times[name]) for name in times},
    }


def ratio(over, under):
    """Returns median, spread and verdict of the ratios within the rounds."""
    ratios = np.divide(over, under)
    low, high = np.percentile(ratios, [10, 90])
    return {
        "median": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "tie": bool(low <= 1 <= high),
    }


def geometric_mean(values):
    """Returns the geometric mean, the mean for ratios."""
    return float(np.exp(np.mean(np.log(values))))


def slope(sizes, times):
    """Returns the power of the size by which the time grows, from a log-log fit."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
