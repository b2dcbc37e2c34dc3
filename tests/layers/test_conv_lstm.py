"""The layers that own the initial state of a ConvLSTM."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import layers

import keras_init_lstm
from backends import BACKEND, in_a_fresh_process, tf
from exports import on_onnx
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateBidirectional,
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateLSTM,
    Sampled,
    Trainable,
    with_initial_state,
)
from keras_init_lstm.adaptation import estimate_initial_state, train_only_initial_state
from keras_init_lstm.plots import plot_initial_state
from keras_init_lstm.streams import (
    StreamStore,
    as_stateful,
    get_states,
    reset_states,
    set_states,
    with_states_as_inputs,
)
from models import PerRow, normal, with_weights
from oracles import assert_same, by_pieces, flat, to_numpy
from strategies import ALL_KINDS, DTYPES, at_most, entries, masks, seeds, values

BATCH, TIMESTEPS, CHANNELS, FILTERS = 3, 4, 2, 3
SPACES = {1: (5,), 2: (4, 3), 3: (3, 3, 4)}
# For tests of one layer: the images, and the shape of the state.
X, STATE = normal(BATCH, TIMESTEPS, 5, 4, CHANNELS), (4, 3, FILTERS)


def uniform(shape, low=-1.0):
    """Any array of this shape."""
    return seeds.map(lambda seed: np.random.default_rng(seed).uniform(low, 1, shape))


def full_encoder(shape):
    """An encoder of a value for each filter at each position."""
    initializer = keras.initializers.RandomUniform(-1, 1, seed=1)
    arguments = {"kernel_initializer": initializer, "bias_initializer": initializer}
    dense = layers.Dense(int(np.prod(shape)), **arguments)
    return keras.Sequential([dense, layers.Reshape(shape)])


def entries_with_space(shape, filters):
    """Any entry of `initial_state`, with a value for each filter or each position."""
    either = values | uniform(filters) | uniform(shape)
    spread = st.floats(0, 1, width=32) | uniform(filters, 0.0) | uniform(shape, 0.0)
    random = seeds.map(lambda seed: keras.initializers.RandomUniform(-1, 1, seed=seed))
    return st.one_of(
        entries(filters, ALL_KINDS),
        uniform(shape),
        st.builds(Fixed, either | random, per_position=st.just(True)),
        st.builds(Trainable, either | random, per_position=st.just(True)),
        st.builds(Sampled, either, spread, per_position=st.just(True)),
        st.builds(lambda: Conditional(full_encoder(shape))),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """The arguments of a layer, and a batch for it."""

    rank: int
    arguments: dict
    initial_state: object
    inputs: np.ndarray
    mask: np.ndarray | None
    context: np.ndarray

    def layer(self, **kwargs):
        """The layer under test, built, with random weights."""
        cls = getattr(keras_init_lstm, f"InitStateConvLSTM{self.rank}D")
        arguments = {**self.arguments, "initial_state": self.initial_state, **kwargs}
        layer = cls(FILTERS, 2, **arguments)
        layer.build(self.inputs.shape, context_shape=self.context.shape)
        return with_random_cell(layer)

    def reference(self, layer, **kwargs):
        """The layer of Keras with the same arguments and weights."""
        cls = getattr(layers, f"ConvLSTM{self.rank}D")
        reference = cls(FILTERS, 2, **{**self.arguments, **kwargs})
        reference.build(self.inputs.shape)
        reference.set_weights(flat(layer.cell.weights))
        return reference

    def call(self, layer, **kwargs):
        if self.mask is not None:
            kwargs["mask"] = keras.ops.convert_to_tensor(self.mask)
        if getattr(layer, "takes_context", False):
            kwargs["context"] = self.context
        return layer(self.inputs, **kwargs)

    def states(self, layer):
        return tiled(layer, len(self.inputs), self.context)


def with_random_cell(layer):
    rng = np.random.default_rng(1)
    layer.cell.set_weights([rng.normal(0, 0.5, w.shape) for w in layer.cell.weights])
    return layer


def tiled(layer, batch, context=None):
    """The owned initial states at inference, arrays `(batch, *space, filters)`."""
    _, *shape = layer.cell.get_initial_state(1)[0].shape
    tiles = []
    for kind in layer.initial_state:
        value = np.zeros((1, FILTERS), "float32")
        if kind is not None and kind.takes_context:
            value = to_numpy(kind.encoder(context))
        elif kind is not None:
            value = to_numpy(kind.value)[None]
        if value.ndim == 2 and layer.data_format == "channels_first":
            value = value.reshape(*value.shape, *[1] * (len(shape) - 1))
        elif value.ndim == 2:
            value = value.reshape(len(value), *[1] * (len(shape) - 1), FILTERS)
        tiles.append(np.broadcast_to(value, (batch, *shape)))
    return tiles


@st.composite
def cases(draw, dtypes=DTYPES, with_mask=True, **fixed):
    rank = draw(st.sampled_from([1, 1, 2, 2, 2, 3]))
    convolution = draw(st.sampled_from([{}, {}, {"strides": 2}, {"dilation_rate": 2}]))
    arguments = {
        "padding": draw(st.sampled_from(["valid", "same"])),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "use_bias": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0, 0.3])),
        "recurrent_dropout": draw(st.sampled_from([0, 0.3])),
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "unroll": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "dtype": draw(st.sampled_from(dtypes)),
        "seed": draw(seeds),
        **convolution,
        **fixed,
    }
    if BACKEND == "tensorflow" and arguments["dtype"] in ("float64", "mixed_float16"):
        # TensorFlow has no such convolution on the CPU.
        arguments["data_format"] = "channels_last"
    batch, timesteps = draw(st.sampled_from([(1, 1), (3, 4)]))
    strides, dilation = (arguments.get(k, 1) for k in ("strides", "dilation_rate"))
    lost = 0 if arguments["padding"] == "same" else dilation
    shape, state_shape = (
        (*SPACES[rank], CHANNELS),
        (
            *(-(-(size - lost) // strides) for size in SPACES[rank]),
            FILTERS,
        ),
    )
    if arguments["data_format"] == "channels_first":
        shape, state_shape = (np.roll(s, 1).tolist() for s in (shape, state_shape))
    shape = (batch, timesteps, *shape)
    entry = entries_with_space(tuple(state_shape), FILTERS)
    mask = draw(masks(batch, timesteps)) if with_mask else None
    if BACKEND == "jax" and not arguments["unroll"]:
        mask = None  # Keras's loop on JAX raises an error for a mask and images.
    if BACKEND == "torch" and arguments["unroll"] and arguments["go_backwards"]:
        mask = None  # Keras can't reverse a mask on PyTorch.
    rng = np.random.default_rng(draw(seeds))
    return Case(
        rank=rank,
        arguments=arguments,
        initial_state=draw(entry | st.tuples(entry, entry).map(list)),
        inputs=rng.normal(size=shape).astype("float32"),
        mask=mask,
        context=rng.normal(size=(batch, 2)).astype("float32"),
    )


class TestTheRule:
    @at_most(20)
    @given(cases(), st.booleans())
    def test_equals_keras_with_the_states_given(self, case, training):
        layer = case.layer()
        assume(not training or not any(hasattr(k, "mean") for k in layer.initial_state))
        got = case.call(layer, training=training)
        states = case.states(layer)
        want = case.call(case.reference(layer), initial_state=states, training=training)
        assert_same(got, want)
        spec = layer.compute_output_spec(keras.KerasTensor(case.inputs.shape))
        assert [tuple(s.shape) for s in keras.tree.flatten(spec)] == [
            o.shape for o in flat(got)
        ]

    @at_most(8)
    @given(cases(), st.data())
    def test_a_given_state_wins(self, case, data):
        layer = case.layer()
        owned = case.states(layer)
        other = [normal(*state.shape, seed=index) for index, state in enumerate(owned)]
        keeps = [data.draw(st.booleans()) for _ in owned]
        pairs = list(zip(keeps, owned, other, strict=True))
        got = case.call(
            layer, initial_state=[None if keep else new for keep, _, new in pairs]
        )
        states = [own if keep else new for keep, own, new in pairs]
        assert_same(got, case.call(case.reference(layer), initial_state=states))

    def test_without_initial_state_it_is_a_layer_of_keras(self):
        layer = InitStateConvLSTM2D(FILTERS, 2, name="conv")
        reference = layers.ConvLSTM2D(FILTERS, 2, name="conv")
        assert isinstance(layer, layers.ConvLSTM2D)
        layer(X), reference(X)
        paths = [w.path for w in reference.weights]
        assert [w.path for w in layer.weights] == paths
        assert len(layer.variables) == len(reference.variables)
        reference.set_weights(layer.get_weights())
        assert_same(layer(X), reference(X))

    @at_most(5)
    @given(cases(dtypes=["float32"], dropout=0, recurrent_dropout=0, unroll=False))
    def test_training_learns_the_same(self, case):
        """A step of SGD, with the states as weights of a layer around Keras's layer."""
        layer = case.layer(
            initial_state=[Trainable(0.25), Trainable(0.5, per_position=True)]
        )

        class Given(layers.Layer):
            def __init__(self, rnn):
                super().__init__()
                self.rnn = rnn
                self.values = [
                    self.add_weight(shape=kind.value.shape, name=f"state{index}")
                    for index, kind in enumerate(layer.initial_state)
                ]
                for value, kind in zip(self.values, layer.initial_state, strict=True):
                    value.assign(to_numpy(kind.value))
                self.shape = layer.c0.value.shape

            def call(self, x, mask=None):
                states, batch = [], keras.ops.shape(x)[0]
                for value in self.values:
                    if len(value.shape) == 1:
                        ones = [1] * len(self.shape)
                        is_first = self.rnn.data_format == "channels_first"
                        ones[0 if is_first else -1] = FILTERS
                        value = keras.ops.reshape(value, ones)
                    states.append(keras.ops.broadcast_to(value, (batch, *self.shape)))
                outputs = self.rnn(x, initial_state=states, mask=mask)
                return keras.tree.flatten(outputs)[0]

        class First(layers.Layer):
            """Returns the outputs without the states."""

            def __init__(self):
                super().__init__()
                self.rnn = layer

            def call(self, x, mask=None):
                return keras.tree.flatten(self.rnn(x, mask=mask))[0]

        reference = case.reference(layer)
        models = [First(), Given(reference)]
        for model in models:
            x = keras.Input(case.inputs.shape[1:])
            trained = keras.Model(x, model(x))
            trained.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
            trained.train_on_batch(case.inputs, np.ones(trained(case.inputs).shape))
        assert_same(layer.cell.weights, reference.weights, 1e-6)
        learned = [kind.value for kind in layer.initial_state]
        assert_same(learned, models[1].values, 1e-6)
        assert np.abs(to_numpy(learned[0]) - 0.25).max() > 0

    @at_most(10)
    @given(cases(dtypes=["float32"], return_sequences=True), st.booleans())
    def test_both_directions(self, case, from_keras):
        bidirectional = layers.Bidirectional if from_keras else InitStateBidirectional
        assume(not case.arguments["unroll"] or case.mask is None)
        first = {"go_backwards": False, "return_state": False}
        both = bidirectional(case.layer(**first))
        assume(not from_keras or not both.forward_layer.takes_context)
        kwargs = {"context": case.context} if both.forward_layer.takes_context else {}
        if case.mask is not None:
            kwargs["mask"] = keras.ops.convert_to_tensor(case.mask)
        got = both(case.inputs, **kwargs)
        directions = [both.forward_layer, both.backward_layer]
        found = []
        for direction in directions:
            reference = case.reference(
                direction,
                return_state=False,
                zero_output_for_mask=True,
                go_backwards=direction.go_backwards,
            )
            states = case.states(direction)
            found.append(case.call(reference, initial_state=states))
        forwards, backwards = flat(found)
        want = np.concatenate([forwards, np.flip(backwards, 1)], -1)
        assert_same(got, want)


