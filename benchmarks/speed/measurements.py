"""All measurements of a plan: times, traces, fits, memory and growth."""

import time

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from benchmarks.speed.contenders import (
    BASELINE,
    DEFAULT,
    EXPLICIT,
    FIT,
    FUSED,
    KINDS,
    OURS,
    TORCH,
    TORCH_LOOP,
    TRAINING,
    make_layer,
)
from benchmarks.speed.fit import fit_steps
from benchmarks.speed.fresh_process import in_fresh_process
from benchmarks.speed.graphs import count_traces, cudnn_ops
from benchmarks.speed.runs import make_run
from benchmarks.speed.timing import MIN_SECONDS, ratio, slope, timed_case

# The kinds of ratios: Keras's time divided by each contender's, and so on.
KERAS_OVER, OVER_EXPLICIT, TORCH_OVER = "Keras / ...", "... / explicit", "torch / ..."


def run_all(plan):
    """Returns all measurements of a plan, as they go into the JSON file."""
    cases = []
    results = {"cases": cases}
    planned = [(shape, mode) for shape in plan.shapes for mode in plan.modes(shape)]
    total = len(planned) + 1 + len(plan.memory_cases())  # with the traces
    total += len(plan.bucket_contenders) * plan.bucket_repetitions
    total += sum(map(len, plan.growth.values()))
    with tqdm(total=total, unit="case") as bar:
        for shape, mode in planned:
            bar.set_description(f"{shape} {mode}")
            names, steps = plan.names(mode), 1
            if mode == FIT:  # The last case is the training step of the same shape.
                steps = fit_steps(cases[-1], plan.fit_seconds)
            cases.append(
                measure(
                    shape, mode, names, plan.rounds, steps, plan.seed, plan.min_seconds
                )
            )
            bar.update()
        bar.set_description("traces")
        results["traces"] = trace_counts(plan)
        bar.update()
        if plan.bucket_contenders:
            bar.set_description("bucketed fit")
            results["bucketed_fit"] = bucketed_fits(plan, bar.update)
        if plan.memory_cases():
            bar.set_description("peak memory")
            results["peak_memory"] = peak_memories(plan, bar.update)
        if plan.growth:
            bar.set_description("growth")
            results["growth"], results["growth_cases"] = growth(plan, bar.update)
    return results


def measure(shape, mode, names, rounds, steps=1, seed=0, min_seconds=MIN_SECONDS):
    """Returns the case as it goes into the JSON file, with the times of each round.

    The times are in seconds for one call, or one step of `fit`.

    Args:
        shape: The sizes of a batch and of the layer.
        mode: The mode of the case.
        names: The names of the contenders, the baseline first.
        rounds: The largest number of rounds.
        steps: The number of batches of `fit`.
        seed: The seed of the data, the weights and the order.
        min_seconds: The least time of one timing of the baseline.
    """
    runs = {name: make_run(name, shape, mode, steps, seed) for name in names}
    case = {
        "shape": list(shape),
        "mode": str(mode),
        **timed_case(runs, rounds, steps, seed, min_seconds),
        "cudnn_ops": {
            name: cudnn_ops(run.graph()) for name, run in runs.items() if run.graph
        },
    }
    case["ratios"] = ratios(case["seconds"])
    # The models and graphs of this case would slow down the next.
    del runs
    keras.backend.clear_session()
    return case


def ratios(times):
    """Returns `{kind of ratio: {contender: ratio}}` of the times of a case."""
    ours = [name for name in times if name in OURS]
    pairs = {KERAS_OVER: [(name, BASELINE, name) for name in times if name != BASELINE]}
    if EXPLICIT in times:
        pairs[OVER_EXPLICIT] = [(name, name, EXPLICIT) for name in ours]
    for torch_name in (TORCH, TORCH_LOOP):
        if torch_name in times:
            fastest = [name for name in (FUSED, DEFAULT) if name in times]
            pairs[TORCH_OVER] = [(name, torch_name, name) for name in fastest]
    return {
        kind: {name: ratio(times[over], times[under]) for name, over, under in found}
        for kind, found in pairs.items()
    }


def trace_counts(plan, features=4, units=8):
    """Returns `{contender: {way: [traces, seconds]}}` over many different shapes.

    In eager mode the benchmark traces nothing: the time shows what a layer compiles.
    """
    pairs = np.random.default_rng(plan.seed).choice(
        256, plan.traced_shapes, replace=False
    )
    shapes = [(1 + pair // 16, 1 + pair % 16, features) for pair in pairs.tolist()]
    any_shape = tf.TensorSpec([None, None, features])
    counts = {}
    for name in (BASELINE, EXPLICIT, *KINDS, DEFAULT):
        layer = make_layer(name, units, return_sequences=True)
        layer.build((None, None, features))
        layer(tf.zeros((2, 2, features)))
        start = time.perf_counter()
        for shape in shapes:
            layer(tf.zeros(shape))
        counts[name] = {
            "eager": (None, time.perf_counter() - start),
            "reduce_retracing": count_traces(layer, shapes, reduce_retracing=True),
            "input_signature": count_traces(layer, shapes, input_signature=[any_shape]),
        }
    return counts


def peak_memories(plan, tick):
    """Returns `{contender: {shape: MiB}}`."""
    memories = {}
    for name, shape in plan.memory_cases():
        mib = in_fresh_process("peak-memory", name, shape, plan.device)
        memories.setdefault(name, {})[str(shape)] = mib
        tick()
    return memories


def bucketed_fits(plan, tick):
    """Returns the times of each repetition and their ratios, by what is timed."""
    names = plan.bucket_contenders
    rng = np.random.default_rng(plan.seed)
    found = {name: [] for name in names}
    for _ in range(plan.bucket_repetitions):
        for name in rng.permutation(names).tolist():
            times = in_fresh_process(
                "bucketed-fit", name, plan.bucket_shape, plan.device
            )
            found[name].append(times)
            tick()
    measured = {}
    for what in found[BASELINE][0]:
        values = {name: [times[what] for times in found[name]] for name in names}
        measured[what] = {"values": values}
        if what != "slow batches":
            measured[what]["ratios"] = ratios(values)
    return measured


def growth(plan, tick):
    """Returns `{axis: {contender: slope}}` and the cases behind them."""
    names, rounds = (BASELINE, DEFAULT), min(plan.rounds, plan.growth_rounds)
    slopes, cases = {}, []
    for axis, sizes in plan.growth.items():
        row = []
        for size in sizes:
            shape = plan.growth_shape._replace(**{axis: size})
            row.append(
                measure(shape, TRAINING, names, rounds, 1, plan.seed, plan.min_seconds)
            )
            tick()
        slopes[axis] = {
            name: slope(sizes, [case["median_ms"][name] for case in row])
            for name in names
        }
        cases += row
    return slopes, cases
