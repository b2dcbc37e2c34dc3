"""InitStateLSTM beside keras.layers.LSTM and torch: speed, traces, memory, growth.

Every figure is a ratio of times that were taken side by side: within a case (a shape
and a mode) each round runs each contender once, in an order that is shuffled anew, so
that a machine that slows down hurts all alike. A ratio is the median over the rounds
of the ratio within a round, its spread the 10th to the 90th percentile. Where the
spread crosses 1 nothing was shown, and the ratio is marked as a tie: "1.01=".
"""

import argparse
import gc
import json
import math
import operator
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

# Before the import, or TensorFlow has already reported every GPU it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from tqdm import tqdm

from arguments import picture_path, positive
from explicit_state import ExplicitState
from keras_init_lstm import InitStateLSTM

tf.get_logger().setLevel("ERROR")  # It warns of the many functions that we trace.
try:
    import torch
except ImportError:
    torch = None


class Shape(NamedTuple):
    """Sizes of a case."""

    batch: int
    time: int
    features: int
    units: int

    def __str__(self):
        return "x".join(map(str, self))


class Mode(NamedTuple):
    """What is done with a layer, how TensorFlow runs it, and what it returns."""

    action: str  # "inference", "training step" or "fit"
    way: str = "function"  # or "eager" or "XLA"
    return_sequences: bool = True

    def __str__(self):
        way = "" if self.way == "function" else f", {self.way}"
        return self.action + way + ("" if self.return_sequences else ", last output")


GRID = [
    Shape(32, 5, 10, 128),
    Shape(16, 10, 20, 64),
    Shape(8, 20, 5, 32),
    Shape(32, 20, 8, 64),
    Shape(32, 100, 32, 128),
    Shape(64, 200, 64, 256),
    Shape(1, 1000, 16, 64),
    Shape(256, 50, 32, 128),
    Shape(32, 50, 256, 512),
]
QUICK_GRID = [GRID[2], GRID[4]]
EXTRA_SHAPES = [GRID[2], GRID[4], GRID[8]]  # one tiny, one middling, one large
FIRST_SHAPE, MEMORY_SHAPE = GRID[4], GRID[5]
TRACED_SHAPES, FIRST_REPETITIONS = 50, 3
GROWTH_SHAPE = Shape(32, 50, 32, 128)
GROWTH = {
    "batch": [8, 16, 32, 64, 128],
    "time": [25, 50, 100, 200, 400],
    "units": [32, 64, 128, 256, 512],
}
INFERENCE, TRAINING, FIT = Mode("inference"), Mode("training step"), Mode("fit")
EXTRA_MODES = [
    Mode(action, way, sequences)
    for way, sequences in (("eager", True), ("XLA", True), ("function", False))
    for action in ("inference", "training step")
]

ROUNDS, QUICK_ROUNDS, GROWTH_ROUNDS, FEWEST_ROUNDS = 15, 5, 7, 5
MIN_SECONDS = 0.01  # of one timing: a shorter call is repeated
SLOW_SECONDS = 7  # of all rounds of a case in which one takes over a second
FIT_SECONDS = 0.3  # of the steps in one `fit`


class Steps(keras.callbacks.Callback):
    """Times the steps of `fit`, which is what grows with the data.

    What comes before them costs some 0.04 s, whoever trains. After them tf.data ends
    the thread that tunes its pipeline. On some calls this waits until the thread wakes
    up, at 0.34 s, at 0.66 s and so on: an epoch of 0.5 s then takes 0.66 s.
    """

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter()


