"""Who takes part in the benchmark, at which sizes and in which modes."""

from argparse import ArgumentTypeError
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import keras

from benchmarks.command import positive
from benchmarks.speed.explicit_state import ExplicitState
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN


class Shape(NamedTuple):
    """Sizes of a case."""

    batch: int
    time: int
    features: int
    units: int

    def __str__(self):
        return "x".join(map(str, self))


def parse_shape(text):
    """Returns the shape that an argument of the command line names."""
    sizes = text.split("x")
    if len(sizes) != 4:
        raise ArgumentTypeError(f"expected BxTxFxU, got {text!r}")
    return Shape(*map(positive, sizes))


GRID = (
    Shape(32, 5, 10, 128),
    Shape(16, 10, 20, 64),
    Shape(8, 20, 5, 32),
    Shape(32, 20, 8, 64),
    Shape(32, 100, 32, 128),
    Shape(64, 200, 64, 256),
    Shape(1, 1000, 16, 64),
    Shape(256, 50, 32, 128),
    Shape(32, 50, 256, 512),
)
TINY, MIDDLING, LARGE, LONG = GRID[2], GRID[4], GRID[8], GRID[6]


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
    torch: str | None  # The name of the equivalent layer in `torch.nn`.


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
    # These run Keras's own loop: they measure only the cost of owning the state.
    **{kind: {"initial_state": kind, "use_fused": False} for kind in KINDS},
    FUSED: {"initial_state": "trainable", "use_fused": True},
    DEFAULT: {"initial_state": "trainable"},
}
LAYERS = (BASELINE, CONTROL, EXPLICIT, *OURS)
# Who takes part where all layers would take too much time.
FEW = (BASELINE, EXPLICIT, "trainable", DEFAULT)
CONTENDERS = (*LAYERS, *((TORCH, TORCH_LOOP) if find_spec("torch") else ()))
LEGEND = {
    BASELINE: "keras.layers.LSTM without a state; the others are relative to it",
    CONTROL: "a second identical layer: where it differs from 1, the machine is noisy",
    EXPLICIT: "the same with two learned weights, tiled to the batch by hand",
    **{k: f'InitStateLSTM(initial_state="{k}", use_fused=False)' for k in KINDS},
    FUSED: 'InitStateLSTM(initial_state="trainable", use_fused=True)',
    DEFAULT: 'InitStateLSTM(initial_state="trainable"): use_fused="auto"',
    TORCH: "torch.nn.LSTM with learned h0, c0, expanded to the batch",
    TORCH_LOOP: "in place of `fit`: the same model in a hand-written loop, with Adam",
}


def fastest(mode):
    """Returns our contender that the targets of a mode apply to."""
    # With few timesteps, `auto` leaves inference to Keras's loop.
    return FUSED if mode.action == "inference" else DEFAULT


def make_layer(name, units, cell="LSTM", **options):
    """Returns the layer of a contender."""
    if name == EXPLICIT:
        return ExplicitState(units, **options)
    if name in OURS:
        return CELLS[cell].ours(units, **OURS[name], **options)
    return CELLS[cell].keras(units, **options)
