"""Random layers, initial states and calls, valid and invalid ones."""

import keras
import numpy as np
from keras import ops

import models
from backends import BACKEND, WIDEST
from keras_init_lstm import Conditional, Fixed, Sampled, Trainable
from oracles import ACTIVATIONS, TOLERANCES, nested, to_numpy
from strategies import FUSIBLE

NAMES = ("LSTM", "LSTM", "LSTM", "GRU", "SimpleRNN", "stacked", "custom")
# Few pairs of features and units, batch sizes and timesteps: XLA compiles for each.
SIZES, BATCHES, TIMESTEPS = ((1, 1), (2, 3)), (0, 1, 1, 3, 3, 3), (1, 2, 2, 9)
# Slow ways are drawn less often. Only TensorFlow has "graph", "unknown shapes" and
# "compiled"; the other backends call the layer eagerly instead.
WAYS = ("eager",) * 90 + ("graph",) * 4 + ("unknown shapes",) * 2
WAYS += ("compiled", "predict", "predict", "predict eagerly")
# JAX has float64 only with an option that changes other defaults too.
DTYPES = [dtype for dtype in TOLERANCES if dtype != "float64" or dtype == WIDEST]


class Draw:
    """Random choices, and the names of the arguments that were drawn invalid."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.wrong = set()

    def of(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, probability):
        return self.rng.random() < probability

    def wrongly(self, name, *options):
        self.wrong.add(name)
        return self.of(*options)

    def numbers(self, *shape):
        """An array or tensor of a random dtype."""
        dtype = self.of("float32", "float32", "float64", "float16", "int32")
        array = np.asarray(self.rng.normal(size=shape)).astype(dtype)
        return ops.convert_to_tensor(array) if self.chance(0.3) else array


def entry(draw, units, dtype):
    """A function that makes an entry of `initial_state`, for any units if `None`."""
    if draw.chance(0.07):
        return wrong_entry(draw, units or 1, dtype)
    value = numbers = draw.numbers(*draw.of((), (units,)) if units else ())
    value = draw.of(value, to_numpy(value).tolist(), "ones", keras.initializers.Ones())
    spread = abs(draw.rng.normal())
    regularizer, constraint = draw.of(None, "l2"), draw.of(None, "unit_norm")
    options = {
        "distribution": draw.of("normal", "truncated_normal", "uniform"),
        "learned": draw.of(True, False, "mean", "stddev"),
        "at_inference": draw.of("mean", "sample"),
        "seed": draw.of(None, 7),
    }
    return draw.of(
        *[lambda: None, lambda: "zeros", lambda: "fixed", lambda: "trainable"],
        *[lambda: "sampled", lambda: numbers, lambda: numbers, lambda: Fixed(value)],
        lambda: Trainable(value, regularizer, constraint),
        lambda: Sampled(numbers, spread, **options),
        *[lambda: Conditional(models.encoder(units))] * bool(units),
    )


def wrong_entry(draw, units, dtype):
    """A function that makes an invalid entry, in the function or in the layer."""
    bad = [np.nan, -np.inf, True, 1j, object(), [], {}, b"1", "ten", {"class_name": 3}]
    bad += [np.full(units, np.nan), np.ones(units + 1), np.ones((1, units)), [[1], "a"]]
    bad += [np.array(["a"] * units), np.array([None] * units), np.ones(units, bool)]
    bad = draw.of(*bad, *[1e300] * (dtype != "float64"))
    made = {
        "initial_state": [bad, "ones", Fixed, keras.initializers.Ones()],
        "value": [lambda: Fixed(bad), lambda: Fixed(None)],
        "initializer": [lambda: Trainable(bad), lambda: Trainable(None)],
        "mean": [lambda: Sampled(bad), lambda: Sampled("ones")],
        "stddev": [lambda: Sampled(0, bad), lambda: Sampled(0.5, -1)],
        "distribution": [lambda: Sampled(distribution=bad)],
        "learned": [lambda: Sampled(learned=1), lambda: Sampled(learned=None)],
        "at_inference": [lambda: Sampled(at_inference=bad)],
        "seed": [lambda: Sampled(seed="x"), lambda: Sampled(seed=0.5)],
        "regularizer": [lambda: Trainable(regularizer="nope")],
        "constraint": [lambda: Trainable(constraint="nope")],
        "encoder": [
            lambda: Conditional(bad),
            lambda: Conditional(keras.layers.Dense(units + 1)),
        ],
    }
    name = draw.of(*made)
    made = draw.wrongly(name, *made[name])
    return (lambda: made) if name == "initial_state" else made


def initial_state(draw, sizes, dtype):
    """A function that makes the argument `initial_state` of a layer."""
    if draw.chance(0.3):
        units = set(keras.tree.flatten(sizes))
        return entry(draw, units.pop() if len(units) == 1 else None, dtype)
    if draw.chance(0.03):
        wrong = [[None] * (len(sizes) + 1), {"h0": 0.5}, {}, [[[0.5]], [[0.5]]]]
        wrong += [np.ones((len(sizes), 7)), [*sizes, "zeros"], [Fixed(1), [Fixed(1)]]]
        given = draw.wrongly("initial_state", *wrong)
        return lambda: given

    def unambiguous(make):  # Two Python numbers could be meant for two units.
        made = make()
        return np.float64(made) if type(made) in (int, float) else made

    makers = keras.tree.map_structure(lambda units: entry(draw, units, dtype), sizes)
    return lambda: keras.tree.map_structure(unambiguous, makers)


def arguments_of(draw, name, units):
    """The arguments of a layer except `initial_state`."""
    options = {
        "units": [units],
        "activation": ["tanh"] * 12 + list(ACTIVATIONS),
        "recurrent_activation": ["sigmoid"] * 12 + list(ACTIVATIONS),
        "dropout": [0, 0, 0.3],
        "recurrent_dropout": [0, 0, 0.3],
        "stateful": [False, False, True],
        "unroll": [False, False, True],
        "dtype": ["float32", "float32", *DTYPES],
        "seed": [int(draw.rng.integers(2**31))],
    }
    flags = ["use_bias", "return_sequences", "return_state", "go_backwards"]
    flags += ["zero_output_for_mask"]
    if name in ("LSTM", "GRU"):
        options |= {"implementation": [1, 2], "use_cudnn": [False, "auto"]}
        flags.append({"LSTM": "unit_forget_bias", "GRU": "reset_after"}[name])
    if name == "SimpleRNN":
        del options["recurrent_activation"]
    if name in FUSIBLE:
        options["use_fused"] = ["auto", "auto", True, False]
    options |= {flag: [True, False] for flag in flags}
    arguments = {argument: draw.of(*values) for argument, values in options.items()}
    if arguments.get("implementation") == 1:
        arguments["use_cudnn"] = False  # Keras fails to prepare its dropout for cuDNN.
    return arguments


def mask_of(draw, batch, timesteps, stateful):
    """A mask of any kind, or `None`."""
    if draw.chance(0.5):
        return None
    mask = draw.rng.random((batch, timesteps)) < 0.6
    steps = np.arange(timesteps) + 0 * mask
    mask = draw.of(mask, mask, steps < 2, steps >= 1, mask & False)
    if draw.chance(0.1) and timesteps:  # Keras accepts some of these masks.
        shapes = [mask[:1], mask[..., None], mask[:, :1], mask[:, 1:], mask.any(axis=1)]
        # Keras broadcasts one row to two, which don't fit into a stream.
        shapes += [np.tile(mask, (2, 1))] * (not stateful)
        return draw.of(*shapes, mask.tolist(), "x", 1.0)
    dtype = draw.of("bool", "bool", "bool", "int32", "float32", "uint8")
    return draw.of(np.asarray, ops.convert_to_tensor)(mask.astype(dtype))


def reset_mask_of(draw, layer, batch, timesteps, training):
    """A reset mask of any kind, or `None`."""
    cells = getattr(layer.cell, "cells", [layer.cell])
    drops = any(
        getattr(c, "dropout", 0) + c.recurrent_dropout
        for c in cells
        if hasattr(c, "recurrent_dropout")
    )
    # With dropout, each piece would draw another dropout mask.
    if draw.chance(0.7) or (training and drops) or not batch * timesteps:
        return None
    marks = draw.rng.random((batch, timesteps)) < draw.of(0.1, 0.4)
    if draw.chance(0.1):
        bad = [marks[:, 1:], marks[1:], marks[..., None], np.tile(marks, (1, 2))]
        bad += [marks.astype("float32"), marks.astype(str), [[True], [True, False]]]
        return draw.wrongly("reset_mask", *bad, "x", True, object(), {"x": marks})
    marks = draw.of(marks, marks, marks | True, marks & False, marks.any(axis=1))
    if draw.chance(0.1):
        return marks.tolist()
    dtype = draw.of("bool", "bool", "int32", "uint8")
    return draw.of(np.asarray, ops.convert_to_tensor)(marks.astype(dtype))


def states_of(draw, layer, batch):
    """Explicit states in place of some or all owned states."""
    units = layer.state_units
    states = [draw.of(None, *[draw.numbers(batch, size)] * 3) for size in units]
    if draw.chance(0.05):
        return draw.wrongly("initial_state", [*states, None], {}, "x", 0.5, (), [[[]]])
    if draw.chance(0.15):
        k = draw.rng.integers(len(states))
        shapes = [(batch, units[k] + 1), (batch + 1, units[k]), units[k], (batch, 1, 1)]
        bad = [*map(np.ones, shapes), 0.5, "zeros", object(), {"h": 1}]
        states[k] = draw.wrongly("initial_state", *bad)
    return nested(layer, states)


def call_of(draw, layer, batch, features):
    """A way to call a layer, the sequences, and the other arguments."""
    starts_right, draw.wrong = not draw.wrong, set()
    stream = keras.tree.flatten(layer.states or [])
    batch = right = stream[0].shape[0] if stream else batch
    if draw.chance(0.04):
        batch = draw.of(*BATCHES)
        if stream and batch != right:
            draw.wrong.add("batch size")
    timesteps = 0 if draw.chance(0.02) else draw.of(*TIMESTEPS)
    x = to_numpy(draw.numbers(batch, timesteps, features))
    x = x.astype("float32") if x.dtype.kind == "i" else x
    if draw.chance(0.25) and x.size:  # The value must not affect other rows.
        step = draw.rng.integers(batch), draw.rng.integers(timesteps)
        x[step] = draw.of(np.nan, np.nan, np.inf, -np.inf)
    kwargs = {"training": draw.of(True, False, None)}
    kwargs["mask"] = mask_of(draw, batch, timesteps, layer.stateful)
    if layer.takes_context:
        kwargs["context"] = draw.rng.normal(size=(batch, 2)).astype("float32")
    if draw.chance(0.05) and starts_right and not draw.wrong:  # Keras accepts some.
        odd = [x[..., 0], x > 0, (x > 0).astype(int), x.tolist(), None, [x, x]]
        # A cell may accept more axes, but a stream does not.
        odd += [x[..., None]] * (not layer.stateful)
        x = draw.of(*odd, "text", object(), np.float32(1), {"x": x}, [])
        return draw.of(*WAYS[:94]), x, kwargs
    reset_mask = reset_mask_of(draw, layer, batch, timesteps, kwargs["training"])
    if reset_mask is not None:
        kwargs["reset_mask"] = reset_mask
        # Keras's unrolled loop puts zeros at the wrong timesteps, and on PyTorch it
        # can't reverse a mask.
        reverses = layer.go_backwards and BACKEND == "torch"
        is_wrong = layer.unroll and (layer.zero_output_for_mask or reverses)
        # A mask of another shape can't be cut into pieces.
        if is_wrong or np.shape(kwargs["mask"]) != (batch, timesteps):
            kwargs["mask"] = None
    if draw.chance(0.25):
        kwargs["initial_state"] = states_of(draw, layer, batch)
    elif draw.chance(0.06):
        bad = ["x", object(), 0.5, np.ones((batch + 1, 2)), [[1, 2], [3]], [None]]
        bad += [None] * layer.takes_context
        kwargs["context"] = draw.wrongly("context", *bad)
    elif layer.takes_context and draw.chance(0.2) and batch:
        kwargs["context"] = kwargs["context"].tolist()
    way = draw.of(*WAYS[: 94 if draw.wrong else None])
    if way == "unknown shapes" and (layer.stateful or not layer.built):
        way = "eager"  # Keras can't do it with unknown shapes.
    if "predict" in way and layer.compute_dtype == "float64":
        way = "eager"  # Keras would cast the inputs to float32.
    return way, ops.convert_to_tensor(x) if draw.chance(0.3) else x, kwargs