BASELINE, CONTROL = "LSTM", "LSTM again"
EXPLICIT, TORCH, TORCH_LOOP = "explicit state", "torch", "torch loop"
# The ratios of a case: of the LSTM's time to each, and so on.
LSTM_OVER, OVER_EXPLICIT, TORCH_OVER = "LSTM / ...", "... / explicit", "torch / ..."
# The first three run Keras's own loop: what it costs to own the state.
KINDS = ("fixed", "sampled", "trainable")
FUSED, DEFAULT = "fused", "auto"
OURS = {
    **{kind: {"initial_state": kind, "use_fused": False} for kind in KINDS},
    FUSED: {"initial_state": "trainable", "use_fused": True},
    DEFAULT: {"initial_state": "trainable"},
}
LAYERS = {
    BASELINE: keras.layers.LSTM,
    CONTROL: keras.layers.LSTM,
    EXPLICIT: ExplicitState,
    **{name: partial(InitStateLSTM, **options) for name, options in OURS.items()},
}
FEW = [BASELINE, EXPLICIT, "trainable", DEFAULT]
LEGEND = {
    BASELINE: "keras.layers.LSTM without a state; the others are relative to it",
    CONTROL: "another just like it: what differs from 1 here is the machine's doing",
    EXPLICIT: "the same with two learned weights, tiled to the batch by hand",
    **{k: f'InitStateLSTM(initial_state="{k}", use_fused=False)' for k in KINDS},
    FUSED: 'InitStateLSTM(initial_state="trainable", use_fused=True)',
    DEFAULT: 'InitStateLSTM(initial_state="trainable"): use_fused="auto"',
    TORCH: "torch.nn.LSTM with learned h0, c0, expanded to the batch",
    TORCH_LOOP: "in place of `fit`: that model in a hand-written loop, with Adam",
}
# In the picture: the place in a row, the colour (of Okabe and Ito's), the marker, and
# its filling where it is not the colour.
STYLES = {
    CONTROL: (0, "0.5", "s", "w"),
    EXPLICIT: (1, "k", "s", None),
    "fixed": (2, "#E69F00", "o", "w"),
    "sampled": (3, "#009E73", "o", "w"),
    "trainable": (4, "#0072B2", "o", "w"),
    FUSED: (5, "#D55E00", "o", None),
    DEFAULT: (6, "#0072B2", "o", None),
    TORCH: (7, "#CC79A7", "D", None),
    TORCH_LOOP: (7, "#CC79A7", "D", "w"),
}
PLACES = 8
TICKS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50]


def contenders(mode, quick=False):
    """Returns the names of those that take part in a mode, the baseline first."""
    # One kind of state stands for all but in the two modes that cost least time: each
    # more would cost a compilation and its rounds everywhere.
    names = [*FEW, FUSED] if mode == INFERENCE else list(FEW)
    if mode in (INFERENCE, TRAINING) and not quick:
        names = list(LAYERS)
    if torch is not None and mode.way == "function":
        names.append(TORCH_LOOP if mode == FIT else TORCH)
    return names


def make_run(name, shape, mode, steps=1, seed=0):
    """Returns a function that does what is timed, once, and waits for the result.

    What it has to trace or compile is left to its first call. Of its attributes, which
    it may lack, `concrete_function` gives the graph that ran, and `seconds` what
    the last call took, if that is not the time until it returned.
    """
    rng = np.random.default_rng(seed)
    draw = partial(rng.standard_normal, dtype="float32")
    x = draw((shape.batch * steps, shape.time, shape.features))
    if name in (TORCH, TORCH_LOOP):
        y = draw((len(x), shape.time, 1))
        return _torch_run(shape, mode, x, y, seed)
    keras.utils.set_random_seed(seed)
    options = {"return_sequences": mode.return_sequences}
    if mode.way == "XLA" and tf.config.list_logical_devices("GPU"):
        options["use_cudnn"] = False  # XLA cannot compile the op.
    layer = LAYERS[name](shape.units, **options)
    if mode.action == "fit":
        y = draw((len(x), shape.time, 1))
        model = keras.Sequential(
            [keras.Input(x.shape[1:]), layer, keras.layers.Dense(1)]
        )
        model.compile("adam", "mse")
        timer = Steps()

        def fit():
            model.fit(x, y, shape.batch, epochs=1, verbose=0, callbacks=[timer])

        fit.seconds = lambda: timer.end - timer.start
        return fit

    layer.build(x.shape)
    x = tf.constant(x)
    # By hand there is no layer around the two weights, whose call would cost.
    call = layer.call if name == EXPLICIT else layer

    def infer(x):
        return call(x)

    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(call(x, training=True)))
        return loss, tape.gradient(loss, layer.trainable_variables)

    function = infer if mode.action == "inference" else train
    if mode.way != "eager":
        function = tf.function(function, jit_compile=mode.way == "XLA" or None)

    def run():
        result = function(x)
        if mode.action != "inference":
            return result[0].numpy()
        return result[(-1,) * len(result.shape)].numpy()

    if mode.way != "eager":
        run.concrete_function = partial(function.get_concrete_function, x)
    return run


