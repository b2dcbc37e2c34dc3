"""Next-character prediction from a zero, fixed, sampled and trainable initial state.

Trains the same small model on real text (by default the source of the Python
standard library) once for each kind of initial state and seed, and compares the
loss on held-out text timestep by timestep. The sequences are short and each starts
afresh, since that is where an initial state matters. Within a seed, all kinds share
the initial weights, the sequences and their order, so that their losses are paired.
"""

import argparse
import os
import platform
import random
import sys
import sysconfig
import time
from pathlib import Path

# Before the import, or TensorFlow has already reported every GPU it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib.figure import Figure

from arguments import picture_path, positive
from keras_init_lstm import Fixed, InitStateLSTM, Sampled, Trainable

STDDEV = 0.1
KINDS = {
    "zero": "zeros, as in keras.layers.LSTM",
    "fixed": f"drawn once for each seed from N(0, {STDDEV}\u00b2), then kept",
    "sampled": f"drawn anew from N(0, {STDDEV}\u00b2) in training, its mean 0 in test",
    "trainable": "learned with the other weights, from zeros on",
}
COLORS = {"zero": "k", "fixed": "#E69F00", "sampled": "#009E73", "trainable": "#0072B2"}

TRAIN_SEQUENCES = 40_960
TEST_SEQUENCES = 16_384
BATCH_SIZE = 64
EMBEDDING = 32
VOCABULARY = 128  # ASCII fits; what is rarer in the training text shares id 0.

# Generated tables and tests are not what one would call text, and what pip has
# installed differs from machine to machine.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings"}