class TestKinds:
    def test_shapes_of_the_values(self):
        kinds = {
            "fixed": (FILTERS,),
            0.5: (FILTERS,),
            Trainable(np.ones(FILTERS)): (FILTERS,),
            Trainable(np.ones(FILTERS), per_position=True): STATE,
            Fixed(np.ones(STATE)): STATE,
            Sampled(0.5, np.ones(STATE)): STATE,
            Sampled(): (FILTERS,),
        }
        for kind, shape in kinds.items():
            layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=[kind, None])
            layer(X)
            assert layer.h0.value.shape == shape
            assert [s.shape for s in flat(layer.get_initial_state(2))] == [
                (2, *STATE)
            ] * 2
        assert layer.state_names == ("h0", "c0")
        assert layer.state_units == (FILTERS, FILTERS)

    @pytest.mark.parametrize("per_position", [False, True])
    def test_a_sampled_state_is_drawn_for_each_filter_or_position(self, per_position):
        kind = Sampled(0.5, 0.1, seed=1, per_position=per_position)
        layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=kind)
        layer(X)
        for state in flat(layer.get_initial_state(500, training=True)):
            at_a_filter = state[..., 0].reshape(500, -1)
            of_one_row = len(np.unique(at_a_filter[0]))
            assert of_one_row == (12 if per_position else 1)
            assert abs(at_a_filter.mean() - 0.5) < 0.02
            assert abs(at_a_filter.std() - 0.1) < 0.02
        assert_same(
            layer.get_initial_state(2), [np.full((2, *STATE), 0.5, "float32")] * 2
        )

    @pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
    def test_one_encoder_of_the_past(self, data_format):
        """Its last states are the initial states, as in a forecast of images."""
        arguments = {"padding": "same", "data_format": data_format}
        encoder = layers.ConvLSTM2D(FILTERS, 2, return_state=True, **arguments)
        past, future = normal(2, 3, 4, 5, 2), normal(2, 2, 4, 5, 1, seed=1)
        if data_format == "channels_first":
            past, future = (np.moveaxis(x, -1, 2) for x in (past, future))
        layer = InitStateConvLSTM2D(
            FILTERS, 2, initial_state=Conditional(encoder), **arguments
        )
        got = layer(future, context=past)
        assert layer.h0 is layer.c0
        reference = layers.ConvLSTM2D(FILTERS, 2, **arguments)
        reference.build(future.shape)
        reference.set_weights(layer.cell.get_weights())
        _, *states = layer.h0.encoder(past)
        assert_same(got, reference(future, initial_state=states))

    def test_a_custom_kind_has_one_value_for_each_filter(self):
        layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=PerRow())
        layer(X)
        layer.h0.scale.assign(2.0)
        want = np.full((BATCH, *STATE), 2.0, "float32")
        assert_same(layer.get_initial_state(BATCH)[0], want)

    def test_per_position_can_only_be_set_in_the_constructor(self):
        for kind in (Fixed(), Trainable(), Sampled()):
            with pytest.raises(ValueError, match="`per_position` of .* can't be set"):
                kind.per_position = True

    def test_assign_initial_state(self):
        start = [Trainable(per_position=True), "trainable"]
        layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=start)
        with pytest.raises(ValueError, match="no `value` before it is built"):
            layer.assign_initial_state([np.ones(STATE), None])
        layer.assign_initial_state([None, np.ones(FILTERS)])
        layer(X)
        h, c = normal(2, *STATE), normal(2, FILTERS)
        layer.assign_initial_state([h, c], reduction="mean")
        assert_same(layer.h0.value, h.mean(0), 1e-6)
        assert_same(layer.c0.value, c.mean(0), 1e-6)
        message = r"`states\[1\]` must be an array of shape \(3,\) or \(batch, 3\)"
        with pytest.raises(ValueError, match=message):
            layer.assign_initial_state([h[0], h], reduction="mean")
        assert_same(layer.h0.value, h.mean(0), 1e-6)


