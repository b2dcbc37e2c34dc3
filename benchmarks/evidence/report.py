"""The tables of the evidence as Markdown, and the files with all results."""

import json

from benchmarks.command import rounded
from benchmarks.evidence.adaptation import ADAPTATION, ALL, METHODS, NOTHING, START
from benchmarks.evidence.claims import answers
from benchmarks.evidence.losses import Losses, part, percent, relative
from benchmarks.evidence.models import KINDS, LAST_VALUE, STREAM_KINDS
from benchmarks.evidence.picture import save_picture
from benchmarks.evidence.tasks import TASKS
from benchmarks.machine import machine


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
    """Returns the sizes of the parts of a task, from the docstring of its split."""
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
    """Returns a table of the methods to adapt, a row for each number of examples."""
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
    """Returns all tables, with how to read them, as Markdown."""
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
        f"`python -m benchmarks.evidence`: {where['cores']} cores of {where['cpu']}, "
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
        + f"\n- {LAST_VALUE}: no model, the prediction is the last known value",
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


def save_report(path, records, settings):
    """Writes the picture to `path`, and Markdown and JSON next to it.

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
