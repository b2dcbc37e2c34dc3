"""The relative losses at each timestep, in a panel for each task."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.adaptation import ADAPTATION, ALL, NOTHING, RANKS, STATE
from benchmarks.evidence.losses import relative
from benchmarks.evidence.models import PAST_EVERY_STEP, PAST_FIRST
from benchmarks.evidence.tasks import TASKS
from benchmarks.intervals import interval

# The colour (of Okabe and Ito's) and the marker.
STYLES = {
    "trainable": ("#E69F00", "s"),
    "identity": ("#0072B2", "o"),
    "features": ("#009E73", "^"),
    "past": ("#CC79A7", "D"),
    "identity input": ("#56B4E9", "x"),
    "features input": ("#D55E00", "+"),
    PAST_FIRST: ("#000000", "v"),
    PAST_EVERY_STEP: ("#56B4E9", "x"),
    "carried": ("#0072B2", "o"),
    "carried, trainable": ("#009E73", "^"),
}
ADAPTED = {
    STATE: ("#0072B2", "o"),
    **dict(zip(RANKS, [("#009E73", "^"), ("#CC79A7", "D")], strict=True)),
    ALL: ("#D55E00", "X"),
}
# A panel shows four kinds at most. The tables have all.
LEFT_OUT = {"countries": ("trainable", "identity", "identity input", "features input")}


def draw_task(ax, losses, task):
    """Draws the differences to zeros at each timestep, in the first condition."""
    units, size = losses.conditions(task.name)[0]
    found = losses.of(task.name, units, size)
    for kind, (color, marker) in STYLES.items():
        if kind in found and kind not in LEFT_OUT.get(task.name, ()):
            logs = relative(found[kind], found["zeros"])[:, :-1]
            steps = np.arange(1, logs.shape[1] + 1)
            draw_interval(ax, steps, logs, color, marker, kind)
    ax.set_title(f"{task.name} ({units} units)")
    ax.set_xlabel("timestep")
    ax.xaxis.get_major_locator().set_params(integer=True)


def draw_adaptation(ax, losses):
    """Draws the differences to no adaptation, by the number of examples."""
    units = losses.conditions(ADAPTATION)[0][0]
    sizes = [size for u, size in losses.conditions(ADAPTATION) if u == units]
    for kind, style in ADAPTED.items():
        found = [losses.of(ADAPTATION, units, size) for size in sizes]
        logs = np.stack([relative(f[kind], f[NOTHING], "all") for f in found], 1)
        draw_interval(ax, sizes, logs, *style, kind)
    ax.set_title(f"a new speaker ({units} units)")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, sizes)
    ax.set_xlabel("examples to adapt by")


def draw_interval(ax, x, logs, color, marker, label):
    """Draws the mean over the seeds and its 95 % interval, in percent."""
    mean, half = interval(logs)
    low, high = mean - half, mean + half
    ax.plot(x, 100 * np.expm1(mean), marker=marker, ms=6, color=color, label=label)
    bounds = 100 * np.expm1(low), 100 * np.expm1(high)
    ax.fill_between(x, *bounds, color=color, alpha=0.15, linewidth=0)


def save_panels(path, losses, tasks):
    """Draws a panel for each task."""
    shown = [task for task in TASKS if task.name in tasks]
    number = len(shown) + (ADAPTATION in tasks)
    columns = min(number, 4)
    rows = -(-number // columns)
    with mpl.rc_context({"font.size": 13, "axes.titlesize": 15}):
        fig = Figure(figsize=(4.2 * columns, 4.4 * rows), layout="constrained")
        axes = np.ravel(fig.subplots(rows, columns, squeeze=False))
        for ax, task in zip(axes, shown, strict=False):
            draw_task(ax, losses, task)
        if ADAPTATION in tasks:
            draw_adaptation(axes[len(shown)], losses)
        for ax in axes[:number]:
            ax.axhline(0, color="0.3", linewidth=1, zorder=0)
            ax.grid(alpha=0.3)
            ax.legend(framealpha=0.7, fontsize=9)
        for ax in axes[number:]:
            ax.remove()
        for row in range(rows):
            axes[row * columns].set_ylabel("loss relative to zeros [%]")
        fig.suptitle(
            "For vowels a context helps at the first timesteps, for countries and the "
            "sea to the end (95 % intervals; a new speaker: to no adaptation)"
        )
        fig.savefig(path, dpi=95)
