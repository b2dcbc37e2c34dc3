"""The pictures: the speedup over Keras's layer for each shape, in full and in small."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.speed.axes import compare_with_one, set_log_ticks
from benchmarks.speed.contenders import (
    CONTROL,
    DEFAULT,
    EXPLICIT,
    FAMILY_MODES,
    FIT,
    FUSED,
    INFERENCE,
    TORCH,
    TORCH_LOOP,
    TRAINING,
    Shape,
)
from benchmarks.speed.measurements import KERAS_OVER

# The place in a row, the colour (of Okabe and Ito's), the marker, and the colour of its
# face where it differs.
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
    """Draws a panel for each of the main modes, the other layers and many lengths."""
    panels = panels_of(results)
    shown = [
        r for _, rows in panels for by_name in rows.values() for r in by_name.values()
    ]
    limits = 0.93 * min(r["low"] for r in shown), 1.07 * max(r["high"] for r in shown)
    ticks = [t for t in TICKS if limits[0] < t < limits[1]]
    lines = -(-len(panels) // 3)
    fig = Figure(figsize=(14, 2 + 8 * lines), layout="constrained")
    axes = fig.subplots(lines, 3, sharex=True, squeeze=False).flat
    handles, labels = {}, None
    for ax, (title, rows) in zip(axes, panels, strict=False):
        handles |= draw_panel(ax, rows)
        ax.set_title(title)
        ax.tick_params(labelleft=list(rows) != labels)  # once for equal neighbours
        labels = list(rows)
    for unused in axes[len(panels) :]:
        unused.remove()
    # The panels share this axis, so that one sets it for all.
    set_log_ticks(ax, ticks)
    ax.set_xlim(*limits)
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    fig.suptitle(heading(results), fontsize="medium")
    fig.savefig(path, dpi=100)


def save_summary(path, results):
    """Draws only the default and PyTorch, at inference and in `fit`."""
    panels = dict(panels_of(results))
    shown = {
        "a call in a tf.function": panels[INFERENCE.action],
        "a step of fit": panels[FIT.action],
    }
    names = {DEFAULT: "InitStateLSTM", TORCH: "PyTorch", TORCH_LOOP: "PyTorch"}
    # Below each other, since both may be at the same place.
    below = {DEFAULT: -0.15, TORCH: 0.15, TORCH_LOOP: 0.15}
    with mpl.rc_context({"font.size": 13}):
        fig = Figure(figsize=(10, 1.2 + 0.36 * len(shown["a step of fit"])))
        fig.set_layout_engine("constrained")
        axes = fig.subplots(1, 2, sharex=True, sharey=True)
        for ax, (title, panel) in zip(axes, shown.items(), strict=True):
            for name in [name for name in names if name in next(iter(panel.values()))]:
                _, color, marker, _ = STYLES[name]
                medians = [by_name[name]["median"] for by_name in panel.values()]
                at = np.arange(len(panel)) + below[name]
                ax.plot(medians, at, marker, color=color, ms=8, label=names[name])
            compare_with_one(ax)
            ax.set_title(title)
            ax.set_xlabel("times as fast as keras.layers.LSTM")
        ax.set_xscale("log")  # The limits depend on it.
        highest = 1.2 * ax.get_xlim()[1]
        set_log_ticks(ax, [t for t in (0.5, 1, 2, 5, 10) if t < highest])
        axes[0].set_yticks(range(len(panel)), [k.replace("x", " x ") for k in panel])
        axes[0].set_ylabel("batch x timesteps x\nfeatures x units")
        axes[0].invert_yaxis()
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        fig.savefig(path, dpi=90)


def panels_of(results):
    """Returns `(title, {label: {contender: ratio}})` of each panel."""
    modes = (INFERENCE, TRAINING, FIT, *FAMILY_MODES)
    panels = {}
    for mode in modes:
        lstm = mode.cell == "LSTM"
        title = mode.action if lstm else f"{mode.action}, the other layers"
        for case in results["cases"]:
            if case["mode"] == str(mode):
                label = ("" if lstm else f"{mode.cell}\n") + str(Shape(*case["shape"]))
                panels.setdefault(title, {})[label] = case["ratios"][KERAS_OVER]
    for what, found in results.get("bucketed_fit", {}).items():
        if "ratios" in found:
            panel = panels.setdefault("fit in many lengths", {})
            panel[what] = found["ratios"][KERAS_OVER]
    return list(panels.items())


def draw_panel(ax, panel):
    """Draws the rows of a panel, and returns the handles of the legend by name."""
    handles = {}
    for name, (place, color, marker, face) in STYLES.items():
        found = {k: r[name] for k, r in enumerate(panel.values()) if name in r}
        if not found:
            continue
        median, low, high = (
            np.array([r[key] for r in found.values()])
            for key in ("median", "low", "high")
        )
        handles[name] = ax.errorbar(
            median,
            np.array(list(found)) + 0.8 * ((place + 0.5) / PLACES - 0.5),
            xerr=np.maximum([median - low, high - median], 0),
            color=color,
            marker=marker,
            markerfacecolor=face or color,
            markersize=6,
            linestyle="none",
        )
    rows = np.arange(len(panel))
    for row in rows[1:]:
        ax.axhline(row - 0.5, color="0.85", linewidth=0.8)
    ax.axvline(1, color="k", linewidth=1)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.set_xlabel("speedup over Keras's layer")
    ax.set_yticks(rows, panel)
    ax.set_ylim(len(panel) - 0.5, -0.5)
    return handles


def heading(results):
    """Returns the meaning of the points, and the machine."""
    machine = results["machine"]
    return (
        f"Time of Keras's layer / time of the contender: median over up to "
        f"{results['rounds']} rounds, bars from the 10th to the 90th percentile\n"
        f"{results['device']}; {machine['cores']} cores, {machine['cpu']}; TensorFlow "
        f"{machine['tensorflow']}, Keras {machine['keras']}, torch {machine['torch']}"
    )