def parse_args(argv):
    """Returns the options and the text they name, or exits with what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options = {
        "text": (
            Path,
            Path(sysconfig.get_paths()["stdlib"]),
            "a text file (the last 20 %% of its characters are for the test) or a "
            "folder with *.py and *.txt files (every fifth file is for the test)",
        ),
        "length": (positive, 16, "timesteps of a sequence"),
        "units": (positive, 128, "units of the LSTM"),
        "epochs": (positive, 2, "epochs of each training"),
        "learning-rate": (float, 1e-2, "learning rate of Adam"),
        "seeds": (positive, 3, "number of trainings of each kind"),
        "output": (Path, Path("out/text.png"), "PNG file, or folder for text.png"),
    }
    for name, (kind, default, text) in options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    args = parser.parse_args(argv)
    args.output = picture_path(parser, args.output, "text.png")
    try:
        args.files, args.train_text, args.test_text = read_text(args.text)
    except OSError as error:
        parser.error(str(error))
    # A sequence and the character after it.
    if min(len(args.train_text), len(args.test_text)) < args.length + 1:
        parser.error(
            f"--text {args.text} is too short: {len(args.train_text):,} characters for "
            f"training and {len(args.test_text):,} for the test, where sequences of "
            f"--length {args.length} need at least {args.length + 1} in each"
        )
    return args


def read_text(path):
    """Returns the number of files and the characters of the train and test split."""

    def read(file):
        return file.read_text(encoding="utf-8", errors="replace")

    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in (".py", ".txt")
            and file.is_file()
            and not SKIPPED_FOLDERS & set(file.relative_to(path).parts)
        )
        # Neighbours in the alphabet are often of one package, hence the shuffle.
        random.Random(0).shuffle(files)
        test = files[::5] if len(files) > 1 else []
        train = [file for file in files if file not in set(test)]
        return len(files), "\n".join(map(read, train)), "\n".join(map(read, test))
    text = read(path)
    split = len(text) * 4 // 5
    return 1, text[:split], text[split:]


def encode(train_text, test_text):
    """Returns both texts as arrays of integers below `VOCABULARY`."""
    train, test = (
        np.frombuffer(text.encode("utf-32-le"), "<u4")
        for text in (train_text, test_text)
    )
    characters, counts = np.unique(train, return_counts=True)
    ids = np.zeros(0x110000, "int32")
    ids[characters[np.argsort(-counts)[: VOCABULARY - 1]]] = np.arange(
        1, min(VOCABULARY, len(characters) + 1)
    )
    return ids[train], ids[test]


def cut(text, length, count, seed):
    """Returns inputs and targets `(count, length)` from random positions of `text`."""
    positions = len(text) - length
    rng = np.random.default_rng(seed)
    starts = rng.choice(positions, min(count, positions), replace=False)
    sequences = text[starts[:, None] + np.arange(length + 1)]
    return sequences[:, :-1], sequences[:, 1:]


def build_model(kind, units, learning_rate, seed):
    """Returns a compiled model that starts each sequence from the kind of state."""
    # The seed of every draw of an initial state is given, so that none is taken from
    # the global generator: the other weights are the same for each kind.
    initial_state = {
        "zero": "zeros",
        "fixed": [
            Fixed(keras.initializers.RandomNormal(stddev=STDDEV, seed=2 * seed + i))
            for i in range(2)
        ],
        "sampled": Sampled(mean=0.0, stddev=STDDEV, seed=seed),
        "trainable": Trainable(),
    }[kind]
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Embedding(VOCABULARY, EMBEDDING),
            InitStateLSTM(units, initial_state=initial_state, return_sequences=True),
            keras.layers.Dense(VOCABULARY),
        ]
    )
    model.compile(
        # The average over the last steps: far less noise from seed to seed.
        optimizer=keras.optimizers.Adam(learning_rate, use_ema=True, ema_momentum=0.99),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def loss_per_timestep(model, inputs, targets):
    """Returns the loss `(length,)` in nats per character, the mean over sequences."""
    logits = model.predict(inputs, batch_size=1024, verbose=0)
    losses = keras.losses.sparse_categorical_crossentropy(
        targets, logits, from_logits=True
    )
    return np.asarray(losses, "float64").mean(axis=0)


def relative(losses):
    """Returns the differences to zero in percent, paired by seed."""
    zero = losses["zero"]
    return {k: 100 * (v / zero - 1) for k, v in losses.items() if k != "zero"}


def spread(values, decimals):
    """Returns mean and standard deviation over the seeds as text."""
    mean = f"{values.mean():.{decimals}f}"
    if len(values) == 1:
        return mean
    return f"{mean} \u00b1 {values.std(ddof=1):.{decimals}f}"


def table(columns, rows, decimals):
    """Returns a table as text; a row of `rows` is an array `(seeds, columns)`."""
    lines = [f"{'state':<10}" + "".join(f"{name:>14}" for name in columns)]
    for kind, values in rows.items():
        cells = "".join(f"{spread(column, decimals):>14}" for column in values.T)
        lines.append(f"{kind:<10}{cells}")
    return "\n".join(lines)


def finding(losses):
    """Returns in a sentence which kind did best, and how the seeds agree on it.

    Args:
        losses: Dict from the kind to the loss over all steps, an array `(seeds,)`.
    """
    best = min(losses, key=lambda kind: losses[kind].mean())
    if best == "zero":
        return "No initial state had a lower loss over all steps than zero."
    change = relative(losses)[best]
    sentence = (
        f"Lowest loss over all steps: {best}, {spread(change, 2)} % relative to zero, "
        f"lower in {(change < 0).sum()} of {len(change)} seeds"
    )
    if len(change) > 1:
        covers = abs(change.mean()) <= change.std(ddof=1)
        sentence += f"; mean \u00b1 sd {'covers' if covers else 'does not cover'} zero"
    return sentence + "."


def save_picture(path, losses, title):
    """Draws the loss, and its difference to zero, at each timestep."""
    fig = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = fig.subplots(1, 2)
    for ax, rows in ((left, losses), (right, relative(losses))):
        for kind, values in rows.items():
            steps = np.arange(1, values.shape[1] + 1)
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1)
            ax.plot(steps, mean, ".-", color=COLORS[kind], label=kind)
            ax.fill_between(
                steps, mean - sd, mean + sd, color=COLORS[kind], alpha=0.2, linewidth=0
            )
        ax.set_xlabel("timestep")
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.legend(title="initial state")
    left.set_ylabel("test loss [nats per character]")
    right.set_ylabel("difference to zero, paired by seed [%]")
    right.axhline(0, color=COLORS["zero"], linewidth=1)
    fig.suptitle(title, fontsize="medium")
    fig.savefig(path, dpi=150)


def main(argv=None):
    """Runs the comparison.

    Returns:
        Dict from the kind of initial state to the test loss in nats per character,
        an array `(seeds, length)`.
    """
    args = parse_args(argv)
    start = time.perf_counter()
    train, test = encode(args.train_text, args.test_text)
    test_data = cut(test, args.length, TEST_SEQUENCES, seed=0)
    losses = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        train_data = cut(train, args.length, TRAIN_SEQUENCES, seed=seed + 1)
        for run, kind in enumerate(KINDS, start=seed * len(KINDS) + 1):
            print(f"[{run}/{args.seeds * len(KINDS)}] seed {seed}, {kind}", flush=True)
            model = build_model(kind, args.units, args.learning_rate, seed)
            model.fit(
                *train_data,
                batch_size=BATCH_SIZE,
                epochs=args.epochs,
                # Into a file, the progress bar would go as thousands of updates.
                verbose=1 if sys.stdout.isatty() else 2,
            )
            losses[kind].append(loss_per_timestep(model, *test_data))
            keras.backend.clear_session()
    losses = {kind: np.stack(values) for kind, values in losses.items()}

    title = (
        f"Trained on {len(train_data[0]):,} sequences from {len(train):,} characters, "
        f"tested on {len(test_data[0]):,} from {len(test):,}\n"
        f"({args.files} files, read by Python {platform.python_version()}). "
        f"Length {args.length}, units {args.units}, epochs {args.epochs}, "
        f"learning rate {args.learning_rate:g}, seeds {args.seeds}."
    )
    steps = [step for step in (1, 2, 4) if step < args.length] + [args.length]
    columns = [f"step {step}" for step in steps] + ["all"]
    summary = {
        kind: np.column_stack([values[:, np.array(steps) - 1], values.mean(axis=1)])
        for kind, values in losses.items()
    }
    spread_is = "mean \u00b1 sd over the seeds" if args.seeds > 1 else "one seed"
    print(f"\n{title}\n" + "\n".join(f"  {k:<11}{v}" for k, v in KINDS.items()))
    print(f"\nTest loss in nats per character, {spread_is}")
    print(table(columns, summary, decimals=3))
    print(f"\nDifference to zero in percent, paired by seed, {spread_is}")
    print(table(columns, relative(summary), decimals=2))
    print(f"\n{finding({kind: values[:, -1] for kind, values in summary.items()})}")
    save_picture(args.output, losses, title)
    print(f"It took {time.perf_counter() - start:.0f} s. Picture: {args.output}")
    return losses


if __name__ == "__main__":
    main()