class TestResets:
    @at_most(8)
    @given(
        cases(
            dtypes=["float32"], dropout=0, recurrent_dropout=0, unroll=False,
            return_sequences=True, return_state=True,
        ),
        st.data(),
    )  # fmt: skip
    def test_equals_a_run_of_each_piece_alone(self, case, data):
        layer = case.layer()
        shape = case.inputs.shape[:2]
        reset_mask = np.random.default_rng(data.draw(seeds)).random(shape) < 0.4
        if BACKEND == "jax":
            assert case.mask is None
        owned = case.states(layer)
        want = by_pieces(
            case,
            case.reference(layer),
            reset_mask,
            owned,
            lambda row, _: [state[row] for state in owned],
        )
        got = case.call(layer, reset_mask=reset_mask)
        assert_same(got, want, 1e-5)
        first = reset_mask[:, -1 if layer.go_backwards else 0]
        other = [normal(*state.shape) for state in owned]
        got = case.call(layer, initial_state=other, reset_mask=first)
        rows = first.reshape(-1, *[1] * (case.rank + 1))
        pairs = zip(owned, other, strict=True)
        states = [np.where(rows, own, new) for own, new in pairs]
        assert_same(got, case.call(layer, initial_state=states))

    def test_a_mask_with_resets(self):
        """Also on JAX, on which Keras's loop takes no mask of images."""
        layer = InitStateConvLSTM2D(
            FILTERS, 2, initial_state=0.5, return_sequences=True, return_state=True
        )
        reset_mask = np.zeros((BATCH, TIMESTEPS), bool)
        reset_mask[:, 2] = True
        mask = np.ones((BATCH, TIMESTEPS), bool)
        mask[:, [1, 3]] = False
        outputs, *states = layer(X, mask=mask, reset_mask=reset_mask)
        second, *want = layer(X[:, 2:3])
        assert_same(outputs[:, 3:], second, 1e-5)
        assert_same(states, want, 1e-5)
        assert_same(outputs[:, 1], outputs[:, 0])

    @pytest.mark.parametrize("has_space", [False, True])
    @pytest.mark.parametrize("go_backwards", [False, True])
    def test_a_context_with_a_time_axis(self, has_space, go_backwards):
        encoder = full_encoder(STATE) if has_space else layers.Dense(FILTERS)
        kwargs = {"return_sequences": True, "go_backwards": go_backwards}
        layer = InitStateConvLSTM2D(
            FILTERS, 2, initial_state=Conditional(encoder, over_time=True), **kwargs
        )
        context = normal(BATCH, TIMESTEPS, 2)
        reset_mask = np.zeros((BATCH, TIMESTEPS), bool)
        reset_mask[0, 2] = reset_mask[1, [0, 3]] = True
        got = layer(X, context=context, reset_mask=reset_mask)

        def start_at(row, timestep):
            at = context[row : row + 1, timestep]
            states = [to_numpy(kind.encoder(at))[0] for kind in layer.initial_state]
            return [np.broadcast_to(state, STATE) for state in states]

        reference = layers.ConvLSTM2D(FILTERS, 2, return_state=True, **kwargs)
        reference.build(X.shape)
        reference.set_weights(layer.cell.get_weights())
        last = -1 if go_backwards else 0
        first = [start_at(row, last) for row in range(BATCH)]
        first = [np.stack(states) for states in zip(*first, strict=True)]
        case = Case(2, {}, None, X, None, context)
        want, *_ = by_pieces(case, reference, reset_mask, first, start_at)
        assert_same(got, want, 1e-5)


