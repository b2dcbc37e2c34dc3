"""Who takes part in the benchmark, and what each of them does once."""

import time
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from explicit_state import ExplicitState
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from timing import Run

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
    """What is done with a layer, how TensorFlow runs it, and what layer it is."""

    action: str  # "inference", "training step" or "fit"
    way: str = "function"  # or "eager" or "XLA"
    return_sequences: bool = True
    cell: str = "LSTM"  # of CELLS

    def __str__(self):
        way = "" if self.way == "function" else f", {self.way}"
        last = "" if self.return_sequences else ", last output"
        cell = "" if self.cell == "LSTM" else f", {self.cell}"
        return self.action + way + last + cell


class Cell(NamedTuple):
    """The layers around one kind of cell."""

    keras: Any
    ours: Any
    torch: str | None  # The name in `torch.nn` of the one that computes the same.


CELLS = {
    "LSTM": Cell(keras.layers.LSTM, InitStateLSTM, "LSTM"),
    "GRU": Cell(keras.layers.GRU, InitStateGRU, "GRU"),
    "GRU(reset_after=False)": Cell(
        partial(keras.layers.GRU, reset_after=False),
        partial(InitStateGRU, reset_after=False),
        None,
    ),
    "SimpleRNN": Cell(keras.layers.SimpleRNN, InitStateSimpleRNN, "RNN"),
}

INFERENCE, TRAINING, FIT = Mode("inference"), Mode("training step"), Mode("fit")
FAMILY_MODES = tuple(
    mode._replace(cell=cell)
    for cell in list(CELLS)[1:]
    for mode in (INFERENCE, TRAINING)
)

BASELINE, CONTROL = "Keras", "Keras again"
EXPLICIT, TORCH, TORCH_LOOP = "explicit state", "torch", "torch loop"
KINDS = ("fixed", "sampled", "trainable")
FUSED, DEFAULT = "fused", "auto"
OURS = {
    # These run Keras's own loop, so that all they may cost is owning the state.
    **{kind: {"initial_state": kind, "use_fused": False} for kind in KINDS},
    FUSED: {"initial_state": "trainable", "use_fused": True},
    DEFAULT: {"initial_state": "trainable"},
}
LAYERS = (BASELINE, CONTROL, EXPLICIT, *OURS)
# One kind of state stands for all where each more would cost too much time.
FEW = (BASELINE, EXPLICIT, "trainable", DEFAULT)
CONTENDERS = (*LAYERS, *((TORCH, TORCH_LOOP) if torch else ()))
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


def fastest(mode):
    """Returns the contender of ours that is to be fast in a mode."""
    # With few timesteps, `auto` leaves inference to Keras's loop.
    return FUSED if mode.action == "inference" else DEFAULT


def make_layer(name, units, cell="LSTM", **options):
    """Returns the layer of a contender."""
    if name == EXPLICIT:
        return ExplicitState(units, **options)
    if name in OURS:
        return CELLS[cell].ours(units, **OURS[name], **options)
    return CELLS[cell].keras(units, **options)


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
    # By hand there is no layer around the two weights, whose call would cost.
    return call_run(layer, layer.call if name == EXPLICIT else layer, mode, x)


def on_gpu():
    """Returns whether TensorFlow uses a GPU."""
    return bool(tf.config.list_logical_devices("GPU"))


class StepClock(keras.callbacks.Callback):
    """A clock that runs only during the steps of `fit`, which grow with the data.

    `epochs` has for each epoch when each of its batches began and ended.

    What comes before them costs some 0.04 s, whoever trains. After them tf.data ends
    the thread that tunes its pipeline. On some calls this waits until the thread wakes
    up, at 0.34 s, at 0.66 s and so on: an epoch of 0.5 s then takes 0.66 s.
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
        """Returns how long the clock has run."""
        return sum(batches[-1][1] - batches[0][0] for batches in self.epochs)


def fit_run(layer, x, y, batch):
    """Returns the run of an epoch of `fit`."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    clock = StepClock()

    def fit():
        model.fit(x, y, batch, epochs=1, verbose=0, callbacks=[clock])

    return Run(fit, clock=clock.seconds)


def call_run(layer, call, mode, x):
    """Returns the run of a call of a layer, in training with all gradients."""
    x = tf.constant(x)

    def infer(x):
        return call(x)

    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(call(x, training=True)))
        return loss, tape.gradient(loss, layer.trainable_variables)

    function = infer if mode.action == "inference" else train
    graph = None
    if mode.way != "eager":
        function = tf.function(function, jit_compile=mode.way == "XLA" or None)
        graph = partial(function.get_concrete_function, x)

    def run():
        result = function(x)
        if mode.action != "inference":
            return result[0].numpy()
        # On a CPU the call itself waits. To read a part of the result would take longer
        # than a small layer.
        if on_gpu():
            tf.test.experimental.sync_devices()
        return None

    return Run(run, graph=graph)


def torch_run(shape, mode, x, y):
    """Returns the run of the same in torch."""
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
        start = [state.expand(1, len(x), -1).contiguous() for state in states]
        outputs, _ = rnn(x, start if count > 1 else start[0])
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
