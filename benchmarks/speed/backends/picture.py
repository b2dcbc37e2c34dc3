"""A small picture: Keras's layers compared with ours, on each backend."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.speed.axes import compare_with_one, set_log_ticks
from benchmarks.speed.backends.cases import NATIVE
from benchmarks.speed.backends.report import COLUMNS, rows
from benchmarks.speed.contenders import BASELINE
from benchmarks.speed.timing import geometric_mean

# The label, the colour (of Okabe and Ito's) and the marker of the other layers.
STYLES = {
    BASELINE: ("Keras's layer", "#D55E00", "o"),
    NATIVE: ("the backend's own layer", "#0072B2", "D"),
}
TICKS = (0.5, 1, 2, 5, 10, 20, 50)


def save_picture(path, results):
    """Draws a panel for each backend, with a row for each case of an LSTM and a GRU."""
    found = {name: rows(results[name]["cases"]) for name in COLUMNS if name in results}
    labels = list(dict.fromkeys(case for by_case in found.values() for case in by_case))
    labels = [label for label in labels if not label.startswith("SimpleRNN")] or labels
    with mpl.rc_context({"font.size": 12}):
        fig = Figure(figsize=(11, 1.6 + 0.3 * len(labels)), layout="constrained")
        axes = fig.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
        for ax, (name, by_case) in zip(axes, found.items(), strict=True):
            for other, (label, color, marker) in STYLES.items():
                points = [
                    (at, geometric_mean(by_case[case]["ratios"][other]))
                    for at, case in enumerate(labels)
                    if other in by_case.get(case, {}).get("ratios", {})
                ]
                at, means = np.array(points).reshape(-1, 2).T
                ax.plot(means, at, marker, color=color, ms=8, label=label)
            compare_with_one(ax)
            ax.set_title(COLUMNS[name])
            ax.set_xlabel("its time / our time (log scale)")
        ax.set_xscale("log")  # The limits depend on it.
        low, high = ax.get_xlim()
        set_log_ticks(ax, [tick for tick in TICKS if 0.8 * low < tick < 1.2 * high])
        axes[0].set_yticks(range(len(labels)), labels)
        axes[0].invert_yaxis()
        fig.suptitle("To the right of the line, our layers are faster")
        fig.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
        )
        fig.savefig(path, dpi=90)
