"""The picture of the demo: drawn digits, walks between them, and the differences."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.demo.writer import CONDITIONAL, DIGIT_INPUT, LEVELS, SIDE, ZEROS
from benchmarks.intervals import differences, interval

# The label, the colour (of Okabe and Ito's) and the marker of each drawn kind.
SERIES = {
    "trainable": ("one learned initial state", "#D55E00", "D"),
    CONDITIONAL: ("digit as initial state", "#0072B2", "o"),
    DIGIT_INPUT: ("digit as input", "#E69F00", "X"),
}
CELL = SIDE + 1  # an image and the gap to the next, in pixels of images
SIZES = {"font.size": 16, "axes.titlesize": 18, "legend.fontsize": 15}


def save_picture(path, losses, digits, walks):
    """Draws the digits, the walks and the differences, 1,600 pixels wide.

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
        draw_differences(measured, losses)
        fig.savefig(path, dpi=100)


def draw_digits(ax, digits):
    """Draws a grid with a column for each class, and a line for each set of numbers."""
    show(ax, digits)
    ax.set_title("One LSTM: in a row, only the initial state differs")
    ax.set_xlabel("digit whose initial state the LSTM has")
    ax.set_xticks(middles(digits.shape[1]), range(digits.shape[1]))
    ax.set_ylabel("random numbers")
    ax.set_yticks(middles(len(digits)), range(1, len(digits) + 1))


def draw_walks(ax, walks):
    """Draws a line for each walk from one initial state to another."""
    steps = np.stack(list(walks.values()))
    show(ax, steps)
    ax.set_title("Between two initial states, with the random numbers of row 1")
    every = slice(None, None, 3)
    shares = np.linspace(0, 100, steps.shape[1])[every]
    ticks = middles(steps.shape[1])[every]
    ax.set_xticks(ticks, [f"{share:.0f} %" for share in shares])
    ax.set_xlabel("share of the second digit in the initial state")
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


def draw_differences(fig, losses):
    """Draws the difference of the loss to zeros at each row of pixels."""
    ax = fig.subplots()
    rows = np.arange(1, SIDE + 1)
    changes = differences(losses, ZEROS)
    for kind, (label, color, marker) in SERIES.items():
        if kind in changes:
            mean, half = interval(changes[kind])
            style = {"color": color, "marker": marker, "markersize": 9}
            ax.plot(rows, mean, label=label, **style)
            ax.fill_between(rows, mean - half, mean + half, color=color, alpha=0.2)
    ax.axhline(0, color="k", linewidth=1)
    ax.set_title("Knowing the digit helps most in the first rows")
    ax.set_ylabel("test loss, difference to zeros [nats per image]")
    ax.set_xlabel("row of pixels, from the top (bands: 95 % intervals)")
    ax.set_xticks(rows)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    ax.legend(loc="lower right")
