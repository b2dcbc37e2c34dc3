"""The losses of the demo as text."""

import numpy as np

from benchmarks.demo.writer import CONDITIONAL, DIGIT_INPUT, KINDS, SIDE, ZEROS
from benchmarks.intervals import differences, interval, significant_sign


def report(losses):
    """Returns the kinds, both tables and the findings as text.

    Args:
        losses: Dict from the kind to the test loss in nats per image, an array
            `(seeds, row)`.
    """
    several = len(losses[ZEROS]) > 1
    totals = with_total(losses)
    means = {kind: values.mean(axis=0) for kind, values in totals.items()}
    kinds = "\n".join(f"  {kind:<12} {KINDS[kind]}" for kind in losses)
    return "\n".join(
        [
            f"The LSTM starts from\n{kinds}",
            f"\nTest loss in nats per image{', mean over the seeds' * several}",
            table({k: [f"{cell:.2f}" for cell in mean] for k, mean in means.items()}),
            "\nDifference to zeros, paired by seed"
            + ", mean \u00b1 half of its 95 % interval (Student's t)" * several,
            table({k: signed(v) for k, v in differences(totals, ZEROS).items()}),
            f"\n{findings({kind: values[:, -1] for kind, values in totals.items()})}",
        ]
    )


def with_total(losses):
    """Returns the losses with a further column, the sum over the rows."""
    return {
        kind: np.column_stack([values, values.sum(axis=1)])
        for kind, values in losses.items()
    }


def table(columns):
    """Returns a table as text, with a line for each row of an image and for all.

    Args:
        columns: Dict from the name of a column to its `SIDE + 1` cells, as text.
    """
    names = {"row": [*map(str, range(1, SIDE + 1)), "image"]}
    aligned = []
    for name, cells in (names | columns).items():
        width = max(map(len, [name, *cells]))
        align = str.ljust if name in names else str.rjust
        aligned.append([align(cell, width) for cell in [name, *cells]])
    return "\n".join(map("  ".join, zip(*aligned, strict=True)))


def signed(values):
    """Returns the mean of differences as text, with half of the 95 % interval.

    Args:
        values: An array `(seeds, column)`.
    """
    return [
        f"{mean:+.2f}" + ("" if np.isnan(half) else f" \u00b1 {half:.2f}")
        for mean, half in zip(*interval(values), strict=True)
    ]


def findings(totals):
    """Returns sentences about the loss per image, according to the intervals.

    Args:
        totals: Dict from the kind to the loss in nats per image, an array `(seeds,)`.
    """
    if len(totals[ZEROS]) == 1:
        return "One seed tells nothing about the next: there are no intervals."
    kinds = {-1: [], 1: [], 0: []}
    for kind, values in differences(totals, ZEROS).items():
        kinds[significant_sign(values)].append(kind)
    sentences = {
        -1: "Loss lower than with zeros",
        1: "Loss higher than with zeros",
        0: "No significant difference to zeros",
    }
    lines = [
        f"{sentence}: {', '.join(kinds[sign])}."
        for sign, sentence in sentences.items()
        if kinds[sign]
    ]
    gap = totals[DIGIT_INPUT] - totals[CONDITIONAL]
    mean, half = interval(gap)
    verdict = {-1: "better than", 1: "worse than", 0: "as well as"}
    lines.append(
        f"The digit as an input at every row does {verdict[significant_sign(gap)]} "
        f"{CONDITIONAL}: loss {mean:+.2f} \u00b1 {half:.2f} nats per image."
    )
    return "\n".join(lines)
