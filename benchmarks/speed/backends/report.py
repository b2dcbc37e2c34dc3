"""The results of all backends as a document."""

from benchmarks.speed.backends.cases import NATIVE
from benchmarks.speed.contenders import BASELINE, DEFAULT, Shape
from benchmarks.speed.timing import geometric_mean

COLUMNS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
SUMMARY = tuple(
    f"{cell}, {action}"
    for cell in ("LSTM", "GRU")
    for action in ("fit", "training step", "training step, mask", "inference")
)

INTRODUCTION = """\
# Each backend, with its own native layer

`make bench` writes this page. It compares the layers of this package, with their
defaults and a trainable initial state, with two others that run side by side with them:

- **Keras**: `keras.layers.LSTM`, `GRU` or `SimpleRNN` on the same backend;
- **native**: the layer that the backend itself has, where it has one.

A ratio is the time of the other layer divided by the time of ours: above 1, ours is
faster. It is the median over the rounds of the ratio within a round, then the geometric
mean over the shapes, with the lowest and the highest shape in parentheses.

In a `mask` a quarter of the timesteps are masked, anywhere in a row. Keras's layer gets
the same mask; the native layer knows no such mask and runs without it. In a
`reset_mask` one timestep in sixteen is preceded by a reset. Neither of the others knows
resets, and both run without them.
"""


def report(results):
    """Returns the document: the introduction, and a section for each backend."""
    sections = [INTRODUCTION]
    sections += [section(name, result) for name, result in sorted(results.items())]
    return "\n".join(sections)


def section(name, result):
    """Returns the settings and the table of a backend."""
    machine = result["machine"]
    shapes = dict.fromkeys(str(Shape(*case["shape"])) for case in result["cases"])
    title = f"native: {result['native'] or 'none'}"
    lines = [
        f"## {name}",
        "",
        f"{result['device']}: {', '.join(machine['gpus']) or machine['cpu']}, "
        f"{machine['cores']} cores; {name} {machine[name]}, Keras {machine['keras']}, "
        f"Python {machine['python']}. Batch x timesteps x features x units: "
        f"{', '.join(shapes)}. Up to {result['rounds']} rounds.",
        "",
        f"| case | Keras / ours | {title} / ours | what ran in ours |",
        "|---|---|---|---|",
    ]
    for case, row in rows(result["cases"]).items():
        cells = [in_words(row["ratios"].get(other)) for other in (BASELINE, NATIVE)]
        lines.append(f"| {case} | {' | '.join(cells)} | {', '.join(row['kernels'])} |")
    lines += memory(result["cases"])
    return "\n".join(lines) + "\n"


def memory(cases):
    """Returns the lines of the table of the memory, if it was measured."""
    measured = [case for case in cases if "peak_bytes" in case]
    if not measured:
        return []
    lines = [
        "",
        "The peak of the memory of all tensors that a step creates, in MB:",
        "",
        "| case | shape | ours | Keras | native |",
        "|---|---|---|---|---|",
    ]
    for case in measured:
        sizes = [case["peak_bytes"].get(name) for name in (DEFAULT, BASELINE, NATIVE)]
        cells = ["" if size is None else f"{size / 1e6:.3g}" for size in sizes]
        shape = Shape(*case["shape"])
        lines.append(f"| {case['case']} | {shape} | {' | '.join(cells)} |")
    return lines


def summary(results):
    """Returns the table of the README: Keras / ours, with a column for each backend."""
    found = {name: rows(results[name]["cases"]) for name in COLUMNS}
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for case in SUMMARY:
        cells = [in_words(found[name][case]["ratios"][BASELINE]) for name in COLUMNS]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rows(cases):
    """Returns `{case: {"ratios": {other: ratios of the shapes}, "kernels": names}}`."""
    found = {}
    for case in cases:
        row = found.setdefault(case["case"], {"ratios": {}, "kernels": []})
        for other, ratio in case["ratios"].items():
            row["ratios"].setdefault(other, []).append(ratio["median"])
        for kernel in case["kernels"].get(DEFAULT, ()):
            if kernel not in row["kernels"]:
                row["kernels"].append(kernel)
    return found


def in_words(ratios):
    """Returns the geometric mean of ratios and their range, or nothing."""
    if not ratios:
        return ""
    mean, low, high = geometric_mean(ratios), min(ratios), max(ratios)
    return f"**{mean:.2f}** ({low:.2f} to {high:.2f})"
