"""Many short sequences in a batch, and many streams: their times.

The sequences are as long as the functions of the Python standard library have lines.
Every ratio is of times taken side by side, as in `python -m benchmarks.speed`.
"""

import ast
import json
import sysconfig
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.command import make_parser
from benchmarks.machine import machine
from benchmarks.speed.contenders import (
    DEFAULT,
    INFERENCE,
    LARGE,
    LONG,
    MIDDLING,
    TINY,
    TRAINING,
    make_layer,
)
from benchmarks.speed.runs import call_run
from benchmarks.speed.timing import Run, ratio, take_turns
from keras_init_lstm.streams import StreamStore, pack, with_states_as_inputs

FEATURES, UNITS, ROW = 16, 64, 128
SHAPES = (TINY, MIDDLING, LONG, LARGE)  # of a batch in which no row restarts
PLAIN, RESET = "without reset_mask", "reset_mask without a mark"
PACKED, PADDED, ALONE = "packed, reset_mask", "padded, mask", "one call for each"
BUCKETED, BUCKETS = "bucketed by length, mask", (8, 16, 32, 64, ROW)
STORE = "StreamStore, 64 a call"


def lengths_of_functions(count):
    """The lengths in lines of the first functions that fit into a row."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                found += [length] if length <= ROW else []
        if len(found) >= count:
            break
    return found[:count]


def built_layer(features, units):
    """A layer that learns its states, with the loop that `use_fused` chooses."""
    layer = make_layer(DEFAULT, units, return_sequences=True)
    layer.build((None, None, features))
    return layer


def without_a_mark(shape, mode):
    """The runs of a batch without a reset."""
    layer = built_layer(shape.features, shape.units)
    x = tf.random.normal((shape.batch, shape.time, shape.features))
    none = tf.zeros((shape.batch, shape.time), "bool")
    return {
        PLAIN: call_run(layer, layer, mode, x),
        RESET: call_run(layer, layer, mode, x, reset_mask=none),
    }


def short_sequences(count, mode):
    """The runs of as many functions, and the part of each array that is filled."""
    rng = np.random.default_rng(0)
    sequences = [
        rng.standard_normal((length, FEATURES), "float32")
        for length in lengths_of_functions(count)
    ]
    layer = built_layer(FEATURES, UNITS)
    packed, mask, reset_mask = pack(sequences, timesteps=ROW)
    padded, padded_mask = padded_to(ROW, sequences)
    buckets = [padded_to(max(map(len, each)), each) for each in bucketed(sequences)]
    of_buckets = [call_run(layer, layer, mode, x, mask=read) for x, read in buckets]
    runs = {
        PACKED: call_run(layer, layer, mode, packed, mask=mask, reset_mask=reset_mask),
        PADDED: call_run(layer, layer, mode, padded, mask=padded_mask),
        BUCKETED: Run(lambda: [run.do() for run in of_buckets]),
    }
    if mode == INFERENCE:
        alone = [tf.constant(sequence[None]) for sequence in sequences]
        runs[ALONE] = Run(lambda: [layer(sequence) for sequence in alone])
    filled = {
        PACKED: float(mask.mean()),
        PADDED: float(padded_mask.mean()),
        BUCKETED: padded_mask.sum() / sum(read.size for _, read in buckets),
    }
    return runs, filled


def padded_to(timesteps, sequences):
    """A batch with a row for each sequence, and its mask."""
    padded = np.zeros((len(sequences), timesteps, FEATURES), "float32")
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = np.array(list(map(len, sequences)))
    return padded, np.arange(timesteps) < lengths[:, None]


def bucketed(sequences):
    """Lists of the sequences of similar lengths, without empty ones."""
    buckets = [[] for _ in BUCKETS]
    for sequence in sequences:
        buckets[np.searchsorted(BUCKETS, len(sequence))].append(sequence)
    return [bucket for bucket in buckets if bucket]


def many_streams(count, at_once=64):
    """The runs that advance streams by one timestep each."""
    layers = [keras.Input((None, FEATURES)), built_layer(FEATURES, UNITS)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 1, FEATURES), "float32")
    store = StreamStore(model)
    for begin in range(0, count, 1000):
        store(range(begin, begin + 1000), x[begin : begin + 1000])
    step_model, initial_states = with_states_as_inputs(model)
    states = dict.fromkeys(range(count), initial_states)

    def of_store():
        ids = rng.choice(count, at_once, replace=False)
        store(ids, x[ids])

    def of_each():
        for k in rng.choice(count, at_once, replace=False):
            _, *states[k] = step_model.predict_on_batch([x[k : k + 1], *states[k]])

    return {STORE: Run(of_store), ALONE: Run(of_each)}


def measure(runs, rounds):
    """Milliseconds of each run, and the ratio of each time to the time of the first."""
    _, times = take_turns(runs, rounds)
    first, *others = runs
    return {
        "median_ms": {name: 1e3 * float(np.median(times[name])) for name in runs},
        "ratios": {name: ratio(times[name], times[first]) for name in others},
    }


def main(argv=None):
    """Measures, prints the table, and returns and writes what was measured."""
    parser = make_parser("speed.sequences", __doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer sequences, streams and rounds"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out/sequences.md"),
        help="Markdown file; a JSON file goes next to it (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    rounds, count, streams = (3, 40, 1000) if args.quick else (15, 512, 10_000)
    found = {}
    for mode in (INFERENCE, TRAINING):
        for shape in SHAPES[:1] if args.quick else SHAPES:
            found[f"{mode}, {shape}"] = measure(without_a_mark(shape, mode), rounds)
        runs, filled = short_sequences(count, mode)
        found[f"{mode}, {count} functions"] = measure(runs, rounds)
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
    """The results as Markdown."""
    lines = [
        "# Packed sequences and many streams",
        "",
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