def _torch_run(shape, mode, x, y, seed):
    torch.manual_seed(seed)
    has_gpu = tf.config.list_logical_devices("GPU") and torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    lstm = torch.nn.LSTM(shape.features, shape.units, batch_first=True).to(device)
    dense = torch.nn.Linear(shape.units, 1).to(device)
    states = [torch.zeros(shape.units, device=device) for _ in range(2)]
    x, y = (torch.from_numpy(array).to(device) for array in (x, y))
    weights = [*lstm.parameters(), *(state.requires_grad_() for state in states)]

    def call(x):
        start = [state.expand(1, len(x), -1).contiguous() for state in states]
        outputs, _ = lstm(x, start)
        return outputs if mode.return_sequences else outputs[:, -1]

    def infer():
        with torch.no_grad():
            return call(x).flatten()[-1].item()  # waits for the device

    def train():
        for weight in weights:
            weight.grad = None
        loss = call(x).square().sum()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def fit():
        for rows in torch.randperm(len(x), device=device).split(shape.batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(dense(call(x[rows])), y[rows])
            loss.backward()
            optimizer.step()
        return loss.item()

    optimizer = torch.optim.Adam([*weights, *dense.parameters()])
    return {"inference": infer, "training step": train, "fit": fit}[mode.action]


def seconds(run, calls=1):
    """Returns the time of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    elapsed = time.perf_counter() - start
    return run.seconds() if hasattr(run, "seconds") else elapsed


def measure(shape, mode, names, rounds, steps=1, seed=0):
    """Returns the case as it goes into the JSON file, with the times of each round.

    The times are in seconds for one call, or one step of `fit`.
    """
    runs = {name: make_run(name, shape, mode, steps, seed) for name in names}
    for run in runs.values():
        run()  # traces and compiles
    once = {name: seconds(run) for name, run in runs.items()}
    shortest = once[BASELINE]
    if shortest < MIN_SECONDS:
        shortest = min(shortest, *(seconds(runs[BASELINE]) for _ in range(3)))
    calls = math.ceil(MIN_SECONDS / shortest)
    a_round = sum(once.values()) * calls
    if a_round > 1:
        rounds = min(rounds, max(FEWEST_ROUNDS, int(SLOW_SECONDS / a_round)))
    rng = np.random.default_rng(seed)
    times = {name: [] for name in names}
    for _ in range(rounds):
        for name in rng.permutation(names):
            if calls > 1:
                runs[name]()  # lets the threads of the one before come to rest
            times[name].append(seconds(runs[name], calls) / calls / steps)
    graphs = {
        name: run.concrete_function()
        for name, run in runs.items()
        if hasattr(run, "concrete_function")
    }
    case = {
        "shape": list(shape),
        "mode": str(mode),
        "rounds": rounds,
        "calls": calls,
        "steps": steps,
        "seconds": times,
        "median_ms": {name: 1e3 * np.median(times[name]) for name in names},
        "cudnn_ops": {name: cudnn_ops(graph) for name, graph in graphs.items()},
    }
    ours = [name for name in names if name in OURS]
    torch_name = TORCH_LOOP if mode.action == "fit" else TORCH
    pairs = {LSTM_OVER: [(name, BASELINE, name) for name in names[1:]]}
    if EXPLICIT in names:
        pairs[OVER_EXPLICIT] = [(name, name, EXPLICIT) for name in ours]
    if torch_name in names:
        found = [name for name in (FUSED, DEFAULT) if name in names]
        pairs[TORCH_OVER] = [(name, torch_name, name) for name in found]
    case["ratios"] = {
        kind: {name: ratio(times[over], times[under]) for name, over, under in found}
        for kind, found in pairs.items()
    }
    del runs, graphs
    keras.backend.clear_session()
    gc.collect()
    return case


def ratio(over, under):
    """Returns median, spread and verdict of the ratios within the rounds."""
    ratios = np.divide(over, under)
    low, high = np.percentile(ratios, [10, 90])
    return {
        "median": float(np.median(ratios)),
        "low": float(low),
        "high": float(high),
        "tie": bool(low <= 1 <= high),
    }


def geometric_mean(values):
    """Returns the mean that fits ratios."""
    return float(np.exp(np.mean(np.log(values))))


def slope(sizes, times):
    """Returns by which power of the size the time grows, on a log-log fit."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def cudnn_ops(concrete_function):
    """Returns the cuDNN ops in a graph and in every function that it reaches."""
    graph = concrete_function.graph.as_graph_def()
    library = {f.signature.name: f.node_def for f in graph.library.function}
    found, seen, pending = set(), set(), [graph.node]
    while pending:
        for node in pending.pop():
            found |= {node.op} if "cudnn" in node.op.lower() else set()
            called = {node.op}
            for attribute in node.attr.values():
                called |= {attribute.func.name, *(f.name for f in attribute.list.func)}
            pending += [library[name] for name in (called & library.keys()) - seen]
            seen |= called
    return sorted(found)


def count_traces(call, shapes, **options):
    """Returns how often `tf.function(call, **options)` traces, and the seconds."""
    traces = 0

    @tf.function(**options)
    def function(x):
        nonlocal traces
        traces += 1
        return call(x)

    start = time.perf_counter()
    for shape in shapes:
        function(tf.zeros(shape))
    return traces, time.perf_counter() - start


def trace_counts(seed, features=4, units=8):
    """Returns `{contender: {way: [traces, seconds]}}` over many different shapes.

    In eager mode nothing is traced by us; there the time shows what a layer compiles.
    """
    pairs = (
        np.random.default_rng(seed).choice(256, TRACED_SHAPES, replace=False).tolist()
    )
    shapes = [(1 + pair // 16, 1 + pair % 16, features) for pair in pairs]
    counts = {}
    for name in (BASELINE, EXPLICIT, *KINDS, DEFAULT):
        layer = LAYERS[name](units, return_sequences=True)
        layer.build((None, None, features))
        layer(tf.zeros((2, 2, features)))
        any_shape = tf.TensorSpec([None, None, features])
        start = time.perf_counter()
        for shape in shapes:
            layer(tf.zeros(shape))
        counts[name] = {
            "eager": (None, time.perf_counter() - start),
            "reduce_retracing": count_traces(layer, shapes, reduce_retracing=True),
            "input_signature": count_traces(layer, shapes, input_signature=[any_shape]),
        }
    return counts


def first_results(seed):
    """Returns `{contender: seconds}` from the constructor to a first training step."""
    rng = np.random.default_rng(seed)
    times = {name: [] for name in FEW}
    for _ in range(FIRST_REPETITIONS):
        for name in rng.permutation(FEW):
            start = time.perf_counter()
            make_run(name, FIRST_SHAPE, TRAINING)()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def peak_bytes():
    """Returns the most memory that this process has held so far."""
    # Not `ru_maxrss`, which on Linux a process inherits from the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # Not on Windows.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def print_peak_memory(name, shape, steps=3):
    """Prints by how many MiB the first training steps raise the peak of memory."""
    run = make_run(name, shape, TRAINING)
    before = peak_bytes()
    seconds(run, steps)
    print((peak_bytes() - before) / 2**20)


def peak_memories(device, tick):
    """Returns `{contender: MiB}`, each measured in a process of its own."""
    memories = {}
    for name in [*FEW, *[TORCH] * (torch is not None)]:
        command = [sys.executable, __file__, "--peak-memory", name]
        command += ["--shapes", str(MEMORY_SHAPE), "--device", device]
        # Or glibc keeps what was freed, tens of MiB, and not the same at each run.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        memories[name] = float(result.stdout)
        tick()
    return memories


def growth(rounds, seed, tick):
    """Returns `{axis: {contender: slope}}` and the cases behind them."""
    slopes, cases = {}, []
    for axis, sizes in GROWTH.items():
        row = []
        for size in sizes:
            shape = GROWTH_SHAPE._replace(**{axis: size})
            row.append(measure(shape, TRAINING, [BASELINE, DEFAULT], rounds, seed=seed))
            tick()
        slopes[axis] = {
            name: slope(sizes, [case["median_ms"][name] for case in row])
            for name in (BASELINE, DEFAULT)
        }
        cases += row
    return slopes, cases


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


def line(label, cells=()):
    """Returns a line of the table."""
    return (f"{label:<20}" + "".join(f"{cell:>12}" for cell in cells)).rstrip()


def table(cases, means):
    """Returns the cases of one mode as text, with a column for each shape."""
    lines = [line(f"== {cases[0]['mode']}")]
    for axis, sizes in enumerate(zip(*(case["shape"] for case in cases), strict=True)):
        lines.append(line(Shape._fields[axis], sizes))
    lines.append(line("rounds", [case["rounds"] for case in cases]))
    lines.append(
        line("LSTM, ms", [f"{case['median_ms'][BASELINE]:.2f} " for case in cases])
    )
    for kind, by_name in means.items():
        lines.append(line(kind, [""] * len(cases) + ["geom. mean"]))
        for name, mean in by_name.items():
            ratios = [case["ratios"][kind][name] for case in cases]
            cells = [f"{r['median']:.2f}{'=' if r['tie'] else ' '}" for r in ratios]
            lines.append(line(f"  {name}", [*cells, f"{mean:.2f} "]))
            cells = [f"{r['low']:.2f}-{r['high']:.2f}" for r in ratios]
            lines.append(line("", cells))
    return "\n".join(lines)


def other_tables(results):
    """Returns what is not measured over the grid as text."""
    lines = [f"== {TRACED_SHAPES} shapes (batch, time): traces, and seconds in all"]
    ways = list(results["traces"][BASELINE])
    lines.append(f"{'':<20}" + "".join(f"{way:>22}" for way in ways))
    for name, counts in results["traces"].items():
        cells = [
            f"{'' if traces is None else f'{traces},'} {time:.2f} s"
            for traces, time in counts.values()
        ]
        lines.append(f"{name:<20}" + "".join(f"{cell:>22}" for cell in cells))
    lines.append(f"\n== From the constructor to the first training step, {FIRST_SHAPE}")
    lines += [line(n, [f"{v:.2f} s"]) for n, v in results["first_result"].items()]
    if "peak_memory" in results:
        lines.append(f"\n== What 3 training steps add to the peak, {MEMORY_SHAPE}")
        lines += [line(n, [f"{v:.0f} MiB"]) for n, v in results["peak_memory"].items()]
        lines.append(f"\n== Growth of a training step, exponents, from {GROWTH_SHAPE}")
        lines.append(line("", GROWTH))
        for name in (BASELINE, DEFAULT):
            slopes = [by_name[name] for by_name in results["growth"].values()]
            lines.append(line(name, [f"{value:.2f}" for value in slopes]))
    lines.append("\n== cuDNN ops in the graphs that ran")
    ops = {}
    for case in results["cases"]:
        for name, found in case["cudnn_ops"].items():
            ops.setdefault(name, set()).add(", ".join(found) or "none")
    lines += [f"{name:<20}" + " or ".join(sorted(found)) for name, found in ops.items()]
    lines.append("\n== To reach (geometric means over the grid)")
    for target in results["targets"]:
        verdict = "reached" if target["reached"] else "missed"
        figure = f"{target['figure']:.3f} {target['bound']}"
        lines.append(f"{target['what']:<48}{figure:>16}  {verdict}")
    return "\n".join(lines)


def save_picture(path, cases, title):
    """Draws the speedup over the LSTM for each shape, one panel for each mode."""
    fig = Figure(figsize=(14, 10), layout="constrained")
    modes = list(map(str, (INFERENCE, TRAINING, FIT)))
    shown = [
        r
        for case in cases
        if case["mode"] in modes
        for r in case["ratios"][LSTM_OVER].values()
    ]
    limits = 0.93 * min(r["low"] for r in shown), 1.07 * max(r["high"] for r in shown)
    ticks = [t for t in TICKS if limits[0] < t < limits[1]]
    handles = {}
    for ax, mode in zip(
        fig.subplots(1, 3, sharex=True, sharey=True), modes, strict=True
    ):
        found = [case for case in cases if case["mode"] == mode]
        rows = np.arange(len(found))
        for name, (place, color, marker, face) in STYLES.items():
            ratios = [case["ratios"][LSTM_OVER].get(name) for case in found]
            if None in ratios:
                continue
            median, low, high = (
                np.array([r[key] for r in ratios]) for key in ("median", "low", "high")
            )
            handles[name] = ax.errorbar(
                median,
                rows + 0.8 * ((place + 0.5) / PLACES - 0.5),
                xerr=np.maximum([median - low, high - median], 0),
                color=color,
                marker=marker,
                markerfacecolor=face or color,
                markersize=6,
                linestyle="none",
            )
        for row in rows[1:]:
            ax.axhline(row - 0.5, color="0.85", linewidth=0.8)
        ax.axvline(1, color="k", linewidth=1)
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlim(*limits)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
        ax.set_title(mode)
        ax.set_xlabel("speedup over keras.layers.LSTM")
        ax.set_yticks(rows, [str(Shape(*case["shape"])) for case in found])
        ax.set_ylim(len(found) - 0.5, -0.5)
    fig.axes[0].set_ylabel("batch x time x features x units")
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    fig.suptitle(title, fontsize="medium")
    fig.savefig(path, dpi=120)


def machine():
    """Returns what the times depend on."""
    info = Path("/proc/cpuinfo")
    models = [
        text.partition(":")[2].strip()
        for text in (info.read_text().splitlines() if info.exists() else ())
        if text.startswith("model name")
    ]
    return {
        "cores": cores(),
        "cpu": (models or [platform.processor() or platform.machine()])[0],
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.get_visible_devices("GPU")
        ],
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "torch": torch and torch.__version__,
    }


def cores():
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def parse_args(argv):
    """Returns the options, or exits with what is wrong."""

    def shape(text):
        sizes = text.split("x")
        if len(sizes) != 4:
            raise argparse.ArgumentTypeError(f"expected BxTxFxU, got {text!r}")
        return Shape(*map(positive, sizes))

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="two shapes, fewer rounds, no extras")
    add(
        "--shapes",
        type=shape,
        nargs="+",
        metavar="BxTxFxU",
        help="batch x time x features x units to measure (default: the nine of GRID)",
    )
    add("--rounds", type=positive, help=f"of each case at most (default: {ROUNDS})")
    add("--seed", type=int, default=0, help="of data, weights and order (default: 0)")
    add(
        "--device",
        choices=("best", "cpu", "gpu"),
        default="best",
        help="where to measure (default: a GPU if there is one)",
    )
    add(
        "--output",
        type=Path,
        default=Path("out/bench.png"),
        help="PNG file, or folder for bench.png; the JSON file goes beside it "
        "(default: out/bench.png)",
    )
    add(
        "--peak-memory",
        choices=[*LAYERS, TORCH],
        metavar="CONTENDER",
        help="only print the MiB that training steps at the first shape add to the "
        "peak: how the benchmark itself measures them, each in a fresh process",
    )
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    args.shapes = args.shapes or (QUICK_GRID if args.quick else GRID)
    args.output = picture_path(parser, args.output, "bench.png")
    if args.device == "gpu" and not tf.config.list_physical_devices("GPU"):
        parser.error("--device gpu: TensorFlow finds no GPU")
    return args


def main(argv=None):
    """Runs the benchmark and returns what it writes into the JSON file."""
    args = parse_args(argv)
    start = time.perf_counter()
    if args.device == "cpu":
        # Not `tf.device`: Keras takes cuDNN's path wherever it sees a GPU.
        tf.config.set_visible_devices([], "GPU")
    if torch is not None:
        torch.set_num_threads(cores())
    if args.peak_memory:
        print_peak_memory(args.peak_memory, args.shapes[0])
        return None

    results = {
        "command": " ".join(
            ["benchmarks/bench.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "machine": machine(),
        "device": "GPU" if tf.config.list_logical_devices("GPU") else "CPU",
        "seed": args.seed,
        "rounds": args.rounds,
        "quick": args.quick,
    }
    for name, value in {**results, **results["machine"]}.items():
        if name != "machine":
            print(f"{name:<11}{value}")
    print("\n" + "\n".join(f"  {name:<18}{text}" for name, text in LEGEND.items()))

    modes = [
        (shape, mode)
        for shape in args.shapes
        for mode in (
            *(INFERENCE, TRAINING, FIT),
            *(EXTRA_MODES if shape in EXTRA_SHAPES and not args.quick else ()),
        )
    ]
    others = 2
    if not args.quick:
        others += len(FEW) + bool(torch) + sum(map(len, GROWTH.values()))
    with tqdm(total=len(modes) + others, unit="case") as bar:
        results["cases"] = cases = []
        for shape, mode in modes:
            bar.set_description(f"{shape} {mode}")
            steps = 1
            if mode == FIT:
                step = cases[-1]["median_ms"][BASELINE] / 1e3
                steps = min(64, max(3, math.ceil(FIT_SECONDS / step)))
            names = contenders(mode, args.quick)
            cases.append(measure(shape, mode, names, args.rounds, steps, args.seed))
            bar.update()
        bar.set_description("traces")
        results["traces"] = trace_counts(args.seed)
        bar.update()
        bar.set_description("first result")
        results["first_result"] = first_results(args.seed)
        bar.update()
        if not args.quick:
            bar.set_description("peak memory")
            results["peak_memory"] = peak_memories(args.device, bar.update)
            bar.set_description("growth")
            results["growth"], results["growth_cases"] = growth(
                min(args.rounds, GROWTH_ROUNDS), args.seed, bar.update
            )
    results["geometric_means"] = means = geometric_means(cases)
    results["targets"] = targets(cases, means, results["traces"])
    results["minutes"] = (time.perf_counter() - start) / 60

    print(
        f"\nMedians over the rounds of the ratio within a round; below it, the 10th to "
        f"the 90th percentile.\n= marks a tie: this spread crosses 1. Rounds: "
        f"{args.rounds}, and fewer where one takes over a second."
        + ("\nA quick run: few shapes and rounds, no extras." if args.quick else "")
    )
    for mode in means:
        found = [case for case in cases if case["mode"] == mode]
        print("\n" + table(found, means[mode]))
    print("\n" + other_tables(results))
    info = results["machine"]
    title = (
        f"Time of keras.layers.LSTM / time of the contender: median over up to "
        f"{args.rounds} rounds, bars from the 10th to the 90th percentile\n"
        f"{results['device']}; {info['cores']} cores, {info['cpu']}; TensorFlow "
        f"{info['tensorflow']}, Keras {info['keras']}, torch {info['torch']}"
    )
    save_picture(args.output, cases, title)
    data = args.output.with_suffix(".json")
    data.write_text(json.dumps(results, indent=1))
    print(f"\nIt took {60 * results['minutes']:.0f} s. Wrote {args.output} and {data}.")
    return results


if __name__ == "__main__":
    main()
