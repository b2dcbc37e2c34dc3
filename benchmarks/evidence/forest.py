"""The picture of the evidence: the relative losses of all tasks on one axis."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from benchmarks.evidence.adaptation import ADAPTATION, ALL, NOTHING, RANKS, STATE
from benchmarks.evidence.losses import percent, relative
from benchmarks.evidence.models import LAST_VALUE, PAST_EVERY_STEP, PAST_FIRST
from benchmarks.intervals import interval

# The label, the colour (of Okabe and Ito's) and the marker of each group of rows.
AS_STATE, AS_INPUT, NO_MODEL, IN_WEIGHTS = GROUPS = (
    ("in the initial state", "#0072B2", "o"),
    ("as an input, or read first", "#E69F00", "s"),
    ("the last value, repeated", "#000000", "D"),
    ("in the weights", "#D55E00", "X"),
)
# The heading, the task, the amount of data, and the rows: label, kind and group.
ROWS = [
    (
        "life expectancy of a country, 10 years (squared error)",
        "countries",
        "many",
        [
            ("its past", "past", AS_STATE),
            ("its past at every timestep", PAST_EVERY_STEP, AS_INPUT),
            ("its past, read first", PAST_FIRST, AS_INPUT),
            ("last value", LAST_VALUE, NO_MODEL),
            ("its region", "features", AS_STATE),
            ("its region at every timestep", "features input", AS_INPUT),
        ],
    ),
    (
        "the sea, chunks of 6 hours (squared error)",
        "sea",
        "many",
        [
            ("state carried over (stateful)", "carried", AS_STATE),
            ("carried over, the first one learned", "carried, trainable", AS_STATE),
            ("last value before the chunk", LAST_VALUE, NO_MODEL),
        ],
    ),
    (
        "the sound of a vowel (squared error)",
        "vowels",
        "many",
        [
            ("the speaker", "identity", AS_STATE),
            ("the speaker at every timestep", "identity input", AS_INPUT),
        ],
    ),
    (
        "a day of power (squared error)",
        "power",
        "many",
        [
            ("half of the year", "features", AS_STATE),
            ("half of the year at every timestep", "features input", AS_INPUT),
            ("one state, learned for all", "trainable", AS_STATE),
        ],
    ),
    (
        "a digit, row by row (cross-entropy)",
        "digits",
        "many",
        [
            ("which digit", "identity", AS_STATE),
            ("which digit at every timestep", "identity input", AS_INPUT),
        ],
    ),
    (
        "text, cut anywhere (cross-entropy)",
        "text",
        "many",
        [
            ("the 16 characters before", "past", AS_STATE),
            ("the 16 characters before, read first", PAST_FIRST, AS_INPUT),
        ],
    ),
    (
        "the weight of a chick, from 8 chicks (squared error)",
        "chicks",
        "few",
        [
            ("its diet", "features", AS_STATE),
            ("its diet at every timestep", "features input", AS_INPUT),
            ("one state, learned for all", "trainable", AS_STATE),
        ],
    ),
    (
        "a new speaker, 4 examples (squared error, to no adaptation)",
        ADAPTATION,
        4,
        [
            ("initial state alone", STATE, AS_STATE),
            *((name, name, IN_WEIGHTS) for name in RANKS),
            (ALL, ALL, IN_WEIGHTS),
        ],
    ),
]
TITLE = (
    "Context lowers the loss in six of seven tasks; as an input it often does as well"
)
TICKS = [-99, -98, -95, -90, -80, -65, -50, -25, 0, 50, 150, 400]


def condition(losses, task, size):
    """Returns the largest units of a task, and the size, or the first that it has."""
    (units, first), *_ = found = losses.conditions(task)
    return units, size if (units, size) in found else first


def rows_of(losses, tasks):
    """Returns the rows of the picture, the first at the top.

    Returns:
        List of headings, and of tuples of a label, the group, and the differences of
        the logarithms to the baseline `(seeds,)`.
    """
    rows = []
    for heading, task, size, kinds in ROWS:
        if task in tasks:
            found = losses.of(task, *condition(losses, task, size))
            baseline = found[NOTHING if task == ADAPTATION else "zeros"]
            rows.append(heading)
            rows += [
                (label, group, relative(found[kind], baseline, "all"))
                for label, kind, group in kinds
            ]
    return rows


def save_forest(path, losses, tasks):
    """Draws a line for each kind: the mean over the seeds and its 95 % interval."""
    rows = rows_of(losses, tasks)
    with mpl.rc_context({"font.size": 15}):
        height = 1.9 + 0.32 * len(rows)
        fig = Figure(figsize=(13, height))
        ax = fig.add_axes([0.36, 1.3 / height, 0.38, 1 - 1.9 / height])
        # Across the whole picture, at the height of a row.
        place = blended_transform_factory(fig.transFigure, ax.transData)
        ends = []
        for y, row in enumerate(rows):
            if isinstance(row, str):
                ax.text(
                    0.015, y + 0.1, row, transform=place, va="center", weight="bold"
                )
                continue
            label, (_, color, marker), logs = row
            mean, half = interval(logs)
            ax.text(0.03, y, label, transform=place, va="center")
            ax.text(0.76, y, percent(logs), transform=place, va="center")
            style = {"color": color, "marker": marker, "ms": 9}
            ax.errorbar(mean, y, xerr=half, capsize=4, lw=2, **style)
            half = np.nan_to_num(half)  # A single seed has no interval.
            ends += [mean - half, mean + half]
        draw_axis(ax, min([*ends, 0.0]) - 0.1, max([*ends, 0.0]) + 0.1)
        ax.set_ylim(len(rows) - 0.4, -0.9)
        handles = [
            Line2D([], [], color=color, marker=marker, ms=9, lw=2, label=label)
            for label, color, marker in GROUPS
        ]
        fig.legend(
            handles=handles, loc="lower center", ncols=len(GROUPS), frameon=False
        )
        fig.suptitle(TITLE, x=0.015, y=1 - 0.12 / height, ha="left", va="top", size=18)
        fig.savefig(path, dpi=100)


def draw_axis(ax, low, high):
    """Draws an axis of relative losses in percent, with a logarithmic scale."""
    ticks = [tick for tick in TICKS if low <= np.log1p(tick / 100) <= high]
    ax.set_xlim(low, high)
    labels = [f"{tick:+d}" if tick else "0" for tick in ticks]
    ax.set_xticks(np.log1p(np.divide(ticks, 100)), labels)
    ax.set_yticks([])
    ax.set_xlabel("test loss relative to zeros [%], log scale (left is better)")
    ax.axvline(0, color="0.3", linewidth=1, zorder=0)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["left", "right", "top"]].set_visible(False)
