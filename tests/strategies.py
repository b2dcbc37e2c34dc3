"""Hypothesis strategies for layers, initial states and batches."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import keras_init_lstm
import models
from backends import BACKEND, FUSES, LOOP, WIDEST
from keras_init_lstm import Conditional, Fixed, Trainable
from oracles import ACTIVATIONS, TOLERANCES, assert_same, flat, tiled_states

DTYPES = ("mixed_bfloat16", "mixed_float16", *sorted({"float32", WIDEST}))
KINDS = ("zeros", "fixed", "sampled", "trainable")
ALL_KINDS = (*KINDS, "conditional")
# An LSTM is drawn more often than each of the other layers.
LAYERS = ("LSTM", "LSTM", "GRU", "SimpleRNN", "stacked", "custom")
FUSIBLE = ("LSTM", "GRU", "SimpleRNN")
FAMILY = {
    **{name: {"layers": [name], "use_fused": False} for name in FUSIBLE},
    **{f"fused {name}": {"layers": [name], "use_fused": True} for name in FUSIBLE},
    **{name: {"layers": [name]} for name in ("stacked", "custom")},
}
CONTEXT_FEATURES = 2

# JAX and PyTorch take long for each new shape.
FEW_SIZES = {"batch": [1, 3], "timesteps": [1, 4], "features": [2], "units": [1, 3]}
if BACKEND == "tensorflow":
    SIZES = {"batch": range(1, 6), "timesteps": range(1, 7)}
    SIZES |= {"features": range(1, 4), "units": range(1, 5)}
    # The fused loop rounds batch sizes and timesteps up to a few sizes.
    SIZES_OF_FUSED = {**SIZES, **{of: FEW_SIZES[of] for of in ("features", "units")}}
else:
    SIZES = SIZES_OF_FUSED = FEW_SIZES


def sizes(of, is_fused=False):
    return st.sampled_from((SIZES_OF_FUSED if is_fused else SIZES)[of])


def at_most(examples, **kwargs):
    """Limits the examples of a slow test. A profile may have fewer."""
    examples = min(examples, settings.default.max_examples)
    return settings(max_examples=examples, **kwargs)


seeds = st.integers(0, 2**31 - 1)
values = st.floats(-1, 1, width=32)


def arrays(*shape, elements=values):
    size = int(np.prod(shape))
    return st.lists(elements, min_size=size, max_size=size).map(
        lambda drawn: np.reshape(np.array(drawn, "float64"), shape)
    )


def entries(units, kinds=KINDS):
    """Any entry of `initial_state`."""
    initializers = st.one_of(
        st.sampled_from(["zeros", "ones"]),
        values,
        arrays(units),
        seeds.map(lambda seed: keras.initializers.RandomUniform(-1, 1, seed=seed)),
    )
    spread = st.floats(0, 1, width=32)
    dense = st.builds(
        keras.layers.Dense,
        st.just(units),
        use_bias=st.booleans(),
        activation=st.sampled_from([None, "tanh"]),
        kernel_initializer=seeds.map(
            lambda seed: keras.initializers.RandomUniform(-1, 1, seed=seed)
        ),
    )
    by_kind = {
        "zeros": st.sampled_from([None, "zeros"]),
        "fixed": st.one_of(
            st.just("fixed"),
            values,
            arrays(units),
            arrays(units).map(lambda a: a.astype("float32")),
            initializers.map(Fixed),
        ),
        "sampled": st.one_of(
            st.just("sampled"),
            st.builds(
                models.sampled,
                mean=values | arrays(units),
                stddev=spread | arrays(units, elements=spread),
                distribution=st.sampled_from(["normal", "truncated_normal", "uniform"]),
                learned=st.sampled_from([False, True, "mean", "stddev"]),
                at_inference=st.just("mean"),
                seed=st.none() | seeds,
            ),
        ),
        "trainable": st.one_of(
            st.just("trainable"),
            st.builds(
                Trainable,
                initializers,
                regularizer=st.sampled_from([None, "l2"]),
                constraint=st.sampled_from([None, "non_neg", "unit_norm"]),
            ),
        ),
        "conditional": dense.map(Conditional),
    }
    return st.one_of([by_kind[kind] for kind in kinds])


def initial_states(state_size, kinds=KINDS):
    """An entry for each state, nested as `state_size`, or one entry for all."""
    if isinstance(state_size, int):
        return entries(state_size, kinds)

    def may_be_one_entry(given):  # Two numbers, say, and two units in each state.
        return all(isinstance(entry, float) for entry in given) and all(
            size == len(given) for size in state_size
        )

    nested = st.tuples(*(initial_states(size, kinds) for size in state_size))
    nested = nested.filter(lambda given: not may_be_one_entry(given))
    either = st.one_of(nested, nested.map(list))
    units = keras.tree.flatten(state_size)
    if len(set(units)) == 1:
        either |= entries(units[0], kinds)
    if "conditional" in kinds:
        encoders = st.builds(
            models.encoder_of, st.just(units), seeds, st.just(CONTEXT_FEATURES)
        )
        either |= encoders.map(lambda encoder: Conditional(encoder, all_states=True))
    return either


@st.composite
def masks(draw, batch, timesteps):
    """No mask, or a mask with padding right or left, with holes, or without True."""
    lengths = np.array(
        draw(st.lists(st.integers(0, timesteps), min_size=batch, max_size=batch))
    )
    steps = np.arange(timesteps)
    holed = draw(
        st.lists(st.booleans(), min_size=batch * timesteps, max_size=batch * timesteps)
    )
    return draw(
        st.sampled_from(
            [
                None,
                steps < lengths[:, None],
                steps >= lengths[:, None],
                np.reshape(holed, (batch, timesteps)),
                np.zeros((batch, timesteps), bool),
            ]
        )
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """The arguments of a layer, and a batch for it."""

    name: str
    arguments: dict
    initial_state: object
    inputs: np.ndarray
    mask: np.ndarray | None
    context: np.ndarray

    @property
    def batch(self):
        return len(self.inputs)

    @property
    def units(self):
        return self.arguments["units"]

    @property
    def tolerance(self):
        tolerance = TOLERANCES[self.arguments["dtype"]]
        entries = keras.tree.flatten(self.initial_state)
        if any(isinstance(entry, Conditional) for entry in entries):
            # The encoders have the dtype policy float32.
            return max(tolerance, TOLERANCES["float32"])
        return tolerance

    @property
    def misplaces_zeros(self):
        """Whether Keras puts zeros at other timesteps than the masked ones.

        Its unrolled loops use the mask before it is reversed, and on JAX no mask.
        """
        if self.mask is None or not self.arguments["zero_output_for_mask"]:
            return False
        is_out_of_order = self.arguments["go_backwards"] or BACKEND == "jax"
        return self.arguments["unroll"] and is_out_of_order

    @property
    def goes_both_ways(self):
        """Whether Keras can run it backwards. On PyTorch, it can't reverse a mask."""
        fails = self.arguments["unroll"] and self.mask is not None
        return BACKEND != "torch" or not fails

    def assert_same(self, got, expected):
        """Asserts bit-identical results, except for the fused loop, which rounds."""
        fused = self.arguments.get("use_fused")
        assert_same(got, expected, self.tolerance if fused else 0)

    def layer(self, **kwargs):
        """The layer under test, built, with random weights."""
        arguments = {**self.arguments, "initial_state": self.initial_state, **kwargs}
        layer = models.recurrent(keras_init_lstm, self.name, arguments)
        layer.build(self.inputs.shape, context_shape=self.context.shape)
        rng = np.random.default_rng(self.arguments["seed"])
        weights = layer.cell.weights
        layer.cell.set_weights([rng.normal(0, 0.5, w.shape) for w in weights])
        return layer

    def reference(self, layer, **kwargs):
        """The layer of Keras with the same arguments and weights."""
        arguments = {**self.arguments, **kwargs}
        arguments.pop("use_fused", None)
        reference = models.recurrent(keras.layers, self.name, arguments)
        reference.build(self.inputs.shape)
        reference.set_weights(flat(layer.cell.weights))
        return reference

    def rows(self, rows):
        """The same case with other rows of the batch."""
        mask = None if self.mask is None else self.mask[rows]
        of_rows = {"inputs": self.inputs[rows], "context": self.context[rows]}
        return dataclasses.replace(self, mask=mask, **of_rows)

    def call(self, layer, **kwargs):
        """Calls a layer with the batch, and with the context if it takes one."""
        if getattr(layer, "takes_context", False):
            kwargs["context"] = self.context
        if self.mask is not None:
            kwargs["mask"] = self.mask
        return layer(self.inputs, **kwargs)

    def states(self, layer):
        return tiled_states(layer, self.batch, self.context)