def test_states_over_time():
    layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=[0.5, "trainable"])
    mask = np.arange(TIMESTEPS) != 1
    found = layer.states_over_time(X, mask=np.tile(mask, (BATCH, 1)))
    assert [state.shape for state in flat(found)] == [(BATCH, TIMESTEPS, *STATE)] * 2
    reference = layers.ConvLSTM2D(FILTERS, 2, return_state=True)
    reference.build(X.shape)
    reference.set_weights(layer.cell.get_weights())
    for timestep in range(TIMESTEPS):
        is_read = mask & (np.arange(TIMESTEPS) <= timestep)
        _, *want = reference(X[:, is_read], initial_state=tiled(layer, BATCH))
        assert_same([state[:, timestep] for state in flat(found)], want, 1e-5)


def model_of(**kwargs):
    """A model of a ConvLSTM with both kinds of values, which returns images."""
    kwargs = {"return_sequences": True, "name": "conv", **kwargs}
    start = [Trainable(0.25, per_position=True), Trainable(np.ones(FILTERS))]
    layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=start, **kwargs)
    size = BATCH if kwargs.get("stateful") else None
    images = keras.Input((None, *X.shape[2:]), batch_size=size)
    return with_weights(keras.Sequential([images, layer, layers.Dense(2)]))


