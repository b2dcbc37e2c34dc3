"""The results as text, and whether they reach the targets."""

import operator

import numpy as np

from benchmarks.speed.contenders import (
    BASELINE,
    DEFAULT,
    EXPLICIT,
    FAMILY_MODES,
    FIT,
    INFERENCE,
    KINDS,
    LEGEND,
    TRAINING,
    Shape,
    fastest,
)
from benchmarks.speed.fresh_process import BATCHES, BUCKETS, SLOW_BATCH
from benchmarks.speed.measurements import KERAS_OVER, OVER_EXPLICIT, TORCH_OVER
from benchmarks.speed.timing import geometric_mean


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


def targets(results, plan):
    """Returns the targets: dicts of what, figure, bound and whether it is reached."""
    means, traces = results["geometric_means"], results["traces"]
    found = [
        (f"{name} / {EXPLICIT}, {mode}", means[mode][OVER_EXPLICIT][name], "<=", 1.02)
        for name in KINDS
        for mode in map(str, (INFERENCE, TRAINING))
        if name in means[mode][OVER_EXPLICIT]
    ]
    for mode, least in ((FIT, 2), (INFERENCE, 1.3)):
        name = fastest(mode)
        mean = means[str(mode)][KERAS_OVER][name]
        found.append((f"Keras / {name}, {mode}", mean, ">=", least))
    speedups = {mode: {} for mode in means}
    for case in results["cases"]:
        speedups[case["mode"]][tuple(case["shape"])] = case["ratios"][KERAS_OVER]
    for mode in (INFERENCE, TRAINING, FIT, *FAMILY_MODES):
        if str(mode) not in means:
            continue
        name, by_shape = fastest(mode), speedups[str(mode)]
        slowest = min(ratios[name]["median"] for ratios in by_shape.values())
        found.append((f"Keras / {name}, {mode}, slowest shape", slowest, ">=", 0.97))
        if mode.cell != "LSTM":
            lstm = speedups[str(mode._replace(cell="LSTM"))]
            relative = [
                ratios[name]["median"] / lstm[shape][name]["median"]
                for shape, ratios in by_shape.items()
            ]
            figure = geometric_mean(relative)
            found.append((f"{name}, {mode} / that of LSTM", figure, ">=", 0.97))
        elif TORCH_OVER in means[str(mode)]:
            ahead = means[str(mode)][TORCH_OVER][name]
            bound = (">=", 0.97) if mode == INFERENCE else (">", 1)
            found.append((f"torch / {name}, {mode}", ahead, *bound))
    for way in ("reduce_retracing", "input_signature"):
        most = max(traces[name][way][0] for name in (*KINDS, DEFAULT))
        found.append((f"traces, {way}", most, "<=", traces[BASELINE][way][0]))
    memory = results.get("peak_memory", {})
    if DEFAULT in memory:
        more, compiler = (
            memory[DEFAULT][str(shape)] - memory[BASELINE][str(shape)]
            for shape in (plan.memory_shape, plan.small_shape)
        )
        what = f"peak MiB of {DEFAULT} - Keras; at {plan.small_shape}: the bound"
        found.append((what, more, "<=", round(compiler)))
    compare = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
    return [
        {"what": w, "figure": f, "bound": f"{sign} {b}", "reached": compare[sign](f, b)}
        for w, f, sign, b in found
    ]


def heading(results):
    """Returns the settings, the machine and the contenders."""
    settings = {**results, **results["machine"]}
    del settings["machine"]
    return (
        "\n".join(f"{name:<11}{value}" for name, value in settings.items())
        + "\n\n"
        + "\n".join(f"  {name:<18}{text}" for name, text in LEGEND.items())
        + "\n  For the other layers, read their names in place of LSTM."
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
    if "bucketed_fit" in results:
        sections.append(bucketed_fit_table(results["bucketed_fit"], plan))
    if "peak_memory" in results:
        sections.append(memory_table(results["peak_memory"], plan))
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
        line("Keras, ms", [f"{case['median_ms'][BASELINE]:.2f} " for case in cases]),
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


def bucketed_fit_table(measured, plan):
    """Returns the times from the first call on, with a column for each."""
    shape = plan.bucket_shape
    text = [
        f"== `fit` of {BATCHES} batches in {BUCKETS} lengths, up to {shape}, each in a "
        f"fresh process; median of {plan.bucket_repetitions}\n"
        "To the first batch and through the first epoch from the constructor on. Slow: "
        f"{SLOW_BATCH} s more than in the second epoch.",
        line("", measured, 22),
    ]
    for name in plan.bucket_contenders:
        cells, spreads = [], []
        for what, found in measured.items():
            ratio = found.get("ratios", {}).get(KERAS_OVER, {}).get(name)
            unit = "" if what == "slow batches" else " s"
            cell = f"{np.median(found['values'][name]):.3g}{unit}"
            if ratio:
                cell += f", {ratio['median']:.2f}{'=' if ratio['tie'] else ' '}"
                spreads.append(f"{ratio['low']:.2f}-{ratio['high']:.2f} ")
            cells.append(cell)
        text.append(line(name, cells, 22))
        text += [line("", spreads, 22)] if spreads else []
    return "\n".join(text)


def memory_table(memories, plan):
    """Returns how much training steps add to the peak, a column for each shape."""
    shapes = [str(shape) for shape in (plan.memory_shape, plan.small_shape)]
    rows = {"": shapes}
    for name, by_shape in memories.items():
        rows[name] = [
            f"{by_shape[shape]:.0f} MiB" if shape in by_shape else ""
            for shape in shapes
        ]
    return (
        "== What 3 training steps add to the peak (XLA: calls of one compiled tanh)\n"
        + lines(rows, width=16)
    )


def growth_table(growth, plan):
    """Returns the power of a size by which the time grows, a column for each size."""
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
    """Returns the targets, and whether each is reached."""
    text = ["== To reach (geometric means over the grid)"]
    for target in targets:
        verdict = "reached" if target["reached"] else "missed"
        figure = f"{target['figure']:.3f} {target['bound']}"
        text.append(f"{target['what']:<66}{figure:>16}  {verdict}")
    return "\n".join(text)
