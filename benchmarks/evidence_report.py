"""The tables, the picture and the answers to published claims of the evidence."""

import json
from collections import defaultdict

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from evidence_adaptation import ALL, METHODS, NOTHING, START
from evidence_models import KINDS, LAST_VALUE, STREAM_KINDS
from evidence_tasks import TASKS
from machine import machine
from paired import interval
from rounding import rounded

ADAPTATION = "adaptation"
# The colour (of Okabe and Ito's) and the marker.
STYLES = {
    "trainable": ("#E69F00", "s"),
    "identity": ("#0072B2", "o"),
    "features": ("#009E73", "^"),
    "past": ("#CC79A7", "D"),
    "identity input": ("#56B4E9", "x"),
    "features input": ("#D55E00", "+"),
    "past input": ("#000000", "v"),
    "carried": ("#0072B2", "o"),
    "carried, trainable": ("#009E73", "^"),
    NOTHING: ("#000000", "v"),
    START: ("#0072B2", "o"),
    ALL: ("#D55E00", "X"),
}
# Who says it, what is said, what is compared with what, on which part of a sequence,
# and with which amount of data. It holds where the first has the lower loss.
CLAIMS = [
    (
        "Gers, Schraudolph and Schmidhuber (2002)",
        "a learned start lowers the loss early in a sequence",
        [("trainable", "zeros")],
        "first",
        ("many", "few"),
    ),
    (
        "Zimmermann and others (2012); R2RT (2016)",
        "noise in the start regularises",
        [("noisy", "trainable")],
        "all",
        ("many", "few"),
    ),
    (
        "R2RT (2016)",
        "a learned start overfits where starts are few: zeros do better",
        [("zeros", "trainable"), ("carried", "carried, trainable")],
        "all",
        ("few",),
    ),
    (
        "Mohajerin and Waslander (2017)",
        "a start computed from data does better than zeros",
        [("past", "zeros"), ("features", "zeros"), ("identity", "zeros")],
        "all",
        ("many", "few"),
    ),
    (
        "Mohajerin and Waslander (2017)",
        "a start computed from data does better than one learned for all",
        [(kind, "trainable") for kind in ("past", "features", "identity")],
        "all",
        ("many", "few"),
    ),
    (
        "Forgione and others (2022)",
        "late in a sequence a learned start still lowers the loss (they say: not)",
        [("trainable", "zeros")],
        "last",
        ("many", "few"),
    ),
]


class Losses:
    """The losses of all trainings, by what was trained.

    Args:
        records: What `evidence.py` keeps of each training.
    """

    def __init__(self, records):
        self._records = defaultdict(list)
        for record in sorted(records, key=lambda record: record["seed"]):
            key = record["task"], record["units"], record["size"], record["kind"]
            self._records[key].append(record)

    def conditions(self, task):
        """Returns the pairs of units and size that a task was trained with."""
        found = {key[1:3] for key in self._records if key[0] == task}
        return sorted(found, key=lambda pair: (-pair[0], pair[1] == "few", pair[1]))

    def of(self, task, units, size):
        """Returns `{kind: losses (seeds, timesteps + 1)}`, the last over all."""
        return {
            kind: np.array([[*r["by_timestep"], r["loss"]] for r in records])
            for kind, records in self._by_kind(task, units, size).items()
        }

    def rates(self, task, units, size):
        """Returns `{kind: learning rate}`."""
        return {
            kind: records[0]["rate"]
            for kind, records in self._by_kind(task, units, size).items()
        }

    def _by_kind(self, *condition):
        return {
            kind: records
            for (*key, kind), records in self._records.items()
            if tuple(key) == condition
        }


def relative(losses, baseline, which=None):
    """Returns the differences of the logarithms to a baseline, paired by seed.

    `which` is a part of the sequences, as `part` takes it, otherwise each is taken.

    To halve a loss and to double it are as far apart, and one seed with a high loss
    does not outweigh the others.
    """
    if which is not None:
        losses, baseline = part(losses, which), part(baseline, which)
    return np.log(losses / baseline)