class TestStreams:
    def test_chunks_equal_the_whole_sequence(self):
        model = model_of()
        want = to_numpy(model(X))
        stateful = as_stateful(model, BATCH)
        layer = stateful.get_layer("conv")
        shown = tiled(model.get_layer("conv"), BATCH)
        assert_same([state.value for state in layer.states], shown)
        found = [to_numpy(stateful(chunk)) for chunk in (X[:, :1], X[:, 1:])]
        assert_same(np.concatenate(found, 1), want, 1e-5)
        reset_states(stateful, rows=[1])
        assert layer.states[0].fresh.tolist() == [False, True, False]
        assert_same(stateful(X)[1], want[1], 1e-5)
        states = get_states(stateful)
        assert {name: s.shape for name, s in states.items()} == {
            "conv/h0": (BATCH, *STATE),
            "conv/c0": (BATCH, *STATE),
        }
        states["conv/h0"][2] = states["conv/c0"][2] = np.nan
        after = to_numpy(stateful(X))
        set_states(stateful, states)
        again = to_numpy(stateful(X))
        assert_same(again[:2], after[:2], 1e-5)
        assert_same(again[2], want[2], 1e-5)
        given = [normal(BATCH, *STATE, seed=k) for k in range(2)]
        layer.reset_states(states=given)
        rows = [state[:1] + 1 for state in given]
        layer.reset_states(states=rows, rows=[1])
        for state, new in zip(layer.states, given, strict=True):
            assert_same(state.value, np.stack([new[0], new[0] + 1, new[2]]))

    def test_each_stream_of_a_store(self):
        model = model_of()
        store = StreamStore(model)
        first = store([7, "a"], X[:2, :2])
        assert_same(first, model(X[:2, :2]), 1e-5)
        second = store(["new", 7], X[[2, 0]][:, 2:])
        assert_same(second[1], model(X)[0, 2:], 1e-5)
        assert_same(second[0], model(X[2:, 2:])[0], 1e-5)

    def test_a_store_in_a_file(self, tmp_path):
        model = model_of()
        store = StreamStore(model)
        store([1, 2], X[:2, :2])
        store.save(tmp_path / "streams.npz")
        loaded = StreamStore(model).load(tmp_path / "streams.npz")
        assert_same(loaded([2], X[1:2]), store([2], X[1:2]))

    def test_states_as_inputs(self):
        model = model_of()
        stream, states = with_states_as_inputs(model, BATCH)
        assert_same(states, tiled(model.get_layer("conv"), BATCH))
        outputs, *states = stream.predict_on_batch([X[:, :3], *states])
        last, *_ = stream.predict_on_batch([X[:, 3:], *states])
        got = np.concatenate([outputs, last], 1)
        assert_same(got, model(X), 1e-5)

    def test_estimated_states(self):
        model = model_of()
        stream = as_stateful(model, BATCH)
        true = {
            f"conv/{s}": normal(BATCH, *STATE, seed=k) / 2
            for k, s in enumerate(("h0", "c0"))
        }
        set_states(stream, true)
        y = to_numpy(stream(X))
        found = estimate_initial_state(model, X, y, steps=40)
        set_states(stream, found)
        before = np.square(to_numpy(model(X)) - y).mean()
        assert np.square(to_numpy(stream(X)) - y).mean() < before / 10
        model.compile("sgd", "mse")
        train_only_initial_state(model)
        assert len(model.trainable_variables) == 2


