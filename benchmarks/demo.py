"""One small LSTM writes ten digits, which differ only in where it starts.

Trains the same model on the handwritten digits of scikit-learn, once for each kind of
initial state and each seed, and compares the loss on images held out, row by row. What
a user would do without an initial state, the class as an input at every row, is among
them. Then draws digits from the start of each class, with the same random numbers for
all ten, and on the way from one start to another.
"""

import argparse
import os
import time
from pathlib import Path

# Before the import, or TensorFlow has already reported every GPU it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tqdm import tqdm

from arguments import picture_path, positive
from digits import (
    CLASS_INPUT,
    CLASSES,
    CONDITIONAL,
    KINDS,
    SIDE,
    TEMPERATURE,
    ZEROS,
    class_starts,
    draw,
    loss_by_row,
    split,
    train,
    walk,
)
from digits_picture import save_picture
from paired import differences, interval

FULL = {"units": 64, "epochs": 16, "seeds": 5}
QUICK = {"units": 32, "epochs": 3, "seeds": 2}
WALKS = ((3, 8), (1, 7))
LINES = 6  # of drawn digits, each with random numbers of its own


def parse_args(argv):
    """Returns the options, or exits with what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    meanings = {
        "units": "of the LSTM",
        "epochs": "of each training",
        "seeds": "trainings of each kind, each with its own split of the images",
    }
    for name, meaning in meanings.items():
        defaults = f"(default: {FULL[name]}, with --quick {QUICK[name]})"
        add(f"--{name}", type=positive, help=f"{meaning} {defaults}")
    add("--quick", action="store_true", help="small, to see that it runs")
    add(
        "--output",
        type=Path,
        default=Path("out/digits.png"),
        help="PNG file, or folder for digits.png (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.output = picture_path(parser, args.output, "digits.png")
    return args


def train_all(seeds, units, epochs):
    """Returns the losses of all kinds, and what the first conditional writer draws.

    Returns:
        Dict from the kind to the test loss in nats per image, an array
        `(seeds, row)`, and what `drawings` returns.
    """
    losses = {kind: [] for kind in KINDS}
    with tqdm(total=seeds * len(KINDS), unit="training") as bar:
        for seed in range(seeds):
            training_data, test_data = split(seed)
            for kind in KINDS:
                bar.set_description(f"seed {seed}, {kind}")
                writer = train(kind, seed, *training_data, units, epochs)
                losses[kind].append(loss_by_row(writer, *test_data))
                if kind == CONDITIONAL and seed == 0:
                    drawn = drawings(writer)
                keras.backend.clear_session()
                bar.update()
    return {kind: np.stack(values) for kind, values in losses.items()}, drawn


def drawings(writer):
    """Returns drawn digits, and the walks of `WALKS` by their first and last class.

    The digits are an array `(line, class, row, column)`, a walk is one `(step, row,
    column)`. All digits of a line share its random numbers, and so do the steps of a
    walk, with those of the first line: its ends are digits of that line.
    """
    starts = class_starts(writer)
    # All at once, as what it takes is the number of calls.
    lines = [starts] * LINES + [walk(starts, *ends) for ends in WALKS]
    # Of three seeds that were looked at, the one whose digits are easiest to read.
    chances = np.random.default_rng(1).random((LINES, 1, SIDE, SIDE))
    chances = np.concatenate([chances, chances[[0] * len(WALKS)]])
    images = draw(
        writer,
        [np.concatenate(states) for states in zip(*lines, strict=True)],
        np.tile(chances, (1, CLASSES, 1, 1)).reshape(-1, SIDE, SIDE),
    ).reshape(-1, CLASSES, SIDE, SIDE)
    return images[:LINES], dict(zip(WALKS, images[LINES:], strict=True))


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


def told_apart(values):
    """Returns whether the 95 % interval of differences `(seeds,)` leaves out zero."""
    mean, half = interval(values)
    return bool(abs(mean) > half)


def findings(totals):
    """Returns in sentences what the intervals tell of the loss per image.

    Args:
        totals: Dict from the kind to the loss in nats per image, an array `(seeds,)`.
    """
    if len(totals[ZEROS]) == 1:
        return "One seed tells nothing about the next: there are no intervals."
    apart = {"lower": [], "higher": [], "not told apart from": []}
    for kind, values in differences(totals, ZEROS).items():
        direction = "lower" if values.mean() < 0 else "higher"
        apart[direction if told_apart(values) else "not told apart from"].append(kind)
    lines = [
        f"Loss {what}{'' if what.endswith('from') else ' than'} that of zeros: "
        f"{', '.join(kinds)}."
        for what, kinds in apart.items()
        if kinds
    ]
    gap = totals[CLASS_INPUT] - totals[CONDITIONAL]
    mean, half = interval(gap)
    if not told_apart(gap):
        verdict = f"as well as {CONDITIONAL}, as far as these seeds tell"
    else:
        verdict = f"{'worse' if mean > 0 else 'better'} than {CONDITIONAL}"
    lines.append(
        f"The class as an input at every row does {verdict}: loss {mean:+.2f} \u00b1 "
        f"{half:.2f} nats per image."
    )
    return "\n".join(lines)


def main(argv=None):
    """Runs the demo.

    Returns:
        Dict from the kind of initial state to the test loss in nats per image, an
        array `(seeds, row)`.
    """
    args = parse_args(argv)
    begin = time.perf_counter()
    losses, (digits, walks) = train_all(args.seeds, args.units, args.epochs)
    save_picture(args.output, losses, digits, walks)

    trained_on, tested_on = (len(images) for images, _ in split(0))
    several = args.seeds > 1
    print(
        f"\nHandwritten digits, {trained_on:,} to train on and {tested_on} for the "
        f"test. Units {args.units}, epochs {args.epochs}, seeds {args.seeds}.\n"
        "The LSTM starts from"
    )
    print("\n".join(f"  {kind:<12} {meaning}" for kind, meaning in KINDS.items()))
    summary = with_total(losses)
    print(f"\nTest loss in nats per image{', mean over the seeds' * several}")
    means = {kind: values.mean(axis=0) for kind, values in summary.items()}
    print(table({k: [f"{cell:.2f}" for cell in mean] for k, mean in means.items()}))
    print(
        "\nDifference to zeros, paired by seed"
        + ", mean \u00b1 half of its 95 % interval (Student's t)" * several
    )
    print(table({k: signed(v) for k, v in differences(summary, ZEROS).items()}))
    print(f"\n{findings({kind: values[:, -1] for kind, values in summary.items()})}")
    print(
        f"Picture: {args.output}, with digits of the first {CONDITIONAL} model, drawn "
        f"at temperature {TEMPERATURE}.\nIt took {time.perf_counter() - begin:.0f} s."
    )
    return losses


if __name__ == "__main__":
    main()
