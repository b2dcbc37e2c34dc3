"""The picture of the demo: drawn digits, walks between them, and the losses."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.demo.writer import CLASS_INPUT, CONDITIONAL, LEVELS, SIDE, ZEROS
from benchmarks.intervals import differences, interval

# The colour (of Okabe and Ito's) and the marker.
STYLES = {
    ZEROS: ("k", "s"),
    "fixed": ("#E69F00", "v"),
    "sampled": ("#009E73", "^"),
    "trainable": ("#56B4E9", "D"),
    CONDITIONAL: ("#0072B2", "o"),
    CLASS_INPUT: ("#D55E00", "X"),
}
CELL = SIDE + 1  # an image and the gap to the next, in pixels of images
SIZES = {"font.size": 16, "axes.titlesize": 18, "legend.fontsize": 15}


def save_picture(path, losses, digits, walks):
    """Draws the digits, the walks and the losses, 1,600 pixels wide.

    Args:
        path: Path of the PNG file.
        losses: Dict from the kind to the loss in nats per image, an array
            `(seeds, row)`.
        digits: Drawn digits, an array `(line, class, row, column)`.
        walks: Dict from the first and last class to an array `(step, row, column)`.
    """
    with mpl.rc_context(SIZES):
        fig = Figure(figsize=(16, 8.6), layout="constrained")
        fig.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        drawn, measured = fig.subfigures(1, 2, width_ratios=[9, 7])
        top, bottom = drawn.subplots(2, 1, height_ratios=[len(digits), len(walks)])
        draw_digits(top, digits)
        draw_walks(bottom, walks)
        draw_losses(measured, losses)
        fig.savefig(path, dpi=100)


def draw_digits(ax, digits):
    """Draws a grid with a column for each class, and a line for each set of numbers."""
    show(ax, digits)
    ax.set_title("One LSTM, ten starts: in a row, only the initial state differs")
    ax.set_xlabel("digit whose initial state it starts from")
    ax.set_xticks(middles(digits.shape[1]), range(digits.shape[1]))
    ax.set_ylabel("random numbers")
    ax.set_yticks(middles(len(digits)), range(1, len(digits) + 1))


def draw_walks(ax, walks):
    """Draws a line for each walk from one initial state to another."""
    steps = np.stack(list(walks.values()))
    show(ax, steps)
    ax.set_title("Between two starts, with the random numbers of row 1")
    every = slice(None, None, 3)
    shares = np.linspace(0, 100, steps.shape[1])[every]
    ticks = middles(steps.shape[1])[every]
    ax.set_xticks(ticks, [f"{share:.0f} %" for share in shares])
    ax.set_xlabel("share of the second start in the initial state")
    names = [f"{first} \u2192 {last}" for first, last in walks]
    ax.set_yticks(middles(len(walks)), names)


def middles(count):
    """Returns the positions of the middles of `count` images."""
    return CELL * np.arange(count) + (SIDE - 1) / 2


def show(ax, images):
    """Draws a grid `(line, column, row of pixels, pixel)` of images."""
    padding = [(0, 0), (0, 0), (0, 1), (0, 1)]
    lines, columns = images.shape[:2]
    tiled = np.pad(images, padding).transpose(0, 2, 1, 3)
    tiled = tiled.reshape(lines * CELL, columns * CELL)[:-1, :-1]
    ax.imshow(tiled, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def draw_losses(fig, losses):
    """Draws the loss of each row of pixels, and below it the difference to zeros."""
    above, below = fig.subplots(2, 1, sharex=True)
    rows = np.arange(1, SIDE + 1)
    changes = differences(losses, ZEROS)
    for place, (kind, values) in enumerate(losses.items()):
        color, marker = STYLES[kind]
        style = {"color": color, "marker": marker, "markersize": 8, "linewidth": 1}
        # Put the markers side by side: markers of similar kinds would overlap.
        shifted = rows + 0.09 * (place - (len(losses) - 1) / 2)
        above.plot(shifted, values.mean(axis=0), label=kind, **style)
        if kind in changes:
            mean, half = interval(changes[kind])
            below.errorbar(shifted, mean, yerr=half, **style)
    below.axhline(0, color=STYLES[ZEROS][0], linewidth=1)
    above.set_title("Loss on test images, by row of pixels")
    above.set_ylabel("loss [nats per image]")
    below.set_title("Difference to zeros, with 95 % intervals")
    below.set_ylabel("difference [nats per image]")
    below.set_xlabel("row of pixels, from the top")
    below.set_xticks(rows)
    for ax in (above, below):
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    fig.legend(loc="outside lower center", ncols=3)