class TestFiles:
    @pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
    def test_a_fresh_process_computes_the_same(self, name, tmp_path):
        start = [Trainable(per_position=True), Sampled(0.5, seed=1)]
        images, context = keras.Input(X.shape[1:]), keras.Input((2,))
        encoder = keras.Sequential([layers.Dense(12 * FILTERS), layers.Reshape(STATE)])
        conditional = Conditional(encoder)
        kwargs = {"initial_state": conditional, "name": "second"}
        outputs = [
            InitStateConvLSTM2D(FILTERS, 2, initial_state=start, name="first")(images),
            InitStateConvLSTM2D(FILTERS, 2, **kwargs)(images, context=context),
        ]
        model = with_weights(keras.Model([images, context], outputs))
        given = [X, normal(BATCH, 2)]
        want = flat(model(given))
        path = tmp_path / name
        if name.endswith(".keras"):
            model.save(path)
            np.savez(tmp_path / "given.npz", x=given[0], context=given[1])
            script = (
                "import sys, keras, numpy as np, keras_init_lstm\n"
                "folder = sys.argv[1]\n"
                "model = keras.models.load_model(f'{folder}/model.keras')\n"
                "given = np.load(f'{folder}/given.npz')\n"
                "outputs = model([given['x'], given['context']])\n"
                "outputs = map(keras.ops.convert_to_numpy, outputs)\n"
                "np.savez(f'{folder}/outputs.npz', *outputs)\n"
            )
            in_a_fresh_process(script, tmp_path)
            found = np.load(tmp_path / "outputs.npz")
            assert_same([found["arr_0"], found["arr_1"]], want)
        else:
            model.save_weights(path)
            loaded = keras.models.clone_model(model)
            loaded.load_weights(path)
            assert_same(loaded(given), want)

    def test_a_configuration_keeps_the_positions(self):
        for kind in (
            Fixed(0.5, per_position=True),
            Trainable(np.ones(STATE)),
            Sampled(per_position=True),
        ):
            layer = InitStateConvLSTM2D(FILTERS, 2, initial_state=kind)
            layer = InitStateConvLSTM2D.from_config(layer.get_config())
            layer(X)
            assert layer.h0.value.shape == STATE


