"""What was measured as text, and whether it reaches the targets."""

import operator

from contenders import (
    BASELINE,
    DEFAULT,
    EXPLICIT,
    FIT,
    FUSED,
    INFERENCE,
    KINDS,
    LEGEND,
    TRAINING,
    Shape,
)
from experiments import LSTM_OVER, OVER_EXPLICIT, TORCH_OVER
from timing import geometric_mean


def geometric_means(cases):
    """Returns `{mode: {kind of ratio: {contender: mean over the shapes}}}`."""
    means = {}
    for mode in dict.fromkeys(case["mode"] for case in cases):
        found = [case["ratios"] for case in cases if case["mode"] == mode]
        means[mode] = {
            kind: {
                name: geometric_mean([ratios[kind][name]["median"] for ratios in found])
                for name in by_name
            }
            for kind, by_name in found[0].items()
        }
    return means


def targets(cases, means, traces):
    """Returns what is to be reached: dicts of what, figure, bound and verdict."""
    inference, training, fit = (means[str(m)] for m in (INFERENCE, TRAINING, FIT))
    fits = [case["ratios"][LSTM_OVER] for case in cases if case["mode"] == str(FIT)]
    found = [
        (f"{name} / {EXPLICIT}, {mode}", means[mode][OVER_EXPLICIT][name], "<=", 1.02)
        for name in KINDS
        for mode in map(str, (INFERENCE, TRAINING))
        if name in means[mode][OVER_EXPLICIT]
    ]
    found += [
        (f"LSTM / {DEFAULT}, fit", fit[LSTM_OVER][DEFAULT], ">=", 2),
        (
            f"LSTM / {DEFAULT}, fit, slowest shape",
            min(ratios[DEFAULT]["median"] for ratios in fits),
            ">=",
            0.97,
        ),
        (f"LSTM / {FUSED}, inference", inference[LSTM_OVER][FUSED], ">=", 1.3),
    ]
    if TORCH_OVER in training:
        ahead = training[TORCH_OVER][DEFAULT]
        found.append((f"torch / {DEFAULT}, training step (stretch)", ahead, ">", 1))
    for way in ("reduce_retracing", "input_signature"):
        most = max(traces[name][way][0] for name in (*KINDS, DEFAULT))
        found.append((f"traces, {way}", most, "<=", traces[BASELINE][way][0]))
    compare = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
    return [
        {"what": w, "figure": f, "bound": f"{sign} {b}", "reached": compare[sign](f, b)}
        for w, f, sign, b in found
    ]


def heading(results):
    """Returns what was asked for, where it runs, and who takes part."""
    settings = {**results, **results["machine"]}
    del settings["machine"]
    return (
        "\n".join(f"{name:<11}{value}" for name, value in settings.items())
        + "\n\n"
        + "\n".join(f"  {name:<18}{text}" for name, text in LEGEND.items())
    )


def tables(results, plan):
    """Returns all results, in a section for each mode and measurement."""
    sections = [
        "Medians over the rounds of the ratio within a round; below it, the 10th to "
        "the 90th percentile.\n= marks a tie: this spread crosses 1. Rounds: "
        f"{results['rounds']}, and fewer where one takes over a second."
    ]
    if results["quick"]:
        sections[0] += "\nA quick run: few shapes and rounds, no extras."
    for mode, means in results["geometric_means"].items():
        cases = [case for case in results["cases"] if case["mode"] == mode]
        sections.append(cases_table(cases, means))
    sections.append(traces_table(results["traces"], plan))
    sections.append(
        f"== From the constructor to the first training step, {plan.first_shape}\n"
        + lines({n: [f"{v:.2f} s"] for n, v in results["first_result"].items()})
    )
    if "peak_memory" in results:
        sections.append(
            f"== What 3 training steps add to the peak, {plan.memory_shape}\n"
            + lines({n: [f"{v:.0f} MiB"] for n, v in results["peak_memory"].items()})
        )
    if "growth" in results:
        sections.append(growth_table(results["growth"], plan))
    sections += [cudnn_table(results["cases"]), targets_table(results["targets"])]
    return "\n\n".join(sections)


def line(label, cells=(), width=12):
    """Returns a line of a table."""
    return (f"{label:<20}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip()


def lines(rows, width=12):
    """Returns the lines of a table, of `{label: cells}`."""
    return "\n".join(line(label, cells, width) for label, cells in rows.items())


def cases_table(cases, means):
    """Returns the cases of one mode, with a column for each shape."""
    shapes = [case["shape"] for case in cases]
    text = [
        f"== {cases[0]['mode']}",
        lines(dict(zip(Shape._fields, zip(*shapes, strict=True), strict=True))),
        line("rounds", [case["rounds"] for case in cases]),
        line("LSTM, ms", [f"{case['median_ms'][BASELINE]:.2f} " for case in cases]),
    ]
    for kind, by_name in means.items():
        text.append(line(kind, [""] * len(cases) + ["geom. mean"]))
        for name, mean in by_name.items():
            ratios = [case["ratios"][kind][name] for case in cases]
            cells = [f"{r['median']:.2f}{'=' if r['tie'] else ' '}" for r in ratios]
            text.append(line(f"  {name}", [*cells, f"{mean:.2f} "]))
            text.append(line("", [f"{r['low']:.2f}-{r['high']:.2f}" for r in ratios]))
    return "\n".join(text)


def traces_table(traces, plan):
    """Returns how often the contenders were traced, and how long they took."""
    rows = {"": traces[BASELINE]}
    for name, counts in traces.items():
        rows[name] = [
            f"{'' if count is None else f'{count},'} {time:.2f} s"
            for count, time in counts.values()
        ]
    return (
        f"== {plan.traced_shapes} shapes (batch, time): traces, and seconds in all\n"
        + lines(rows, width=22)
    )


def growth_table(growth, plan):
    """Returns by which power of a size the time grows, with a column for each size."""
    rows = {"": growth}
    for name in (BASELINE, DEFAULT):
        rows[name] = [f"{slopes[name]:.2f}" for slopes in growth.values()]
    return (
        f"== Growth of a training step, exponents, from {plan.growth_shape}\n"
        + lines(rows)
    )


def cudnn_table(cases):
    """Returns which contenders ran cuDNN."""
    ops = {}
    for case in cases:
        for name, found in case["cudnn_ops"].items():
            ops.setdefault(name, set()).add(", ".join(found) or "none")
    rows = {name: [" or ".join(sorted(found))] for name, found in ops.items()}
    return "== cuDNN ops in the graphs that ran\n" + lines(rows, width=0)


def targets_table(targets):
    """Returns what is to be reached, and whether it is."""
    text = ["== To reach (geometric means over the grid)"]
    for target in targets:
        verdict = "reached" if target["reached"] else "missed"
        figure = f"{target['figure']:.3f} {target['bound']}"
        text.append(f"{target['what']:<48}{figure:>16}  {verdict}")
    return "\n".join(text)
