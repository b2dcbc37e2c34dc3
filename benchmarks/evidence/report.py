"""The tables of the evidence as Markdown, and the files with all results."""

import json

from benchmarks.command import rounded
from benchmarks.evidence.adaptation import (
    ADAPTATION,
    ALL,
    METHODS,
    NOTHING,
    RANKS,
    STATE,
    STEPS,
)
from benchmarks.evidence.by_timestep import save_panels
from benchmarks.evidence.claims import answers
from benchmarks.evidence.forest import save_forest
from benchmarks.evidence.losses import Losses, part, percent, relative
from benchmarks.evidence.models import (
    KINDS,
    LAST_VALUE,
    PAST_EVERY_STEP,
    PAST_FIRST,
    STREAM_KINDS,
)
from benchmarks.evidence.tasks import TASKS
from benchmarks.machine import machine


def table(losses, task, units, size):
    """Returns a table of all kinds of a task, as Markdown."""
    condition = task.name, units, size
    found = losses.of(*condition)
    rates, weights = (losses.field(f, *condition) for f in ("rate", "weights"))
    # The root of a squared error is in the unit of the targets.
    factors = {"relative to zeros": 1, **({} if task.levels else {"its root": 0.5})}
    columns = [task.loss_name, *factors, "at the first timestep", "at the last"]
    lines = [
        f"| initial state | {' | '.join(columns)} | weights | rate |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for kind, values in found.items():
        logs = [
            *(
                factor * relative(values, found["zeros"], "all")
                for factor in factors.values()
            ),
            *(relative(values, found["zeros"], which) for which in ("first", "last")),
        ]
        cells = [
            f"{part(values, 'all').mean():.4g}",
            *("" if kind == "zeros" else percent(values) for values in logs),
            f"{weights[kind]:,}" if weights[kind] else "",
            f"{rates[kind] or ''}",
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parts_of(task):
    """Returns the sizes of the parts of a task, from the docstring of its split."""
    return task.split.__doc__.partition("\n")[0].removeprefix("Returns ")


def contexts(task, found):
    """Returns what is known of the sequences of a task, and the kinds that use it.

    Returns:
        List of a description, the kind whose initial state is computed from it, and the
        kind with the same as an input, or `None`.
    """
    if task.stream:
        return [("the state before", "carried", None)]
    inputs = {
        "past, read first": ("past", PAST_FIRST),
        "past, at every step": ("past", PAST_EVERY_STEP),
        **{needs: (needs, f"{needs} input") for needs in task.known if needs != "past"},
    }
    return [
        (context, state, as_input)
        for context, (state, as_input) in inputs.items()
        if as_input in found
    ]


def summary(losses, tasks):
    """Returns a table of all tasks in their first condition, as Markdown."""
    lines = [
        "| task | loss | context | one learned state for all | initial state computed "
        "from the context | the context as an input | the last value repeated |",
        "|---" * 7 + "|",
    ]
    for task in [task for task in TASKS if task.name in tasks]:
        found = losses.of(task.name, *losses.conditions(task.name)[0])
        for context, *kinds in contexts(task, found):
            cells = [
                percent(relative(found[kind], found["zeros"], "all"))
                if kind in found
                else ""
                for kind in ("trainable", *kinds, LAST_VALUE)
            ]
            lines.append(
                f"| {task.name} | {task.loss_name} | {context} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def states_and_inputs(losses, tasks):
    """Returns a table of initial states, relative to the same context as an input."""
    shown = [task for task in TASKS if task.name in tasks and not task.stream]
    columns = sorted(
        {pair for task in shown for pair in losses.conditions(task.name)},
        key=lambda pair: (-pair[0], pair[1] == "few"),
    )
    titles = [f"{units} units, {size}" for units, size in columns]
    lines = [
        f"| task | context | {' | '.join(titles)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for task in shown:
        every = [losses.of(task.name, *condition) for condition in columns]
        for context, state, as_input in contexts(task, every[0]):
            cells = [percent(relative(f[state], f[as_input], "all")) for f in every]
            lines.append(f"| {task.name} | {context} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_examples(losses, units, kinds, cell):
    """Returns a table of ways to adapt, a row for each number of examples.

    Args:
        losses: The `Losses`.
        units: The units of the model.
        kinds: The columns.
        cell: Function of the condition (task, units, examples) and of a kind, that
            returns a text.
    """
    lines = [f"| examples | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for size in [size for u, size in losses.conditions(ADAPTATION) if u == units]:
        cells = [cell((ADAPTATION, units, size), kind) for kind in kinds]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adaptation_table(losses, units):
    """Returns a table of the losses relative to no adaptation."""

    def cell(condition, kind):
        found = losses.of(*condition)
        if kind == NOTHING:
            return f"{part(found[kind], 'all').mean():.4g}"
        return percent(relative(found[kind], found[NOTHING], "all"))

    return by_examples(losses, units, METHODS, cell)


def state_table(losses, units):
    """Returns a table of the initial state alone, relative to the other ways."""

    def cell(condition, kind):
        found = losses.of(*condition)
        return percent(relative(found[STATE], found[kind], "all"))

    return by_examples(losses, units, [*RANKS, ALL], cell)


def rate_table(losses, units):
    """Returns a table of the learning rates that the search chose."""

    def cell(condition, kind):
        return str(losses.field("rate", *condition)[kind])

    return by_examples(losses, units, [STATE, *RANKS, ALL], cell)


def report(losses, settings, tasks, panels):
    """Returns all tables, with how to read them, as Markdown.

    Args:
        losses: The `Losses`.
        settings: The settings of the trainings.
        tasks: The names of the tasks to report.
        panels: The file name of the picture by timestep, in the same folder.
    """
    where = machine()
    versions = ", ".join(f"{k} {where[k]}" for k in ("python", "tensorflow", "keras"))
    lines = [
        "# When an owned initial state helps",
        "Losses on test data, relative to an LSTM that starts from zeros, in percent, "
        "paired by seed: the mean of the logarithms, and the ends of its 95 % interval "
        f"(Student's t) over {settings['seeds']} seeds, each with its own split; the "
        "sea is one series, with one split. Negative is better. Of twenty intervals "
        "without a difference, one does not contain zero. The loss is the squared "
        "error, or the cross-entropy for digits and text. A squared error that is 95 % "
        "lower has a root that is 78 % lower.",
        "All kinds of a task get the same number of steps of Adam, and the learning "
        f"rate of {', '.join(map(str, settings['rates']))} that has the lowest loss on "
        f"validation data in {settings['searches']} further trainings. Each training "
        "keeps the weights that do best on validation data.",
        f"`python -m benchmarks.evidence`: {where['cores']} cores of {where['cpu']}, "
        f"{versions}. All values, for every timestep and seed: `evidence.json`.",
        "## In short",
        "The larger model with the larger training data, relative to zeros:",
        summary(losses, tasks),
        "The initial state, relative to the same context as an input. The models that "
        "read a past have equal numbers of weights, the others equal numbers of units "
        "(their weights are in the tables below):",
        states_and_inputs(losses, tasks),
        "At each timestep:",
        "![The test loss relative to zeros at each timestep of each task, and of a new "
        "speaker by the number of examples, with 95 % intervals]"
        f"({panels})",
        "## Published claims",
        "The number of comparisons (tasks, sizes of the model and of the training "
        "data, kinds) in which the claim holds, the opposite holds, or the difference "
        "is not significant:",
        answers(losses),
        "## What is compared",
        "\n".join(f"- {k}: {meaning}" for k, (meaning, _) in KINDS.items())
        + f"\n- {LAST_VALUE}: no model, the last known value is the prediction: of the "
        "timestep before, for countries of the last year before the sequence, for the "
        "sea of the half hour before the chunk",
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
        lines += adaptation_report(losses, settings)
    return "\n\n".join(lines) + "\n"


def adaptation_report(losses, settings):
    """Returns the paragraphs about a new speaker."""
    lines = [
        f"## {ADAPTATION}",
        "A model of vowels by 8 speakers meets a ninth, with a few of its utterances. "
        f"{STEPS} steps, at the learning rate of "
        f"{', '.join(map(str, settings['adaptation_rates']))} that is best in "
        f"{settings['searches']} further trainings, for each way and number of "
        "examples. Squared error on the other utterances of the speaker.",
        "\n".join(f"- {name}: {meaning}" for name, meaning in METHODS.items()),
    ]
    conditions = losses.conditions(ADAPTATION)
    for units in sorted({units for units, _ in conditions}):
        size = next(size for u, size in conditions if u == units)
        weights = losses.field("weights", ADAPTATION, units, size)
        lines += [
            f"### {ADAPTATION}: {units} units",
            "Squared error without adaptation, and the others relative to it. They "
            "change "
            + ", ".join(f"{weights[k]:,} ({k})" for k in METHODS if k != NOTHING)
            + " numbers.",
            adaptation_table(losses, units),
            f"The loss of the {STATE}, relative to the other ways:",
            state_table(losses, units),
            "The learning rates:",
            rate_table(losses, units),
        ]
    return lines


def save_report(path, records, settings):
    """Writes the pictures to `path` and next to it, as the Markdown and JSON files.

    Returns:
        The Markdown.
    """
    records = rounded(records, digits=6)
    losses = Losses(records)
    tasks = {record["task"] for record in records}
    save_forest(path, losses, tasks)
    panels = path.with_name(f"{path.stem}_by_timestep.png")
    save_panels(panels, losses, tasks)
    text = report(losses, settings, tasks, panels.name)
    path.with_suffix(".md").write_text(text)
    contents = {"settings": settings, "machine": machine(), "records": records}
    data = json.dumps(contents, separators=(",", ":"))
    path.with_suffix(".json").write_text(data + "\n")
    return text
