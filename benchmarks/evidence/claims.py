"""Published claims, and the number of comparisons in which they hold."""

from benchmarks.evidence.adaptation import ADAPTATION, RANKS, STATE
from benchmarks.evidence.losses import relative
from benchmarks.evidence.tasks import TASKS
from benchmarks.intervals import significant_sign

# The source, the claim, the pairs of kinds that it compares, the part of a sequence,
# and the amounts of data, for a new speaker the examples. It holds where the first kind
# of a pair has the lower loss.
CLAIMS = [
    (
        "Gers, Schraudolph and Schmidhuber (2002)",
        "a learned initial state lowers the loss early in a sequence",
        [("trainable", "zeros")],
        "first",
        ("many", "few"),
    ),
    (
        "Zimmermann and others (2012); R2RT (2016)",
        "noise in the initial state regularises",
        [("noisy", "trainable")],
        "all",
        ("many", "few"),
    ),
    (
        "R2RT (2016)",
        "a learned initial state overfits with few sequences: zeros do better",
        [("zeros", "trainable"), ("carried", "carried, trainable")],
        "all",
        ("few",),
    ),
    (
        "Mohajerin and Waslander (2017)",
        "an initial state computed from data does better than zeros",
        [("past", "zeros"), ("features", "zeros"), ("identity", "zeros")],
        "all",
        ("many", "few"),
    ),
    (
        "Mohajerin and Waslander (2017)",
        "an initial state computed from data does better than one learned for all",
        [(kind, "trainable") for kind in ("past", "features", "identity")],
        "all",
        ("many", "few"),
    ),
    (
        "Forgione and others (2022)",
        "late in a sequence a learned initial state still lowers the loss "
        "(they say: not)",
        [("trainable", "zeros")],
        "last",
        ("many", "few"),
    ),
    (
        "S0 Tuning (2026), with 48 examples",
        "an initial state alone adapts better by few examples than low-rank adapters",
        [(STATE, adapters) for adapters in RANKS],
        "all",
        (1, 2, 4, 8, 16, 32),
    ),
]


def count(losses, claim):
    """Returns how many comparisons support a claim, its opposite, or neither."""
    _, _, pairs, which, sizes = claim
    signs = []
    for task in [*(task.name for task in TASKS), ADAPTATION]:
        for units, size in losses.conditions(task):
            found = losses.of(task, units, size)
            signs += [
                significant_sign(relative(found[a], found[b], which))
                for a, b in pairs
                if size in sizes and {a, b} <= found.keys()
            ]
    return signs.count(-1), signs.count(1), signs.count(0)


def answer(holds, opposite, rest):
    """Returns the verdict on the counts of a claim."""
    if holds > opposite + rest:
        return "mostly" if opposite else "yes"
    if holds > opposite:
        return "seldom"
    return "not under these conditions"


def answers(losses):
    """Returns a table of the claims and their counts, as Markdown."""
    lines = [
        "| claim | by | holds | the opposite | no significant difference | here |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        who, what, *_ = claim
        counts = count(losses, claim)
        cells = " | ".join(map(str, counts))
        lines.append(f"| {what} | {who} | {cells} | {answer(*counts)} |")
    return "\n".join(lines)
