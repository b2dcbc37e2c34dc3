"""The axes of pictures of ratios, in which 1 is a tie."""


def compare_with_one(ax):
    """Draws a line at 1, and a grid behind the points."""
    ax.axvline(1, color="k", linewidth=1)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)


def set_log_ticks(ax, ticks):
    """Makes the x axis logarithmic, with these ticks and no others."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