def percent(logs):
    """Returns differences of logarithms as text, with the ends of the 95 % interval."""
    mean, half = interval(logs)
    middle, low, high = (100 * np.expm1(x) for x in (mean, mean - half, mean + half))
    if np.isnan(half):
        return f"{middle:+.1f} %"
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def told(logs):
    """Returns -1, 1 or 0: lower, higher, or an interval that leaves neither out."""
    mean, half = interval(logs)
    return int(np.sign(mean)) if abs(mean) > half else 0


def part(losses, which):
    """Returns the loss over all timesteps, or at the first or the last."""
    return losses[:, {"all": -1, "first": 0, "last": -2}[which]]


def count(losses, claim):
    """Returns in how many comparisons a claim holds, is contradicted, and the rest."""
    _, _, pairs, which, sizes = claim
    signs = []
    for task in TASKS:
        for units, size in losses.conditions(task.name):
            found = losses.of(task.name, units, size)
            signs += [
                told(relative(found[a], found[b], which))
                for a, b in pairs
                if size in sizes and {a, b} <= found.keys()
            ]
    return signs.count(-1), signs.count(1), signs.count(0)


def answer(holds, opposite, rest):
    """Returns in words what the counts of a claim say."""
    if holds > opposite + rest:
        return "mostly" if opposite else "yes"
    if holds > opposite:
        return "seldom"
    return "not under these conditions"


