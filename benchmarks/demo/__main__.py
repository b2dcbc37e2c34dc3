"""One small LSTM writes ten digits, which differ only in its initial state.

It trains the same model on the handwritten digits of scikit-learn, once for each kind
of initial state and each seed, and compares the loss on test images, row by row. One
kind is the alternative without an initial state: the class is an input at every row.
Then it draws digits from the initial state of each class, with the same random numbers
for all ten, and from states between two initial states.
"""

import time

import keras
import numpy as np
from tqdm import tqdm

from benchmarks.command import add_output, make_parser, positive
from benchmarks.demo.picture import save_picture
from benchmarks.demo.report import report
from benchmarks.demo.writer import (
    CLASSES,
    CONDITIONAL,
    KINDS,
    SIDE,
    TEMPERATURE,
    class_states,
    draw,
    loss_by_row,
    split,
    train,
    walk,
)

FULL = {"units": 64, "epochs": 16, "seeds": 5}
QUICK = {"units": 32, "epochs": 3, "seeds": 2}
WALKS = ((3, 8), (1, 7))
LINES = 6  # of drawn digits, each with its own random numbers


def parse_args(argv):
    """Returns the options. Exits with a message if one is wrong."""
    parser = make_parser("demo", __doc__)
    meanings = {
        "units": "units of the LSTM",
        "epochs": "epochs of each training",
        "seeds": "trainings of each kind, each with its own split of the images",
    }
    for name, meaning in meanings.items():
        defaults = f"(default: {FULL[name]}, with --quick {QUICK[name]})"
        parser.add_argument(f"--{name}", type=positive, help=f"{meaning} {defaults}")
    parser.add_argument("--quick", action="store_true", help="a small run, to test it")
    add_output(parser, "digits.png")
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def train_all(seeds, units, epochs):
    """Returns the losses of all kinds, and drawings of the first conditional writer.

    Returns:
        Dict from the kind to the test loss in nats per image, an array
        `(seeds, row)`, and the result of `drawings`.
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
    column)`. All digits of a line share its random numbers. The steps of a walk share
    the random numbers of the first line: the ends of a walk are digits of that line.
    """
    states = class_states(writer)
    # Draw all images in one batch: the time depends on the number of calls.
    lines = [states] * LINES + [walk(states, *ends) for ends in WALKS]
    # This seed has the most legible digits of three that were tried.
    chances = np.random.default_rng(1).random((LINES, 1, SIDE, SIDE))
    chances = np.concatenate([chances, chances[[0] * len(WALKS)]])
    images = draw(
        writer,
        [np.concatenate(each) for each in zip(*lines, strict=True)],
        np.tile(chances, (1, CLASSES, 1, 1)).reshape(-1, SIDE, SIDE),
    ).reshape(-1, CLASSES, SIDE, SIDE)
    return images[:LINES], dict(zip(WALKS, images[LINES:], strict=True))


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
    training_images, test_images = (len(images) for images, _ in split(0))
    print(
        f"\nHandwritten digits, {training_images:,} to train on and {test_images} for "
        f"the test. Units {args.units}, epochs {args.epochs}, seeds {args.seeds}."
    )
    print(report(losses))
    print(
        f"Picture: {args.output}, with digits of the first {CONDITIONAL} model, drawn "
        f"at temperature {TEMPERATURE}.\nIt took {time.perf_counter() - begin:.0f} s."
    )
    return losses


if __name__ == "__main__":
    main()