@pytest.mark.tensorflow
class TestExport:
    def test_a_saved_model(self, tmp_path):
        model = model_of(return_sequences=False)
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        assert_same(loaded.serve(X), model(X), 1e-5)

    def test_onnx_with_states_as_inputs(self, tmp_path):
        model = model_of()
        stream, states = with_states_as_inputs(model, BATCH)
        # A file that takes chunks of one length.
        shapes = [(BATCH, 2, *X.shape[2:]), *(state.shape for state in states)]
        signature = [keras.InputSpec("float32", shape) for shape in shapes]
        path = str(tmp_path / "stream.onnx")
        arguments = {"input_signature": [signature], "verbose": False}
        stream.export(path, format="onnx", **arguments)
        run, found = on_onnx(path), []
        for chunk in (X[:, :2], X[:, 2:]):
            outputs, *states = run(chunk, *states)
            found.append(outputs)
        assert_same(np.concatenate(found, 1), model(X), 1e-5)


class TestAdoption:
    def test_a_layer_of_keras(self):
        layer = layers.ConvLSTM2D(FILTERS, 2, stateful=True)
        layer(X)
        taken = InitStateConvLSTM2D.from_keras(layer, "trainable")
        assert_same([state.value for state in taken.states], layer.states)
        assert_same(taken(X), layer(X))
        again = InitStateConvLSTM2D.from_keras(taken, Trainable(per_position=True))
        assert again.h0.value.shape == STATE

    def test_a_model(self):
        images = keras.Input(X.shape[1:])
        h = layers.Bidirectional(layers.ConvLSTM2D(2, 2, return_sequences=True))(images)
        h = layers.Reshape((TIMESTEPS, 12, 4))(h)
        h = layers.ConvLSTM1D(2, 3, name="last")(h)
        model = with_weights(keras.Model(images, layers.Dense(1)(h)))
        adopted = with_initial_state(model, Trainable(per_position=True))
        assert_same(adopted(X), model(X))
        assert type(adopted.get_layer("last")) is InitStateConvLSTM1D
        assert adopted.get_layer("last").h0.value.shape == (10, 2)

    def test_learned_states_are_taken_over(self):
        kwargs = {"initial_state": [Trainable(per_position=True), 0.5]}
        layer = InitStateConvLSTM2D(FILTERS, 2, **kwargs)
        layer(X)
        layer.assign_initial_state([normal(*STATE), None])
        taken = InitStateConvLSTM2D.from_keras(layer)
        assert_same(taken(X), layer(X))


def conv(*args, **kwargs):
    return InitStateConvLSTM2D(FILTERS, 2, *args, **kwargs)


