"""Next-character prediction from zeros, fixed, sampled and trainable initial states.

It trains the same small model on real text (by default the source of the Python
standard library) once for each kind of initial state and seed, and compares the
loss on held-out text timestep by timestep. The sequences are short, because an initial
state matters at the first timesteps. The losses are paired: for the same seed, all
kinds have the same initial weights, sequences and order.
"""

import platform
import sys
import sysconfig
import time
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure

from benchmarks.command import add_output, make_parser, positive
from benchmarks.evidence.characters import VOCABULARY, cut, encode, read_text
from benchmarks.initial_states import KINDS, initial_state
from keras_init_lstm import InitStateLSTM

COLORS = {
    "zeros": "k",
    "fixed": "#E69F00",
    "sampled": "#009E73",
    "trainable": "#0072B2",
}

TRAIN_SEQUENCES = 40_960
TEST_SEQUENCES = 16_384
BATCH_SIZE = 64
EMBEDDING = 32


def parse_args(argv):
    """Returns the options and the text. Exits with a message if an option is wrong."""
    parser = make_parser("evidence.text", __doc__)
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
    }
    for name, (kind, default, text) in options.items():
        text += " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    add_output(parser, "text.png")
    args = parser.parse_args(argv)
    try:
        args.files, args.train_text, args.test_text = read_text(args.text)
    except OSError as error:
        parser.error(str(error))
    # Cut sequences and the character after each.
    if min(len(args.train_text), len(args.test_text)) < args.length + 1:
        parser.error(
            f"--text {args.text} is too short: {len(args.train_text):,} characters for "
            f"training and {len(args.test_text):,} for the test, where sequences of "
            f"--length {args.length} need at least {args.length + 1} in each"
        )
    return args


def build_model(kind, units, learning_rate, seed):
    """Returns a compiled model with the kind of initial state."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Embedding(VOCABULARY, EMBEDDING),
            InitStateLSTM(
                units, initial_state=initial_state(kind, seed), return_sequences=True
            ),
            keras.layers.Dense(VOCABULARY),
        ]
    )
    model.compile(
        # Average the weights over the last steps, which reduces the noise of the seeds.
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
    """Returns the differences to zeros in percent, paired by seed."""
    zeros = losses["zeros"]
    return {k: 100 * (v / zeros - 1) for k, v in losses.items() if k != "zeros"}


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
    """Returns a sentence about the best kind, and the agreement of the seeds.

    Args:
        losses: Dict from the kind to the loss over all steps, an array `(seeds,)`.
    """
    best = min(losses, key=lambda kind: losses[kind].mean())
    if best == "zeros":
        return "No initial state had a lower loss over all steps than zeros."
    change = relative(losses)[best]
    sentence = (
        f"Lowest loss over all steps: {best}, {spread(change, 2)} % relative to zeros, "
        f"lower in {(change < 0).sum()} of {len(change)} seeds"
    )
    if len(change) > 1:
        covers = abs(change.mean()) <= change.std(ddof=1)
        sentence += f"; mean \u00b1 sd {'covers' if covers else 'does not cover'} zero"
    return sentence + "."


def save_picture(path, losses, title):
    """Draws the loss, and its difference to zeros, at each timestep."""
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
    right.set_ylabel("difference to zeros, paired by seed [%]")
    right.axhline(0, color=COLORS["zeros"], linewidth=1)
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
                # A log file would get thousands of updates of the progress bar.
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
    print(f"\nDifference to zeros in percent, paired by seed, {spread_is}")
    print(table(columns, relative(summary), decimals=2))
    print(f"\n{finding({kind: values[:, -1] for kind, values in summary.items()})}")
    save_picture(args.output, losses, title)
    print(f"It took {time.perf_counter() - start:.0f} s. Picture: {args.output}")
    return losses


if __name__ == "__main__":
    main()