@st.composite
def cases(draw, kinds=KINDS, dtypes=DTYPES, dropout=True, layers=("LSTM",), **fixed):
    """Cases with any configuration of the layers; `fixed` sets arguments."""
    name = draw(st.sampled_from(layers))
    is_fused = fixed.get("use_fused")
    if is_fused is None and name in FUSIBLE:
        is_fused = draw(st.booleans()) and FUSES
    units = draw(sizes("units", is_fused))
    shape = [draw(sizes(of, is_fused)) for of in ("batch", "timesteps", "features")]
    arguments = {
        "units": units,
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "recurrent_activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "use_bias": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0, 0.3])) if dropout else 0,
        "recurrent_dropout": draw(st.sampled_from([0, 0.3])) if dropout else 0,
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "unroll": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "dtype": draw(st.sampled_from([d for d in dtypes if d in DTYPES])),
        "seed": draw(seeds),
        **fixed,
    }
    if name in FUSIBLE:
        arguments["use_fused"] = is_fused
    if name == "GRU":
        arguments["reset_after"] = draw(st.booleans())
        if arguments.get("use_fused") and not LOOP.resets_before:
            arguments["reset_after"] = True
    if name in ("GRU", "stacked") and BACKEND == "jax":
        # Without a bias, a GRU of Keras makes float32 of what has 16 bits.
        arguments["use_bias"] |= arguments["dtype"].startswith("mixed")
    if arguments.get("use_fused"):
        cell = "simple_rnn" if name == "SimpleRNN" else name
        # A layer finds only Keras's activations by their names.
        pairs = [p for p in LOOP.activations_of(cell) if ACTIVATIONS.keys() >= set(p)]
        pair = draw(st.sampled_from(pairs))
        arguments |= dict(
            zip(("activation", "recurrent_activation"), pair, strict=True)
        )
        arguments["unroll"] = False
        if not LOOP.drops:
            arguments["recurrent_dropout"] = 0
        elif name != "SimpleRNN":
            arguments["implementation"] = draw(st.sampled_from([1, 2]))
            # Keras fails to prepare the dropout of the first for cuDNN.
            arguments["use_cudnn"] = False
    if name == "SimpleRNN":
        del arguments["recurrent_activation"]
    rng = np.random.default_rng(draw(seeds))
    case = Case(
        name=name,
        arguments=arguments,
        initial_state=draw(initial_states(models.state_size(name, units), kinds)),
        inputs=rng.normal(size=shape).astype("float32"),
        mask=draw(masks(*shape[:2])),
        context=rng.normal(size=(shape[0], CONTEXT_FEATURES)).astype("float32"),
    )
    assume(case.goes_both_ways or not arguments["go_backwards"])
    return case


def for_each_layer(*args, examples=None, **kwargs):
    """Runs a test for cases of each layer, as `@given(cases(...))`.

    If the layer was drawn too, some layers would rarely be tested. `examples` is the
    number of cases for each layer in a slow test, unless a profile has more.
    """
    share = settings.default.max_examples // 10
    examples = max(3, share) if examples is None else max(examples, share // 2)

    def decorate(test):
        takes_data = "data" in inspect.signature(test).parameters
        names = [name for name in FAMILY if FUSES or not name.startswith("fused")]

        @pytest.mark.parametrize("name", names)
        @settings(max_examples=examples)
        @given(data=st.data())
        def run(self, name, data):
            options = {**FAMILY[name], **kwargs}
            case = data.draw(cases(*args, **options))
            test(self, case, data) if takes_data else test(self, case)

        return run

    return decorate
