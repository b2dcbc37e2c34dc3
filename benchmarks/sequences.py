"""Many short sequences in a batch, and many streams: the cost and gain of both.

The sequences are as long as the functions of the Python standard library have lines.
Every ratio is of times taken side by side, as in `bench.py`.
"""

import argparse
import ast
import json
import os
import sysconfig
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_init_lstm import InitStateLSTM
from keras_init_lstm.streams import StreamStore, pack, with_states_as_inputs
from machine import machine
from timing import Run, ratio, take_turns

FEATURES, UNITS, ROW = 16, 64, 128
# Batch, timesteps, features, units, of a batch in which no row restarts.
SHAPES = ((8, 20, 5, 32), (32, 100, 32, 128), (1, 1000, 16, 64), (32, 50, 256, 512))
PLAIN, RESET = "without reset_mask", "reset_mask without a mark"
PACKED, PADDED, ALONE = "packed, reset_mask", "padded, mask", "one call for each"
STORE = "StreamStore, 64 a call"


def lengths_of_functions(count):
    """The numbers of lines of the first functions that fit into a row."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                found += [length] if length <= ROW else []
        if len(found) >= count:
            break
    return found[:count]


def function_of(layer, training, **given):
    """A call of a layer, in training with all gradients, as a compiled function."""

    def call(x, **given):
        if not training:
            return layer(x, **given)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x, training=True, **given)))
        return loss, tape.gradient(loss, layer.trainable_variables)

    x = given.pop("x")
    return partial(tf.function(call), x, **given)


def waited_for(call):
    """A run that waits for the loss, where there is one."""

    def do():
        result = call()
        if isinstance(result, tuple):
            result[0].numpy()

    return Run(do)


def make_layer(features, units):
    """A layer that learns its states, with the loop that `use_fused` chooses."""
    layer = InitStateLSTM(units, initial_state="trainable", return_sequences=True)
    layer.build((None, None, features))
    return layer


def without_a_mark(shape, training):
    """The runs of a batch in which no row restarts."""
    batch, timesteps, features, units = shape
    layer = make_layer(features, units)
    x = tf.random.normal((batch, timesteps, features))
    none = tf.zeros((batch, timesteps), "bool")
    return {
        PLAIN: waited_for(function_of(layer, training, x=x)),
        RESET: waited_for(function_of(layer, training, x=x, reset_mask=none)),
    }


def short_sequences(count, training):
    """The runs of functions of the standard library, and how full the arrays are."""
    rng = np.random.default_rng(0)
    sequences = [
        rng.standard_normal((length, FEATURES), "float32")
        for length in lengths_of_functions(count)
    ]
    layer = make_layer(FEATURES, UNITS)
    x, mask, reset_mask = map(tf.constant, pack(sequences, ROW))
    of_packed = {"x": x, "mask": mask, "reset_mask": reset_mask}
    padded = np.zeros((len(sequences), ROW, FEATURES), "float32")
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = np.array(list(map(len, sequences)))
    of_padded = {"x": tf.constant(padded), "mask": np.arange(ROW) < lengths[:, None]}
    runs = {
        PACKED: waited_for(function_of(layer, training, **of_packed)),
        PADDED: waited_for(function_of(layer, training, **of_padded)),
    }
    if not training:
        alone = [tf.constant(sequence[None]) for sequence in sequences]
        runs[ALONE] = Run(lambda: [layer(one) for one in alone])
    filled = {PACKED: float(np.mean(mask)), PADDED: float(np.mean(of_padded["mask"]))}
    return runs, filled


def many_streams(count, at_once=64):
    """The runs that advance streams by one timestep each."""
    layers = [keras.Input((None, FEATURES)), make_layer(FEATURES, UNITS)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 1, FEATURES), "float32")
    store = StreamStore(model)
    for begin in range(0, count, 1000):
        store(range(begin, begin + 1000), x[begin : begin + 1000])
    one, start = with_states_as_inputs(model)
    states = dict.fromkeys(range(count), start)

    def of_store():
        ids = rng.choice(count, at_once, replace=False)
        store(ids, x[ids])

    def of_each():
        for k in rng.choice(count, at_once, replace=False):
            _, *states[k] = one.predict_on_batch([x[k : k + 1], *states[k]])

    return {STORE: Run(of_store), ALONE: Run(of_each)}


def measure(runs, rounds):
    """Milliseconds of each, and how often as fast the first is as the others."""
    _, times = take_turns(runs, rounds)
    first, *others = runs
    return {
        "median_ms": {name: 1e3 * float(np.median(times[name])) for name in runs},
        "ratios": {name: ratio(times[name], times[first]) for name in others},
    }


def main(argv=None):
    """Measures, prints the table, and returns and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out/sequences.md"),
        help="Markdown file; a JSON file goes beside it (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    rounds, count, streams = (3, 40, 1000) if args.quick else (15, 512, 10_000)
    found = {}
    for training in (False, True):
        action = "training step" if training else "inference"
        for shape in SHAPES[:1] if args.quick else SHAPES:
            what = f"{action}, {'x'.join(map(str, shape))}"
            found[what] = measure(without_a_mark(shape, training), rounds)
        runs, filled = short_sequences(count, training)
        found[f"{action}, {count} functions"] = measure(runs, rounds)
    found[f"one timestep of 64 of {streams} streams"] = measure(
        many_streams(streams), rounds
    )
    results = {"machine": machine(), "filled": filled, "cases": found}
    text = table(results)
    print(text)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text + "\n")
    args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def table(results):
    """What was measured as Markdown."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in results["machine"].items()),
        "",
        "Of the arrays are filled: "
        + ", ".join(f"{name} {part:.0%}" for name, part in results["filled"].items()),
        "",
        "| case | | ms | times as long as the first |",
        "|---|---|---|---|",
    ]
    for what, case in results["cases"].items():
        for name, ms in case["median_ms"].items():
            times = ""
            if name in case["ratios"]:
                times = "{median:.2f} ({low:.2f} to {high:.2f})".format(
                    **case["ratios"][name]
                )
            lines.append(f"| {what} | {name} | {ms:.3g} | {times} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
