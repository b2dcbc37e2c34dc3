"""A random layer and its calls, each compared with the layer of Keras.

Each call must equal a call of Keras's layer with the same states; with a reset mask, it
must equal the calls with the pieces of each row, one by one. A wrong argument must
raise an error that names it, and change nothing.
"""

import collections
import random
import re
import traceback
import types

import keras
import numpy as np

import keras_init_lstm
import models
from backends import BACKEND
from benchmarks.fuzz.calls import ERRORS, attempt, run
from benchmarks.fuzz.draws import (
    BATCHES,
    NAMES,
    SIZES,
    Draw,
    arguments_of,
    call_of,
    initial_state,
)
from keras_init_lstm import Sampled
from oracles import TOLERANCES, by_pieces, flat, nested, tiled_states, to_numpy


class BrokenRuleError(Exception):
    """Raised with the kind of the failure, and what was seen."""


def unnamed(warned, layer):
    """Warnings of Keras without the name and the class of the layer."""
    name = f"'{layer.name}' (of type {type(layer).__name__})"
    return {text.replace(name, "") for text in warned}


def fail(kind, seen):
    """Raises a `BrokenRuleError`."""
    if isinstance(seen, Exception):
        seen = "".join(traceback.format_exception(seen)[-5:])
    raise BrokenRuleError(kind, seen)