class TestWrongInputs:
    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (np.ones(4), r"`\(units,\)` = \(3,\), or of the shape of the state"),
            (
                Fixed(np.ones((4, 3, 4))),
                r"state \(None, None, 3\). .*shape \(4, 3, 4\)",
            ),
            (Trainable(np.ones((3, 3))), r"Argument `initializer` of Trainable"),
            (Sampled(stddev=np.ones((4, 3))), "Argument `stddev` of Sampled"),
        ],
    )
    def test_an_array_that_can_not_fit(self, entry, message):
        with pytest.raises(ValueError, match=message):
            conv(initial_state=entry)

    def test_an_array_that_does_not_fit_the_space(self):
        layer = conv(initial_state=["trainable", Fixed(np.ones((4, 4, 3)))])
        message = r"c0: .* state \(4, 3, 3\). Received: an array of shape \(4, 4, 3\)"
        with pytest.raises(ValueError, match=message):
            layer(X)
        assert not (layer.built or layer.h0.built or layer.c0.built)
        # Images of another size fit.
        assert layer(np.ones((1, 2, 5, 5, 1))).shape == (1, 4, 4, 3)

    @pytest.mark.parametrize("value", ["yes", 1, None])
    def test_per_position(self, value):
        for kind in (Fixed, Trainable, Sampled):
            with pytest.raises(ValueError, match="`per_position` must be one of"):
                kind(per_position=value)

    @pytest.mark.parametrize("kind", [Fixed, Trainable, Sampled])
    def test_positions_in_a_layer_without_a_space(self, kind):
        with pytest.raises(ValueError, match="`per_position` .* has no positions"):
            InitStateLSTM(3, initial_state=kind(per_position=True))

    @pytest.mark.parametrize("shape", [(2, 3), (4, 4, 3), (2, 4, 4, 3), (3, 4, 3, 4)])
    def test_a_given_state(self, shape):
        layer = conv()
        for _ in ("not built", "built"):
            with pytest.raises(
                ValueError, match=r"`initial_state\[0\]` must be .* 4, 3"
            ):
                layer(X, initial_state=[np.ones(shape), None])
            assert layer.built is bool(_ == "built")
            layer.build(X.shape)

    def test_an_encoder(self):
        for units, message in (
            (4, r"shape \(batch, 3\) or \(batch, 4, 3, 3\): .* \(3, 4\)"),
            ((4, 4, 3), r"\(3, 4, 4, 3\)"),
        ):
            encoder = layers.Dense(4) if units == 4 else full_encoder(units)
            layer = conv(initial_state=Conditional(encoder))
            with pytest.raises(ValueError, match=message):
                layer(X, context=np.ones((BATCH, 2)))
            assert not layer.built

    def test_before_the_space_is_known(self):
        layer = conv(initial_state=0.5, stateful=True, name="conv")
        states = [np.ones((BATCH, *STATE))] * 2
        for call in (
            lambda: layer.get_initial_state(2),
            lambda: layer.reset_states(states=states),
        ):
            with pytest.raises(ValueError, match="of conv .* unknown before the layer"):
                call()
        layer(X)
        layer.reset_states(states=states)
        assert_same(layer.states[0].value, np.float32(states[0]))

    def test_a_space_of_unknown_size(self):
        layer = conv(initial_state=Trainable(per_position=True))
        with pytest.raises(ValueError, match="must have known spatial dimensions"):
            layer(keras.Input((None, None, 4, 2)))
        assert not layer.built

    def test_sequences_of_another_rank(self):
        with pytest.raises(ValueError, match="expected ndim=5, found ndim=4"):
            conv(initial_state="trainable")(X[:, 0])

    def test_a_state_of_a_stream(self):
        layer = conv(stateful=True, name="conv")
        layer(X)
        before = get_states(layer)
        with pytest.raises(ValueError, match=r"`states\[0\]` .* \(3, 4, 3, 3\)"):
            layer.reset_states(states=[np.ones((3, 3)), None])
        with pytest.raises(ValueError, match=r"conv/h0"):
            set_states(layer, {name: s[..., :1] for name, s in before.items()})
        assert_same(get_states(layer), before)

    def test_an_initial_state_by_position(self):
        with pytest.raises(ValueError, match="`strides` can't be an initial state"):
            conv("trainable")

    def test_a_picture(self):
        layer = conv(initial_state="trainable")
        layer(X)
        with pytest.raises(ValueError, match="`layer` .* not a ConvLSTM"):
            plot_initial_state(layer)
