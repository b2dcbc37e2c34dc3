"""Means and 95 % intervals over seeds. Differences are paired by seed."""

import numpy as np
from scipy import stats


def differences(losses, baseline):
    """Returns `{kind: its losses - the losses of the baseline}` for all other kinds.

    Args:
        losses: Dict from the kind to an array with one row for each seed.
        baseline: The kind that the others are compared with.
    """
    return {k: v - losses[baseline] for k, v in losses.items() if k != baseline}


def interval(values):
    """Returns the mean over the first axis, and half of its 95 % interval.

    It is Student's interval for the mean of independent values with a normal
    distribution. For a single value, half of the interval is NaN.
    """
    values = np.asarray(values)
    mean, count = values.mean(axis=0), len(values)
    if count == 1:
        return mean, np.full_like(mean, np.nan)
    error = values.std(axis=0, ddof=1) / np.sqrt(count)
    return mean, stats.t.ppf(0.975, count - 1) * error


def significant_sign(values):
    """Returns the sign of the mean `(seeds,)`, or 0 if its interval includes zero."""
    mean, half = interval(values)
    return int(np.sign(mean)) if abs(mean) > half else 0