class Case:
    """A layer and its calls, drawn from a seed."""

    def __init__(self, seed):
        random.seed(seed)  # Keras draws seeds that are not given from it.
        self.draw = draw = Draw(seed)
        self.name, (self.features, units) = draw.of(*NAMES), draw.of(*SIZES)
        self.batch = draw.of(*BATCHES)
        self.arguments = arguments_of(draw, self.name, units)
        sizes = models.state_size(self.name, units)
        self.make = initial_state(draw, sizes, self.arguments["dtype"])
        self.outcomes, self.wrong = collections.Counter(), draw.wrong
        self.carried = self.call = None

    def check(self):
        """Raises a `BrokenRuleError` if the case breaks the rule."""
        self.layer, error, warned = attempt(
            lambda: models.recurrent(
                keras_init_lstm,
                self.name,
                {**self.arguments, "initial_state": self.make()},
            )
        )
        self.expect_no(warned)
        self.wrong = wrong = self.draw.wrong
        if error is not None:
            self.expect_refusal(error)
            return
        if wrong - {"encoder"}:  # Its size is checked at the first call.
            fail("accepted what is wrong", sorted(wrong))
        arguments = {k: v for k, v in self.arguments.items() if k != "use_fused"}
        arguments |= {"stateful": False, "return_state": True}
        self.reference = models.recurrent(keras.layers, self.name, arguments)
        arguments |= {"return_sequences": True, "dropout": 0, "recurrent_dropout": 0}
        self.of_pieces = models.recurrent(keras.layers, self.name, arguments)
        if self.draw.chance(0.6) and not wrong:
            shape = (self.batch, None, self.features)
            self.layer.build(shape, context_shape=(self.batch, 2))
            shapes = [weight.shape for weight in self.layer.cell.weights]
            weights = [self.draw.rng.normal(0, 0.5, shape) for shape in shapes]
            self.layer.cell.set_weights(weights)
        for _ in range(3 if self.layer.stateful else 2):
            self.call = call_of(self.draw, self.layer, self.batch, self.features)
            self.wrong = wrong | self.draw.wrong
            if not self.check_call(*self.call):
                return
            if self.draw.chance(0.2):
                self.layer.reset_state()
                self.carried = None

    def check_call(self, way, x, kwargs):
        """Checks one call, and returns whether others can come after it."""
        layer, training = self.layer, kwargs["training"] and "predict" not in way
        drawn = [
            isinstance(kind, Sampled) and (training or kind.at_inference == "sample")
            for kind in layer.initial_state
        ]
        if any(drawn) and way == "compiled":
            way = "graph"  # XLA draws other numbers.
        if any(drawn) and not self.wrong:
            # Make the generators, so that their first state is known.
            context = kwargs.get("context", "x")
            layer.get_initial_state(len(context), context=kwargs.get("context"))
        before, was_built = self.generators(), layer.built
        got, error, warned = attempt(run, way, layer, x, kwargs)
        if "use_fused=True" in str(error) and self.may_refuse_fused(
            way, x, kwargs, training
        ):
            self.wrong = self.wrong | {"use_fused"}
        if self.wrong:
            if error is None:
                fail("accepted what is wrong", sorted(self.wrong))
            self.expect_refusal(error)
            if BACKEND == "jax" and "predict" in way:
                return False  # Where `predict` fails, Keras leaves no variable a value.
            if not all(map(np.array_equal, before, self.generators())):
                fail("refused, but drew", error)
            # Where a first trace fails, TensorFlow leaves variables without a value.
            return "encoder" not in self.wrong and (was_built or way == "eager")
        of_keras = {"mask": kwargs["mask"], "training": kwargs["training"]}
        if layer.built:
            if not was_built:
                self.features = np.shape(x)[-1]
            self.reference.build((None, None, self.features))
            self.of_pieces.build((None, None, self.features))
        if error is None:
            self.reference.set_weights(flat(layer.cell.weights))
            self.of_pieces.set_weights(flat(layer.cell.weights))
            states, restart_states = self.states(x, kwargs, training, drawn, before)
            of_keras["initial_state"] = nested(layer, states)
        want, theirs, their_warnings = attempt(run, way, self.reference, x, of_keras)
        if theirs is not None:
            # Without a bias, Keras takes no empty batch; the fused loop does.
            if not error and np.size(x):
                fail("accepted what Keras refuses", theirs)
            if error and not isinstance(error, (ValueError, TypeError, type(theirs))):
                fail("another exception", error)
            self.outcomes["refused as by Keras"] += 1
            return False
        if error is not None:
            fail("refused what Keras takes", error)
        self.expect_no(unnamed(warned, layer) - unnamed(their_warnings, self.reference))
        if "reset_mask" in kwargs:
            want = self.by_pieces(want, x, kwargs, states, restart_states)
        if layer.stateful:
            self.carried = flat(layer.states)
            self.expect_close(self.carried, flat(want)[1:], way)
        self.expect_same(got, want if layer.return_state else want[0], way)
        self.outcomes["agreed"] += 1
        self.outcomes["agreed with pieces"] += "reset_mask" in kwargs
        return True

    def sampled(self):
        kinds = self.layer.initial_state
        return [kind for kind in kinds if isinstance(kind, Sampled) and kind.built]

    def generators(self):
        return [to_numpy(kind.seed_generator.state) for kind in self.sampled()]

    def states(self, x, kwargs, training, drawn, before):
        """The initial states of a call, and the states of rows that restart.

        Each state is an array `(batch, units)`, and `(batch, timesteps, units)`.
        """
        layer, context = self.layer, kwargs.get("context")
        may_restart, timesteps = "reset_mask" in kwargs, np.shape(x)[1]
        array = None if context is None else np.asarray(context, "float32")
        states = keras.tree.flatten(tiled_states(layer, len(x), array))
        restart_states = [
            np.repeat(state[:, None], timesteps, axis=1) for state in states
        ]
        if any(drawn):
            after = self.generators()
            for kind, state in zip(self.sampled(), before, strict=True):
                kind.seed_generator.state.assign(state)
            shown = flat(layer.get_initial_state(len(x), training, context))
            for i in np.flatnonzero(drawn) if may_restart else ():
                kind, size = layer.initial_state[i], (len(x), timesteps)
                restart_states[i] = to_numpy(
                    kind.by_timestep(*size, training=bool(training))
                )
            is_known = may_restart or "initial_state" not in kwargs
            if is_known and not np.array_equal(after, self.generators()):
                fail("drew more or less than once", [before, after])
            for kind, state in zip(self.sampled(), after, strict=True):
                kind.seed_generator.state.assign(state)
            states = [shown[i] if drawn[i] else s for i, s in enumerate(states)]
        explicit = kwargs.get("initial_state") or nested(layer, [None] * len(states))
        explicit = keras.tree.flatten(explicit)
        pairs = zip(explicit, self.carried or states, strict=True)
        states = [state if given is None else given for given, state in pairs]
        return states, restart_states

    def by_pieces(self, want, x, kwargs, states, restart_states):
        """What the layer of Keras returns for the pieces of each row, one by one.

        In the structure of `want`, its result for rows that do not restart.
        """
        reset_mask, mask, x = kwargs["reset_mask"], kwargs["mask"], to_numpy(x)
        marks = np.array(to_numpy(reset_mask), bool)
        states, first = list(map(to_numpy, states)), 0
        if self.layer.go_backwards:
            first = -1
        if marks.ndim == 1:
            pairs = zip(restart_states, states, strict=True)
            rows = marks[:, None]
            states = [np.where(rows, new[:, first], state) for new, state in pairs]
            marks = np.zeros(x.shape[:2], bool)
        given = types.SimpleNamespace(inputs=x, mask=mask)
        outputs, *states = by_pieces(
            given,
            self.of_pieces,
            marks,
            states,
            lambda row, timestep: [state[row, timestep] for state in restart_states],
        )
        if not self.layer.return_sequences:
            outputs = outputs[:, -1]
        return keras.tree.pack_sequence_as(want, [outputs, *states])

    def may_refuse_fused(self, way, x, kwargs, training):
        """Whether the fused loop does not support the call."""
        arguments = self.arguments
        return arguments.get("use_fused") is True and (
            self.backend_may_refuse(x, training)
            or arguments["unroll"]
            or np.shape(kwargs["mask"]) not in ((), np.shape(x)[:2])
            or (way == "unknown shapes" and kwargs["mask"] is not None)
            or not str(getattr(x, "dtype", "")).startswith(("float", "<dtype: 'float"))
        )

    def backend_may_refuse(self, x, training):
        """Whether the fused loop of the backend does not support these options."""
        arguments = self.arguments
        activations = (
            arguments["activation"],
            arguments.get("recurrent_activation", "sigmoid"),
        )
        if BACKEND == "tensorflow":
            return "elu" in activations
        drops = arguments["recurrent_dropout"] or (
            arguments["dropout"] and arguments.get("implementation") == 1
        )
        native = [("tanh", "sigmoid")]
        native += [("relu", "sigmoid")] * (self.name == "SimpleRNN")
        return (
            BACKEND == "jax"
            or not arguments.get("reset_after", True)
            or not np.size(x)
            or activations not in native
            or (training and drops)
        )

    def expect_same(self, got, want, way):
        skeletons = [keras.tree.map_structure(lambda _: 0, y) for y in (got, want)]
        if skeletons[0] != skeletons[1]:
            fail("another structure", skeletons)
        got, want = flat(got), flat(want)
        forms = [[(y.dtype, y.shape) for y in each] for each in (got, want)]
        if forms[0] != forms[1]:
            fail("another dtype or shape", forms)
        self.expect_close(got, want, way)

    def expect_close(self, got, want, way):
        tolerance = TOLERANCES[self.arguments["dtype"]]
        if self.layer.takes_context:  # Its encoder has its own dtype policy.
            tolerance = max(tolerance, TOLERANCES["float32"])
        elif (
            way == "eager"
            and not self.arguments.get("use_fused")
            and "reset_mask" not in self.call[2]
        ):
            tolerance = 0.0
        for a, b in zip(got, want, strict=True):
            a, b = a.astype("float64"), b.astype("float64")
            scale = max([1.0, *np.abs(b[np.isfinite(b)])])
            if not np.allclose(a, b, tolerance, tolerance * scale, equal_nan=True):
                fail("another value", f"{a}\n{b}")

    def expect_no(self, warned):
        if warned:
            fail("a warning", "\n".join(warned))

    def expect_refusal(self, error):
        """Checks the type of an error, and that it names a wrong argument."""
        if not isinstance(error, ERRORS):
            fail("another exception", error)
        if not any(re.search(rf"\b{name}\b", str(error)) for name in self.wrong):
            fail("an error that does not name the argument", error)
        self.outcomes["refused"] += 1
