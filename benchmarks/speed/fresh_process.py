"""The measurements that each take a fresh process."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks.machine import peak_bytes
from benchmarks.speed.contenders import TRAINING, make_layer
from benchmarks.speed.fit import StepClock
from benchmarks.speed.runs import make_run
from benchmarks.speed.timing import Run

COMPILER = "XLA"
BUCKETS, BATCHES = 8, 50
SLOW_BATCH = 0.1  # seconds; a batch that is traced or compiled takes longer


def added_to_peak(name, shape, steps=3):
    """Returns by how many MiB the first training steps raise the peak of memory.

    For `COMPILER`, the steps are calls of a compiled function of a single scalar.
    """
    if name == COMPILER:
        x = tf.zeros(())
        run = Run(partial(tf.function(lambda x: tf.tanh(x), jit_compile=True), x))
    else:
        run = make_run(name, shape, TRAINING)
    before = peak_bytes()
    for _ in range(steps):
        run.do()
    return (peak_bytes() - before) / 2**20


def bucketed_fit(name, shape, seed=0):
    """Returns the times of `fit` on batches of several lengths, at most `shape.time`.

    The first batch and the first epoch are timed from the constructor of the layer on.
    A slow batch took more than `SLOW_BATCH` longer than in the second epoch.
    """
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    lengths = rng.permutation(
        shape.time * (1 + np.arange(BATCHES) % BUCKETS) // BUCKETS
    )
    batches = [
        (
            rng.standard_normal((shape.batch, length, shape.features), "float32"),
            rng.standard_normal((shape.batch, 1), "float32"),
        )
        for length in lengths
    ]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            tf.TensorSpec((None, None, shape.features)),
            tf.TensorSpec((None, 1)),
        ),
    ).apply(tf.data.experimental.assert_cardinality(BATCHES))
    clock = StepClock()
    start = time.perf_counter()
    layer = make_layer(name, shape.units)
    model = keras.Sequential(
        [keras.Input((None, shape.features)), layer, keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[clock])
    first, second = np.array(clock.epochs)
    return {
        "first batch": first[0, 1] - start,
        "first epoch": first[-1, 1] - start,
        "second epoch": second[-1, 1] - second[0, 0],
        "slow batches": int(np.sum(np.diff(first - second) > SLOW_BATCH)),
    }


MEASUREMENTS = {"peak-memory": added_to_peak, "bucketed-fit": bucketed_fit}


def in_fresh_process(what, name, shape, device):
    """Returns one of `MEASUREMENTS` of a contender, taken in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed", f"--{what}", name]
    command += ["--shapes", str(shape), "--device", device]
    environment = dict(os.environ)
    if what == "peak-memory":
        # Otherwise glibc keeps tens of MiB of freed memory, more or less at each run.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    return json.loads(result.stdout)
