"""The picture: the speedup over the LSTM for each shape."""

import numpy as np
from matplotlib.figure import Figure

from contenders import (
    CONTROL,
    DEFAULT,
    EXPLICIT,
    FIT,
    FUSED,
    INFERENCE,
    TORCH,
    TORCH_LOOP,
    TRAINING,
    Shape,
)
from experiments import LSTM_OVER

# The place in a row, the colour (of Okabe and Ito's), the marker, and its filling
# where it is not the colour.
STYLES = {
    CONTROL: (0, "0.5", "s", "w"),
    EXPLICIT: (1, "k", "s", None),
    "fixed": (2, "#E69F00", "o", "w"),
    "sampled": (3, "#009E73", "o", "w"),
    "trainable": (4, "#0072B2", "o", "w"),
    FUSED: (5, "#D55E00", "o", None),
    DEFAULT: (6, "#0072B2", "o", None),
    TORCH: (7, "#CC79A7", "D", None),
    TORCH_LOOP: (7, "#CC79A7", "D", "w"),
}
PLACES = 8
TICKS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50]


def save_picture(path, results):
    """Draws one panel for each of the main modes."""
    modes = [str(mode) for mode in (INFERENCE, TRAINING, FIT)]
    cases = [case for case in results["cases"] if case["mode"] in modes]
    shown = [r for case in cases for r in case["ratios"][LSTM_OVER].values()]
    limits = 0.93 * min(r["low"] for r in shown), 1.07 * max(r["high"] for r in shown)
    ticks = [t for t in TICKS if limits[0] < t < limits[1]]
    fig = Figure(figsize=(14, 10), layout="constrained")
    handles = {}
    for ax, mode in zip(
        fig.subplots(1, 3, sharex=True, sharey=True), modes, strict=True
    ):
        handles |= draw_panel(ax, [case for case in cases if case["mode"] == mode])
        ax.set_title(mode)
    # The panels share their axes, so that one sets them for all.
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(*limits)
    fig.axes[0].set_ylabel("batch x time x features x units")
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    fig.suptitle(title(results), fontsize="medium")
    fig.savefig(path, dpi=120)


def draw_panel(ax, cases):
    """Draws the cases of one mode, and returns what the legend is to show of them."""
    rows = np.arange(len(cases))
    handles = {}
    for name, (place, color, marker, face) in STYLES.items():
        ratios = [case["ratios"][LSTM_OVER].get(name) for case in cases]
        if None in ratios:
            continue
        median, low, high = (
            np.array([r[key] for r in ratios]) for key in ("median", "low", "high")
        )
        handles[name] = ax.errorbar(
            median,
            rows + 0.8 * ((place + 0.5) / PLACES - 0.5),
            xerr=np.maximum([median - low, high - median], 0),
            color=color,
            marker=marker,
            markerfacecolor=face or color,
            markersize=6,
            linestyle="none",
        )
    for row in rows[1:]:
        ax.axhline(row - 0.5, color="0.85", linewidth=0.8)
    ax.axvline(1, color="k", linewidth=1)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.set_xlabel("speedup over keras.layers.LSTM")
    ax.set_yticks(rows, [str(Shape(*case["shape"])) for case in cases])
    ax.set_ylim(len(cases) - 0.5, -0.5)
    return handles


def title(results):
    """Returns what is drawn, and where it was measured."""
    machine = results["machine"]
    return (
        f"Time of keras.layers.LSTM / time of the contender: median over up to "
        f"{results['rounds']} rounds, bars from the 10th to the 90th percentile\n"
        f"{results['device']}; {machine['cores']} cores, {machine['cpu']}; TensorFlow "
        f"{machine['tensorflow']}, Keras {machine['keras']}, torch {machine['torch']}"
    )
