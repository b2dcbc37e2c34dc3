"""Three pictures of the speedup over Keras's layers, shape by shape."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.speed.axes import compare_with_one, set_log_ticks
from benchmarks.speed.contenders import (
    CELLS,
    CONTROL,
    DEFAULT,
    EXPLICIT,
    FIT,
    INFERENCE,
    KINDS,
    TORCH,
    TORCH_LOOP,
    TRAINING,
    Shape,
)
from benchmarks.speed.measurements import KERAS_OVER

TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
NARROW_TICKS = [0.3, 0.5, 0.7, 1, 1.5, 2]
OURS, OF_TORCH = ("ours", "#0072B2", "o"), ("PyTorch", "#CC79A7", "D")
FIXED, SAMPLED, TRAINABLE = KINDS
# The name in the legend, the colour (of Okabe and Ito's) and the marker.
STYLES = {
    DEFAULT: OURS,
    TORCH: OF_TORCH,
    TORCH_LOOP: OF_TORCH,
    CONTROL: ("Keras's layer again", "0.6", "s"),
    EXPLICIT: ("two weights, tiled by hand", "k", "^"),
    FIXED: (FIXED, "#E69F00", "o"),
    SAMPLED: (SAMPLED, "#009E73", "D"),
    TRAINABLE: (TRAINABLE, "#0072B2", "v"),
}


@dataclass(frozen=True)
class Picture:
    """What a picture shows: a column for each mode, a row for each case."""

    title: str
    columns: tuple  # Of modes of the LSTM.
    names: tuple  # Of contenders.
    cells: tuple = ("LSTM",)


# By the end of the name of the file.
PICTURES = {
    "": Picture(
        "To the right of the line: faster than keras.layers.LSTM",
        (INFERENCE, TRAINING, FIT),
        (DEFAULT, TORCH, TORCH_LOOP),
    ),
    "_states": Picture(
        "What an initial state costs where Keras's loop runs (left of the line: time)",
        (INFERENCE, TRAINING),
        (CONTROL, EXPLICIT, *KINDS),
    ),
    "_layers": Picture(
        "The other layers. To the right of the line: faster than Keras's layer",
        (INFERENCE, TRAINING),
        (DEFAULT, TORCH),
        tuple(CELLS)[1:],
    ),
}


def save_pictures(path, results):
    """Saves the pictures for which there are results, and returns `{name: title}`."""
    saved = {}
    for end, picture in PICTURES.items():
        columns = [rows_of(picture, mode, results) for mode in picture.columns]
        if any(columns):
            file = path.with_stem(path.stem + end)
            with mpl.rc_context({"font.size": 12}):
                save_picture(file, picture, columns)
            saved[file.name] = picture.title
    return saved


def rows_of(picture, mode, results):
    """Returns the ratios of a column, `{label: {contender: ratio}}`."""
    by_mode = {}
    for case in results["cases"]:
        by_mode.setdefault(case["mode"], []).append(case)
    rows = {}
    for cell in picture.cells:
        for case in by_mode.get(str(mode._replace(cell=cell)), []):
            label = str(Shape(*case["shape"])).replace("x", " x ")
            label = label if cell == "LSTM" else f"{cell}\n{label}"
            ratios = case["ratios"][KERAS_OVER]
            shown = {name: ratios[name] for name in picture.names if name in ratios}
            if shown:
                rows[label] = shown
    return rows


def save_picture(path, picture, columns):
    """Draws the columns next to each other, and saves them."""
    labels = list(dict.fromkeys(label for rows in columns for label in rows))
    of_points, of_label = 0.12 * len(picture.names), 0.25 * len(labels[0].split("\n"))
    height = 1.7 + len(labels) * max(of_points, of_label, 0.4)
    fig = Figure(figsize=(11, height), layout="constrained")
    axes = fig.subplots(1, len(columns), sharex=True, sharey=True)
    handles = {}
    for ax, mode, rows in zip(axes, picture.columns, columns, strict=True):
        handles |= draw(ax, rows, labels)
        compare_with_one(ax)
        for row in range(1, len(labels)):
            ax.axhline(row - 0.5, color="0.85", linewidth=0.8)
        ax.set_title({"fit": "a step of fit"}.get(mode.action, mode.action))
        ax.set_xlabel("times as fast (log scale)")
    shown = [
        ratio for rows in columns for row in rows.values() for ratio in row.values()
    ]
    limits = 0.9 * min(r["low"] for r in shown), 1.1 * max(r["high"] for r in shown)
    ticks = TICKS if limits[1] > 3 else NARROW_TICKS
    set_log_ticks(ax, [tick for tick in ticks if limits[0] < tick < limits[1]])
    ax.set_xlim(*limits)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    axes[0].set_ylabel("batch x timesteps x features x units")
    fig.suptitle(picture.title)
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    fig.savefig(path, dpi=90)


def draw(ax, rows, labels):
    """Draws a column, and returns the handles of the legend by name."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    handles = {}
    for place, name in enumerate(names):
        label, color, marker = STYLES[name]
        found = {labels.index(k): row[name] for k, row in rows.items() if name in row}
        median, low, high = (
            np.array([ratio[key] for ratio in found.values()])
            for key in ("median", "low", "high")
        )
        # Below each other, since they may be at the same place.
        offset = 0.8 * ((place + 0.5) / len(names) - 0.5)
        handles[label] = ax.errorbar(
            median,
            np.array(list(found)) + offset,
            xerr=np.maximum([median - low, high - median], 0),
            color=color,
            marker=marker,
            markersize=6,
            linestyle="none",
        )
    return handles
