"""What each contender does once, as a run that can be timed."""

import time
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from benchmarks.speed.contenders import (
    CELLS,
    EXPLICIT,
    TORCH,
    TORCH_LOOP,
    make_layer,
)
from benchmarks.speed.timing import Run

try:
    import torch
except ImportError:
    torch = None


def make_run(name, shape, mode, steps=1, seed=0):
    """Returns the run of a contender, which traces and compiles in its first call.

    Args:
        name: Of the contender.
        shape: The sizes of a batch and of the layer.
        mode: What is done.
        steps: How many batches `fit` goes through.
        seed: Of the data and the weights.
    """
    rng = np.random.default_rng(seed)
    x, y = (
        rng.standard_normal((shape.batch * steps, shape.time, size), "float32")
        for size in (shape.features, 1)
    )
    if name in (TORCH, TORCH_LOOP):
        torch.manual_seed(seed)
        return torch_run(shape, mode, x, y)
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


class StepClock(keras.callbacks.Callback):
    """A clock that runs only during the steps of `fit`.

    `epochs` has, for each epoch, the times at which each batch began and ended.

    The work of `fit` before the first step takes about 0.04 s for every contender.
    After the last step, tf.data ends the thread that tunes its pipeline. In some calls
    this waits until the thread wakes up, at 0.34 s, at 0.66 s and so on: an epoch of
    0.5 s then takes 0.66 s.
    """

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.epochs[-1].append([time.perf_counter()])

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1][-1].append(time.perf_counter())

    def seconds(self):
        """Returns for how many seconds the clock has run."""
        return sum(batches[-1][1] - batches[0][0] for batches in self.epochs)


def fit_run(layer, x, y, batch):
    """Returns the run of an epoch of `fit`."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    clock = StepClock()

    def fit():
        model.fit(x, y, batch, epochs=1, verbose=0, callbacks=[clock])

    return Run(fit, clock=clock.seconds)


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


def torch_run(shape, mode, x, y):
    """Returns the run of the corresponding layer of PyTorch."""
    layer = getattr(torch.nn, CELLS[mode.cell].torch)
    device = "cuda" if on_gpu() and torch.cuda.is_available() else "cpu"
    rnn = layer(shape.features, shape.units, batch_first=True).to(device)
    dense = torch.nn.Linear(shape.units, 1).to(device)
    count = 2 if mode.cell == "LSTM" else 1
    states = [torch.zeros(shape.units, device=device) for _ in range(count)]
    x, y = (torch.from_numpy(array).to(device) for array in (x, y))
    weights = [*rnn.parameters(), *(state.requires_grad_() for state in states)]
    optimizer = torch.optim.Adam([*weights, *dense.parameters()])

    def call(x):
        tiled = [state.expand(1, len(x), -1).contiguous() for state in states]
        outputs, _ = rnn(x, tiled if count > 1 else tiled[0])
        return outputs if mode.return_sequences else outputs[:, -1]

    def infer():
        with torch.no_grad():
            call(x)
        if device == "cuda":
            torch.cuda.synchronize()

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

    return Run({"inference": infer, "training step": train, "fit": fit}[mode.action])