def answers(losses):
    """Returns a table of the claims, with what was found, as Markdown."""
    lines = [
        "| claim | by | holds | the opposite | not told apart | here |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        who, what, *_ = claim
        counts = count(losses, claim)
        cells = " | ".join(map(str, counts))
        lines.append(f"| {what} | {who} | {cells} | {answer(*counts)} |")
    return "\n".join(lines)


def table(losses, task, units, size):
    """Returns a table of all kinds of a task, as Markdown."""
    found, rates = (
        losses.of(task.name, units, size),
        losses.rates(task.name, units, size),
    )
    zeros = found["zeros"]
    lines = [
        "| start | loss | to zeros | at the first timestep | at the last | rate |",
        "|---|---|---|---|---|---|",
    ]
    for kind in found:
        cells = [f"{part(found[kind], 'all').mean():.4g}"]
        cells += [
            "" if kind == "zeros" else percent(relative(found[kind], zeros, which))
            for which in ("all", "first", "last")
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} | {rates[kind] or ''} |")
    return "\n".join(lines)


def parts_of(task):
    """Returns what a task is trained on, chosen by and tested on, as it says itself."""
    return task.split.__doc__.partition("\n")[0].removeprefix("Returns ")


def summary(losses, tasks):
    """Returns a table of all tasks in their first condition, as Markdown."""
    lines = [
        "| task | what is known | one learned start | a start from what is known | "
        "zeros, and what is known as an input |",
        "|---|---|---|---|---|",
    ]
    for task in [task for task in TASKS if task.name in tasks]:
        found = losses.of(task.name, *losses.conditions(task.name)[0])
        rows = [(needs, needs, f"{needs} input") for needs in task.known]
        if task.stream:
            rows = [("the state before", "carried", None)]
        for what, *kinds in rows:
            cells = [
                percent(relative(found[kind], found["zeros"], "all")) if kind else ""
                for kind in ("trainable", *kinds)
            ]
            lines.append(f"| {task.name} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adaptation_table(losses, units):
    """Returns a table of the ways to adapt, by the number of examples, as Markdown."""
    sizes = [size for u, size in losses.conditions(ADAPTATION) if u == units]
    lines = [
        f"| examples | loss of {NOTHING} | {START} | {ALL} | {START} to {ALL} |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        found = losses.of(ADAPTATION, units, size)
        cells = [f"{part(found[NOTHING], 'all').mean():.4g}"]
        cells += [
            percent(relative(found[a], found[b], "all"))
            for a, b in ((START, NOTHING), (ALL, NOTHING), (START, ALL))
        ]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(losses, settings, tasks):
    """Returns all of it as Markdown."""
    where = machine()
    versions = ", ".join(f"{k} {where[k]}" for k in ("python", "tensorflow", "keras"))
    lines = [
        "# When an owned initial state helps",
        "Losses on test data, and their differences to an LSTM that starts from zeros, "
        "in percent, paired by seed: the mean of the logarithms, and the ends of its "
        f"95 % interval (Student's t) over {settings['seeds']} seeds, each with a "
        "split of its own, but for the sea, which is one series. Negative is better. "
        "Of twenty intervals where there is no difference, one leaves out zero.",
        "All kinds of a task get the same number of steps of Adam, and the learning "
        f"rate of {', '.join(map(str, settings['rates']))} that has the lowest loss on "
        f"validation data in {settings['searches']} further trainings; of each "
        "training, the weights are kept that do best on validation data.",
        f"`python benchmarks/evidence.py`: {where['cores']} cores of {where['cpu']}, "
        f"{versions}. All values, for every timestep and seed: `evidence.json`.",
        "## In short",
        "The larger model with the larger training data, difference to zeros:",
        summary(losses, tasks),
        "## Published claims",
        "In how many comparisons (tasks, sizes of the model and of the training data, "
        "kinds) the claim holds, its opposite does, or neither can be told:",
        answers(losses),
        "## What is compared",
        "\n".join(f"- {k}: {meaning}" for k, (meaning, _) in KINDS.items())
        + f"\n- {LAST_VALUE}: no model, what was known last is the prediction",
        "In the stream:",
        "\n".join(f"- {k}: {meaning}" for k, meaning in STREAM_KINDS.items()),
    ]
    for task in [task for task in TASKS if task.name in tasks]:
        lines += [
            f"## {task.name}",
            f"{task.question[0].upper()}{task.question[1:]}. Loss: {task.loss}. "
            f"Parts: {parts_of(task)} {task.steps} steps of {task.batch_size} "
            f"sequences. Data: {task.source}.",
        ]
        for units, size in losses.conditions(task.name):
            lines += [
                f"### {task.name}: {units} units, {size} sequences",
                table(losses, task, units, size),
            ]
    if ADAPTATION in tasks:
        lines += [
            f"## {ADAPTATION}",
            "A model of vowels by 8 speakers meets a ninth, with a few of its "
            "utterances. Test loss on its other utterances, and the difference.",
            "\n".join(f"- {name}: {meaning}" for name, meaning in METHODS.items()),
        ]
        for units in sorted({units for units, _ in losses.conditions(ADAPTATION)}):
            lines += [f"### {units} units", adaptation_table(losses, units)]
    return "\n\n".join(lines) + "\n"


def draw_task(ax, losses, task):
    """Draws the differences to zeros at each timestep, in the first condition."""
    units, size = losses.conditions(task.name)[0]
    found = losses.of(task.name, units, size)
    for kind, (color, marker) in STYLES.items():
        if kind in found:
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
    for kind in (START, ALL):
        found = [losses.of(ADAPTATION, units, size) for size in sizes]
        logs = np.stack([relative(f[kind], f[NOTHING], "all") for f in found], 1)
        draw_interval(ax, sizes, logs, *STYLES[kind], kind)
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


def save_picture(path, losses, tasks):
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
            many = len(ax.get_legend_handles_labels()[1]) > 4
            ax.legend(framealpha=0.7, ncols=1 + many, fontsize=9 if many else 11)
        for ax in axes[number:]:
            ax.remove()
        for row in range(rows):
            axes[row * columns].set_ylabel("loss, difference [%]")
        fig.suptitle(
            "Test loss by what the LSTM starts from, relative to zeros "
            "(of a new speaker: to no adaptation), with 95 % intervals"
        )
        fig.savefig(path, dpi=95)


def save_report(path, records, settings):
    """Writes the picture to `path`, and Markdown and JSON beside it.

    Returns:
        The Markdown.
    """
    records = rounded(records, digits=6)
    losses = Losses(records)
    tasks = {record["task"] for record in records}
    save_picture(path, losses, tasks)
    text = report(losses, settings, tasks)
    path.with_suffix(".md").write_text(text)
    contents = {"settings": settings, "machine": machine(), "records": records}
    data = json.dumps(contents, separators=(",", ":"))
    path.with_suffix(".json").write_text(data + "\n")
    return text
