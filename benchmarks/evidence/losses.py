"""The losses of all trainings, and their differences paired by seed."""

from collections import defaultdict

import numpy as np

from benchmarks.intervals import interval


class Losses:
    """The losses of all trainings, by task, units, size and kind.

    Args:
        records: The records of all jobs.
    """

    def __init__(self, records):
        self._records = defaultdict(list)
        for record in sorted(records, key=lambda record: record["seed"]):
            key = record["task"], record["units"], record["size"], record["kind"]
            self._records[key].append(record)

    def conditions(self, task):
        """Returns the pairs of units and size of a task, the largest first."""
        found = {key[1:3] for key in self._records if key[0] == task}
        return sorted(found, key=lambda pair: (-pair[0], pair[1] == "few", pair[1]))

    def of(self, task, units, size):
        """Returns `{kind: losses (seeds, timesteps + 1)}`, the mean at the end."""
        return {
            kind: np.array([[*r["by_timestep"], r["loss"]] for r in records])
            for kind, records in self._by_kind(task, units, size).items()
        }

    def field(self, name, task, units, size):
        """Returns `{kind: a field of its records}`, such as the learning rate."""
        return {
            kind: records[0][name]
            for kind, records in self._by_kind(task, units, size).items()
        }

    def _by_kind(self, *condition):
        return {
            kind: records
            for (*key, kind), records in self._records.items()
            if tuple(key) == condition
        }


def relative(losses, baseline, which=None):
    """Returns the differences of the logarithms to a baseline, paired by seed.

    With `which`, they are the differences of one part of the sequences, as in `part`.

    In logarithms, half and twice the loss are equally far from the baseline, and one
    seed with a high loss does not outweigh the others.
    """
    if which is not None:
        losses, baseline = part(losses, which), part(baseline, which)
    return np.log(losses / baseline)


def percent(logs):
    """Returns differences of logarithms as text, in percent with the 95 % interval."""
    mean, half = interval(logs)
    middle, low, high = (100 * np.expm1(x) for x in (mean, mean - half, mean + half))
    if np.isnan(half):
        return f"{middle:+.1f} %"
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def part(losses, which):
    """Returns the loss over all timesteps, or at the first or the last."""
    return losses[:, {"all": -1, "first": 0, "last": -2}[which]]
