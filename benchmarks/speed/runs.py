"""What each contender does once, as a run that can be timed."""

from functools import partial
from importlib.util import find_spec

import keras
import numpy as np
import tensorflow as tf

from benchmarks.speed.contenders import EXPLICIT, TORCH, TORCH_LOOP, make_layer
from benchmarks.speed.fit import fit_run
from benchmarks.speed.timing import Run

if find_spec("torch"):
    import torch

    from benchmarks.speed.torch_layer import torch_run
else:
    torch = None


def make_run(name, shape, mode, steps=1, seed=0):
    """Returns the run of a contender, which traces and compiles in its first call.

    Args:
        name: The name of the contender.
        shape: The sizes of a batch and of the layer.
        mode: The mode of the case.
        steps: The number of batches of `fit`.
        seed: The seed of the data and the weights.
    """
    rng = np.random.default_rng(seed)
    x, y = (
        rng.standard_normal((shape.batch * steps, shape.time, size), "float32")
        for size in (shape.features, 1)
    )
    if name in (TORCH, TORCH_LOOP):
        torch.manual_seed(seed)
        device = "cuda" if on_gpu() and torch.cuda.is_available() else "cpu"
        return torch_run(shape, mode, x, y, device)
    keras.utils.set_random_seed(seed)
    options = {"return_sequences": mode.return_sequences}
    if mode.way == "XLA" and on_gpu():
        options["use_cudnn"] = False  # XLA cannot compile the op.
    layer = make_layer(name, shape.units, mode.cell, **options)
    if mode.action == "fit":
        return fit_run(layer, x, y, shape.batch)
    layer.build(x.shape)
    # In a model written by hand, no extra layer is called around the two weights.
    return call_run(layer, layer.call if name == EXPLICIT else layer, mode, x)


def on_gpu():
    """Returns whether TensorFlow uses a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


def call_run(layer, call, mode, x, **masks):
    """Returns the run of a call of a layer, in training with all gradients."""
    x, masks = tf.constant(x), {name: tf.constant(masks[name]) for name in masks}

    def infer(x, **masks):
        return call(x, **masks)

    def train(x, **masks):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(call(x, training=True, **masks)))
        return loss, tape.gradient(loss, layer.trainable_variables)

    function = infer if mode.action == "inference" else train
    graph = None
    if mode.way != "eager":
        function = tf.function(function, jit_compile=mode.way == "XLA" or None)
        graph = partial(function.get_concrete_function, x, **masks)

    def run():
        result = function(x, **masks)
        if mode.action != "inference":
            return result[0].numpy()
        # On a CPU the call itself waits. To read a part of the result would take longer
        # than a small layer.
        if on_gpu():
            tf.test.experimental.sync_devices()
        return result

    return Run(run, graph=graph)
