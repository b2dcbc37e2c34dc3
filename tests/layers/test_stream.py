"""Stateful layers: the states that they carry from call to call, and their resets."""

import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import keras_init_lstm
import models
from backends import BACKEND, WITHOUT_XLA, compiled, tf
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateGRU,
    InitStateLSTM,
    InitStateSimpleRNN,
    Sampled,
)
from keras_init_lstm.streams import ResetStates, get_states, reset_states, set_states
from models import (
    BATCH,
    CONTEXT,
    FEATURES,
    SHAPE,
    TIMESTEPS,
    UNITS,
    WRAPS,
    X,
    encoder,
    normal,
)
from oracles import (
    assert_same,
    flat,
    gradients,
    nested,
    reference_of,
    to_numpy,
)
from strategies import LAYERS, Case, arrays, at_most, initial_states, sizes

rows_of_batch = st.lists(st.booleans(), min_size=BATCH, max_size=BATCH)
inputs = sizes("timesteps").flatmap(lambda steps: arrays(BATCH, steps, FEATURES))


def states_of(data, layer):
    """For each state an array, or `None` for the owned initial state."""
    return [data.draw(st.none() | arrays(BATCH, units)) for units in layer.state_units]


def bad_states(data, layer):
    """Explicit states of a wrong length, rank, number of units or batch size."""
    right = [np.zeros((BATCH, units)) for units in layer.state_units]
    index = data.draw(st.integers(0, len(right) - 1))
    shape = st.lists(st.integers(1, 4), max_size=4).filter(
        lambda s: s != list(right[index].shape)
    )
    wrong = data.draw(
        shape.map(np.zeros) | st.sampled_from(["zeros", np.zeros((0, 2))])
    )
    one_wrong = [*right[:index], wrong, *right[index + 1 :]]
    one_wrong, whole = nested(layer, one_wrong), nested(layer, right)
    wrong_structure = [wrong, [], [*whole, None], {}, "zeros", [{}] * len(whole)]
    return data.draw(st.sampled_from([one_wrong, tuple(one_wrong), *wrong_structure]))


class Stream(RuleBasedStateMachine):
    """A stateful layer, compared with a layer of Keras that gets explicit states.

    `carried` are the carried states, with NaN in the rows that are reset.
    """

    @initialize(
        name=st.sampled_from(LAYERS),
        as_graph=st.booleans(),
        begin=st.booleans(),
        data=st.data(),
    )
    def start(self, name, as_graph, begin, data):
        arguments = {"units": UNITS, "dtype": "float32", "return_state": True}
        self.case = Case(
            name=name,
            arguments=arguments,
            initial_state=data.draw(initial_states(models.state_size(name, UNITS))),
            inputs=X,
            mask=None,
            context=CONTEXT,
        )
        self.layer = models.recurrent(
            keras_init_lstm,
            name,
            {**arguments, "initial_state": self.case.initial_state, "stateful": True},
        )
        self.carry([None] * len(self.layer.state_units))
        if begin:
            self.reset(data)
        self.layer.build((BATCH, None, FEATURES))
        self.reference = self.case.reference(self.layer)
        self.call_layer = self.layer
        if as_graph:
            self.call_layer = compiled(
                self.layer, reduce_retracing=True, autograph=False
            )

    def carry(self, states, rows=None):
        """Sets the carried states of rows; `None` means that the rows are reset."""
        if rows is None:
            rows, units = np.arange(BATCH), self.layer.state_units
            self.carried = [np.zeros((BATCH, size)) for size in units]
        for carried, state in zip(self.carried, states, strict=True):
            carried[rows] = np.nan if state is None else state

    def expected(self):
        owned = keras.tree.flatten(self.case.states(self.layer))
        return [
            np.where(np.isnan(carried), own, carried)
            for own, carried in zip(owned, self.carried, strict=True)
        ]

    @rule(x=inputs)
    def call(self, x):
        want = self.reference(x, initial_state=nested(self.layer, self.expected()))
        assert_same(self.call_layer(x), want, tolerance=1e-6)
        self.carry(flat(want[1:]))

    @rule(x=inputs, data=st.data())
    def call_with_rows_that_are_reset(self, x, data):
        rows = np.array(data.draw(rows_of_batch))
        owned = keras.tree.flatten(self.case.states(self.layer))
        pairs = zip(owned, self.expected(), strict=True)
        states = [np.where(rows[:, None], own, carried) for own, carried in pairs]
        want = self.reference(x, initial_state=nested(self.layer, states))
        assert_same(self.call_layer(x, reset_mask=rows), want, tolerance=1e-6)
        self.carry(flat(want[1:]))

    @rule(x=inputs, data=st.data())
    def call_with_explicit_states(self, x, data):
        given = states_of(data, self.layer)
        explicit = [
            carried if state is None else state
            for state, carried in zip(given, self.expected(), strict=True)
        ]
        want = self.reference(x, initial_state=nested(self.layer, explicit))
        got = self.layer(x, initial_state=nested(self.layer, given))
        assert_same(got, want, tolerance=1e-6)
        self.carry(flat(want[1:]))

    @rule(data=st.data())
    def reset(self, data):
        given = states_of(data, self.layer)
        if all(state is None for state in given):
            self.layer.reset_states()
        else:
            self.layer.reset_states(nested(self.layer, given))
        self.carry(given)

    @rule(rows=rows_of_batch, as_booleans=st.booleans(), data=st.data())
    def reset_rows(self, rows, as_booleans, data):
        """Resets rows to all, some or none of the given states."""
        indices = np.flatnonzero(rows)
        units = self.layer.state_units
        given = [None] * len(units)
        if len(indices) and data.draw(st.booleans()):
            given = [data.draw(st.none() | arrays(len(indices), n)) for n in units]
        some = any(state is not None for state in given)
        states = nested(self.layer, given) if some else None
        self.layer.reset_states(states, rows=rows if as_booleans else indices)
        self.carry(given, indices)

    @rule()
    def save_and_restore(self):
        states = get_states(self.layer)
        carried = [c.astype("float32") for c in self.carried]
        assert_same(list(states.values()), carried)
        self.layer(X)
        set_states(self.layer, states)

    @rule(
        rows=st.sampled_from(
            [[BATCH], [-1], [0, 0], [0.0], "all", [[0]], [True] * (BATCH - 1)]
        )
    )
    def invalid_rows(self, rows):
        with pytest.raises(ValueError, match="`rows` must be different integers"):
            self.layer.reset_states(rows=rows)

    @rule()
    def reset_state(self):
        self.layer.reset_state()
        self.carry([None] * len(self.carried))

    @rule(data=st.data())
    def assign_to_states(self, data):
        index = data.draw(st.integers(0, len(self.carried) - 1))
        value = data.draw(arrays(BATCH, self.layer.state_units[index]))
        keras.tree.flatten(self.layer.states)[index].assign(value)
        self.carried[index] = value

    @rule(data=st.data())
    def assign_initial_state(self, data):
        given = [
            entry and data.draw(arrays(units))
            for entry, units in zip(
                self.layer.initial_state, self.layer.state_units, strict=True
            )
        ]
        self.layer.assign_initial_state(nested(self.layer, given))

    @rule(batch=st.integers(1, BATCH + 2).filter(lambda n: n != BATCH))
    def another_batch_size(self, batch):
        x = normal(batch, TIMESTEPS, FEATURES)
        message = f"batch size of {BATCH}, as in the stream so far"
        with pytest.raises(ValueError, match=message):
            self.layer(x)
        if self.call_layer is not self.layer:
            call = tf.function(
                self.layer, input_signature=[tf.TensorSpec((None, None, FEATURES))]
            )
            message = (
                rf"(?s)\[{batch},{TIMESTEPS},{FEATURES}\].*expected shape \[{BATCH},.*"
                rf"batch_size_of_{BATCH}_as_in_the_stream_so_far"
            )
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                call(x)

    @rule(data=st.data())
    def invalid_states(self, data):
        given = bad_states(data, self.layer)
        for call in (
            lambda: self.layer(X, initial_state=given),
            lambda: self.layer(X, given),
            lambda: self.layer.reset_states(given),
        ):
            with pytest.raises(ValueError, match=r"`(initial_state|states).*Received"):
                call()

    @rule(data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    def states_that_are_not_finite(self, data, bad):
        given = [np.ones((BATCH, units)) for units in self.layer.state_units]
        index = data.draw(st.integers(0, len(given) - 1))
        given[index][-1, -1] = bad
        with pytest.raises(ValueError, match=rf"`states\[{index}\]`.*finite"):
            self.layer.reset_states(nested(self.layer, given))

    @invariant()
    def states_are_the_states_before_the_next_call(self):
        for state, want in zip(flat(self.layer.states), self.expected(), strict=True):
            np.testing.assert_allclose(state, want, rtol=0, atol=1e-6)


TestStream = Stream.TestCase
TestStream.settings = at_most(20, stateful_step_count=15)


class TestStateful:
    def test_before_the_first_call(self):
        layer = InitStateLSTM(2, initial_state=[0.5, None], stateful=True)
        assert layer.states is None
        layer.reset_state()
        layer.reset_states([None, None])
        assert layer.states is None
        layer.reset_states([None, np.ones((3, 2))])
        assert_same(layer.states, [np.full((3, 2), 0.5, "f"), np.ones((3, 2), "f")])
        with pytest.raises(ValueError, match="Expected a batch size of 3"):
            layer(normal(2, TIMESTEPS, FEATURES))
        with pytest.raises(ValueError, match=r"`states\[0\]`.*\(3, 2\).*\(2, 2\)"):
            layer.reset_states([np.ones((2, 2)), None])
        with pytest.raises(ValueError, match=r"`states\[1\]`.*\(3, 2\).*\(2, 2\)"):
            InitStateLSTM(2, stateful=True).reset_states(
                [np.ones((3, 2)), np.ones((2, 2))]
            )

    def test_states_before_the_first_call(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        states = list(normal(2, BATCH, UNITS))
        layer.reset_states(states=states)
        assert_same(layer.states, states)
        for _ in range(2):
            got = layer(X)
            want, *states = reference_of(layer, return_state=True)(
                X, initial_state=states
            )
            assert_same(got, want)
            assert_same(layer.states, states)

    def test_the_batch_size_must_be_known(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        for _ in range(2):
            message = r"batch size must be known.*\(None, None, 2\)"
            with pytest.raises(ValueError, match=message):
                layer.build((None, None, 2))
            layer.reset_states([np.ones((BATCH, UNITS))] * 2)
        with pytest.raises(ValueError, match=f"batch size of {BATCH}.*size of 1"):
            layer.build((1, None, 2))
        assert layer(X).shape == (BATCH, UNITS)

    def test_an_input_of_another_batch_size_raises(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        layer(X)
        with pytest.raises(ValueError, match=f"batch size of {BATCH}.*size of 1"):
            layer(keras.Input(X.shape[1:], batch_size=1))

    def test_one_state_for_two_rows_raises(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        layer(X)
        before = flat(layer.states)
        with pytest.raises(ValueError, match=r"states\[0\].*Received"):
            layer.reset_states([np.ones((1, UNITS))] * 2, rows=[0, 2])
        assert_same(layer.states, before)

    def test_states_are_for_stateful_layers(self):
        layer = InitStateLSTM(UNITS)
        layer(X)
        assert layer.states is None
        layer.reset_state()
        layer.reset_states()
        with pytest.raises(ValueError, match="`states`.*stateful=False"):
            layer.reset_states([np.ones((BATCH, UNITS))] * 2)

    def test_states_are_not_weights(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)
        layer(X)
        assert [w.path.split("/", 1)[1] for w in layer.weights] == [
            "lstm_cell/kernel",
            "lstm_cell/recurrent_kernel",
            "lstm_cell/bias",
            "h0/value",
            "c0/value",
        ]
        # On JAX, `fit()` updates only the variables of a model.
        if BACKEND != "jax":
            assert not any("rnn_state" in v.path for v in layer.variables)
        assert not any(state.trainable for state in layer.states)

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("jit_compile", [False, True])
    # A divisor of the stream's batch size, a multiple, and neither.
    @pytest.mark.parametrize("batch", [1, 2 * BATCH, BATCH - 1])
    def test_a_wrong_batch_raises_before_a_graph_carries_its_states(
        self, batch, jit_compile
    ):
        layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
        layer.build((BATCH, None, FEATURES))
        unknown = [tf.TensorSpec((None, None, FEATURES))]
        call = tf.function(layer, input_signature=unknown, jit_compile=jit_compile)
        x = normal(batch, TIMESTEPS, FEATURES)
        # Repeat it: TensorFlow may run unordered operations in another order.
        for seed in range(50):
            given = list(normal(2, BATCH, UNITS, seed=seed))
            layer.reset_states(given)
            with pytest.raises(tf.errors.InvalidArgumentError):
                call(x)
            assert_same(layer.states, given)
            layer.reset_states()
            with pytest.raises(tf.errors.InvalidArgumentError):
                call(x)
            assert_same(layer.states, [np.full((BATCH, UNITS), 0.5, "float32")] * 2)

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_the_first_batch_of_a_stream_has_the_gradient(self, jit_compile):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)
        layer(X)
        layer.reset_state()
        lstm = reference_of(layer)

        @tf.function(jit_compile=jit_compile)
        def state_gradients():
            values = [entry.value.value for entry in layer.initial_state]
            return gradients(lambda: layer(X, training=True), values)

        state = [tf.zeros((BATCH, UNITS)), tf.zeros((BATCH, UNITS))]
        want = gradients(lambda: lstm(X, initial_state=state), state)
        want = [gradient.sum(axis=0) for gradient in flat(want)]
        assert_same(state_gradients(), want, tolerance=1e-5)
        assert all((g == 0).all() for g in flat(state_gradients()))
        layer.reset_states()
        assert_same(state_gradients(), want, tolerance=1e-5)

    @pytest.mark.parametrize(
        "jit_compile", [False, pytest.param(True, marks=pytest.mark.tensorflow)]
    )
    def test_a_sampled_state_is_drawn_at_each_reset(self, jit_compile):
        layer = InitStateLSTM(UNITS, initial_state=Sampled(seed=1), stateful=True)
        layer.build((BATCH, None, FEATURES))
        call = compiled(lambda x: layer(x, training=True), jit_compile=jit_compile)
        outputs = []
        for _ in range(2):
            layer.reset_state()
            outputs.append(to_numpy(call(X)))
        assert (outputs[0] != outputs[1]).all()
        carried = flat(layer.states)
        want = reference_of(layer)(X, initial_state=carried)
        assert_same(call(X), want, tolerance=1e-6)

    def test_reading_fresh_states_draws_nothing(self):
        def outputs(look):
            entry = Sampled([1.0, 2.0], seed=1, at_inference="sample")
            layer = InitStateLSTM(2, initial_state=entry, stateful=True)
            layer.cell.build((3, 2))
            layer.cell.set_weights([np.ones(w.shape) for w in layer.cell.weights])
            layer.build((3, None, 2))
            if look:
                assert "1. 2." in repr(layer.states).replace(",", "")
                assert_same(layer.states[0], np.array([[1, 2]] * 3, "float32"))
            return layer(np.ones((3, 4, 2)))

        assert_same(outputs(look=True), outputs(look=False))

    def test_mixed_precision_carries_in_the_dtype_of_the_variables(self):
        dtype = "mixed_bfloat16"
        layer = InitStateLSTM(
            UNITS, initial_state="trainable", stateful=True, dtype=dtype
        )
        layer.build((BATCH, None, FEATURES))
        lstm = reference_of(layer, return_state=True, dtype=dtype)
        states = [np.zeros((BATCH, UNITS), "float32")] * 2
        for seed in range(3):
            x = normal(*SHAPE, seed=seed)
            want, *states = lstm(x, initial_state=states)
            assert_same(layer(x), want)
            states = [state.astype("float32") for state in flat(states)]
            assert_same(layer.states, states)


IN_A_GRAPH = [pytest.param(xla, marks=pytest.mark.tensorflow) for xla in (False, True)]


class TestWithAContext:
    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize(
        "jit_compile",
        [
            None,
            *(pytest.param(xla, marks=pytest.mark.tensorflow) for xla in (False, True)),
        ],
    )
    def test_it_is_used_in_fresh_rows(self, wrap, jit_compile):
        start = Conditional(encoder())
        kwargs = {"return_sequences": True}
        stream = WRAPS[wrap](
            InitStateLSTM(UNITS, initial_state=start, stateful=True, **kwargs)
        )
        stream(X, context=CONTEXT)
        alone = getattr(stream, "forward_layer", stream)
        reference = InitStateLSTM(UNITS, initial_state=start, **kwargs)
        reference(X, context=CONTEXT)
        reference.set_weights(alone.get_weights())
        call = stream
        if jit_compile is not None:
            call = tf.function(stream, jit_compile=jit_compile)
        longer = normal(BATCH, 2 * TIMESTEPS, FEATURES)
        for context in (CONTEXT, -CONTEXT):
            reset_states(keras.Sequential([stream]))
            parts = [
                call(longer[:, :TIMESTEPS], context=context)[..., :UNITS],
                call(longer[:, TIMESTEPS:], context=CONTEXT + 7)[..., :UNITS],
            ]
            want = reference(longer, context=context)
            assert_same(np.concatenate(flat(parts), axis=1), want, tolerance=1e-5)

    def test_fresh_states_are_nan(self):
        layer = InitStateLSTM(
            UNITS, initial_state=[Conditional(encoder()), 0.5], stateful=True
        )
        layer.build((BATCH, None, FEATURES), context_shape=(BATCH, 6))
        h, c = flat(layer.states)
        assert np.isnan(h).all() and (c == 0.5).all()

    def test_given_states_need_no_context(self):
        layer = InitStateLSTM(
            UNITS, initial_state=Conditional(encoder()), stateful=True
        )
        states = list(normal(2, BATCH, UNITS))
        layer.reset_states(states)
        got = layer(X, context=CONTEXT)
        want = reference_of(layer)(X, initial_state=states)
        assert_same(got, want)


# On PyTorch, Keras fails in the backward pass of its own stateful layers.
GRU = InitStateGRU if BACKEND == "torch" else keras.layers.GRU


def nested_model():
    """Stateful layers in a nested model, in Bidirectional, in a subclassed layer."""

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.rnn = {"inner": layer(return_sequences=True)}

        def build(self, shape):
            self.rnn["inner"].build(shape)

        def call(self, x):
            return self.rnn["inner"](x)

    def layer(**kwargs):
        start = [Fixed(0.25), Fixed(-0.5)]
        return InitStateLSTM(UNITS, initial_state=start, stateful=True, **kwargs)

    def sequence(*layers):
        return keras.Sequential([keras.Input(SHAPE[1:], batch_size=BATCH), *layers])

    return sequence(
        keras.layers.Bidirectional(layer(return_sequences=True)),
        keras.layers.Dense(FEATURES),
        sequence(Block(), keras.layers.Dense(FEATURES), layer(return_sequences=True)),
        GRU(UNITS, stateful=True),
        keras.layers.Dropout(0.5),
    )


def stream_states(model):
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.RNN) and layer.stateful
    ]
    assert len(layers) == 5
    return flat([layer.states for layer in layers])


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_stateful_layer_in_a_model_that_fit_builds(dtype):
    layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True, dtype=dtype)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def call(self, x, training=False):
            return self.rnn(x, training=training)

    model = Subclassed()
    model.compile("sgd", "mse")
    x, y = normal(2 * BATCH, TIMESTEPS, FEATURES), np.zeros((2 * BATCH, UNITS))
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    assert all((state != 0.5).any() for state in flat(layer.states))
    reset_states(model)
    assert_same(layer.states, [np.full((BATCH, UNITS), 0.5, "float32")] * 2)


class TestResetStates:
    def test_function_resets_every_stateful_layer(self):
        model = nested_model()
        fresh = stream_states(model)
        model(X)
        carried = stream_states(model)
        assert all((a != b).any() for a, b in zip(fresh, carried, strict=True))
        reset_states(model)
        assert_same(stream_states(model), fresh)

    @pytest.mark.parametrize("not_a_model", [None, 1, "model", [keras.layers.LSTM(1)]])
    def test_function_needs_a_model(self, not_a_model):
        with pytest.raises(ValueError, match="`model` must be a model or layer"):
            reset_states(not_a_model)

    def test_a_model_without_streams_is_left_alone(self):
        reset_states(keras.Sequential([keras.Input((2, 2)), InitStateLSTM(2)]))
        reset_states(InitStateLSTM(2, stateful=True))

    def test_only_layers_that_are_stateful_and_can_be_reset(self):
        class Other(keras.layers.Layer):
            stateful = True

        class Counter(keras.layers.Layer):
            def reset_state(self):
                raise AssertionError("not stateful")

        reset_states(keras.Sequential([Other(), Counter()]))

    @pytest.mark.parametrize("run", ["fit", "evaluate", "predict"])
    def test_with_the_callback_every_run_equals_the_first(self, run):
        model = nested_model()
        model.compile(keras.optimizers.SGD(0.0), "mse", **WITHOUT_XLA)
        x, y = normal(4 * BATCH, TIMESTEPS, FEATURES), np.zeros((4 * BATCH, UNITS))
        data = (x,) if run == "predict" else (x, y)
        options = {"batch_size": BATCH, "verbose": 0}
        if run == "fit":
            options |= {"shuffle": False, "epochs": 3}

        def results(callbacks):
            if run == "fit":
                history = model.fit(*data, **options, callbacks=callbacks)
                return history.history["loss"]
            call = getattr(model, run)
            return [call(*data, **options, callbacks=callbacks) for _ in range(3)]

        model.layers[-1].rate = 0.0
        first, second, third = results([ResetStates()])
        assert_same([second, third], [first, first], tolerance=1e-6)
        without = results([])
        assert np.any(np.asarray(without[1]) != np.asarray(first))

    def test_validation_in_fit_and_the_epoch_after_it_are_reset(self):
        model = nested_model()
        model.layers[-1].rate = 0.0
        model.compile(keras.optimizers.SGD(0.0), "mse", **WITHOUT_XLA)
        x, y = normal(2 * BATCH, TIMESTEPS, FEATURES), np.zeros((2 * BATCH, UNITS))
        history = model.fit(
            x,
            y,
            epochs=2,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
            validation_batch_size=BATCH,
            callbacks=[ResetStates()],
        ).history
        losses = [*history["loss"], *history["val_loss"]]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


class TestStatesOfALayer:
    """They are not variables, but are converted to tensors."""

    @pytest.mark.parametrize("fresh", [True, False])
    def test_are_converted_to_tensors(self, fresh):
        layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
        layer(X)
        if fresh:
            layer.reset_state()
        want = [to_numpy(state.value) for state in layer.states]
        for convert in (np.array, keras.ops.convert_to_tensor, keras.ops.copy):
            assert_same([convert(state) for state in layer.states], want)
        assert_same(keras.ops.add(layer.states[0], 1.0), want[0] + 1)
        other = InitStateLSTM(UNITS)
        lstm = keras.layers.LSTM(UNITS)
        for called in (other, lstm):
            got = called(X, initial_state=layer.states)
            assert_same(got, called(X, initial_state=want))
        other = InitStateLSTM(UNITS, stateful=True)
        other.reset_states(layer.states)
        assert_same(other.states, want)
        for state in layer.states:
            assert (state.fresh == fresh).all() and not state.trainable
            assert state.shape == (BATCH, UNITS) and state.dtype == "float32"

    @pytest.mark.tensorflow
    def test_are_converted_to_tensors_in_a_graph(self):
        layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
        layer.build(X.shape)
        got = compiled(lambda: [tf.convert_to_tensor(s) for s in layer.states])()
        assert_same(got, [np.full((BATCH, UNITS), 0.5, "float32")] * 2)


class TestFit:
    """A stream in `fit`, `evaluate` and `predict`, compared with Keras's LSTM."""

    x = normal(3 * BATCH, TIMESTEPS, FEATURES)

    def model(self, layer, loss="mse"):
        shape = keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH)
        model = keras.Sequential([shape, layer])
        model.compile(keras.optimizers.SGD(0.0), loss, **WITHOUT_XLA)
        return model

    def run(self, model, how, x=x, callbacks=()):
        y = np.zeros((len(x), UNITS))
        data = (x,) if how == "predict" else (x, y)
        options = {"batch_size": BATCH, "verbose": 0, "callbacks": list(callbacks)}
        if how == "fit":
            options["shuffle"] = False
        return getattr(model, how)(*data, **options)

    @pytest.mark.parametrize("how", ["fit", "evaluate", "predict"])
    @pytest.mark.parametrize("start", ["trainable", 0.5, Conditional(encoder())])
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    def test_continues_from_batch_to_batch(self, cls, start, how):
        layer = cls(UNITS, initial_state=start, stateful=True, use_cudnn=False)
        if layer.takes_context:
            # Use the first timestep as the context: the model has one input.
            x = keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH)
            model = keras.Model(x, layer(x, context=x[:, 0]))
            model.compile(keras.optimizers.SGD(0.0), "mse", **WITHOUT_XLA)
            contexts = [{"context": x[:, 0]} for x in np.split(self.x, 3)]
        else:
            model, contexts = self.model(layer), [{}] * 3
        counted, saved = model.count_params(), len(model.weights)
        self.run(model, how)
        got = [to_numpy(state) for state in layer.states]
        layer.reset_state()
        for x, context in zip(np.split(self.x, 3), contexts, strict=True):
            layer(x, **context)
        assert_same(got, layer.states, tolerance=1e-6)
        assert (model.count_params(), len(model.weights)) == (counted, saved)

    def test_of_keras(self):
        # The README says this of Keras. The test fails if Keras changes.
        layer = keras.layers.LSTM(UNITS, stateful=True)
        model = self.model(layer)
        if BACKEND == "torch":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                self.run(model, "fit")
            return
        self.run(model, "fit")
        carried = any(np.any(to_numpy(state)) for state in layer.states)
        assert carried == (BACKEND == "tensorflow")

    def test_may_be_reset_within_an_epoch(self):
        class Reset(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                reset_states(self.model)

        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)
        self.run(self.model(layer), "fit", callbacks=[Reset()])
        got = [to_numpy(state) for state in layer.states]
        layer.reset_state()
        layer(self.x[2 * BATCH :])
        assert_same(got, layer.states, tolerance=1e-6)

    @pytest.mark.skipif(BACKEND != "jax", reason="not lost elsewhere")
    def test_a_reset_that_would_be_lost_raises(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)

        class Reset(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                with pytest.raises(ValueError, match=r"Call .*reset_states\(model\)"):
                    layer.reset_states()

        self.run(self.model(layer), "fit", callbacks=[Reset()])
        layer.reset_states()
        assert all(state.fresh.all() for state in layer.states)

    @pytest.mark.parametrize("how", ["fit", "evaluate", "predict"])
    def test_the_error_of_a_smaller_last_batch(self, how):
        layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
        # A loss that compares shapes may raise its own error first in a graph.
        model = self.model(layer, lambda _, outputs: keras.ops.mean(outputs))
        errors = (ValueError, tf.errors.InvalidArgumentError) if tf else ValueError
        # In a graph of TensorFlow, the message is the name of a node.
        message = rf"Expected.a.batch.size.of.{BATCH}.+as.in.+last.batch"
        with pytest.raises(errors, match=message):
            self.run(model, how, x=self.x[:-1])
        if BACKEND != "jax":  # On JAX, the stream is lost with the epoch.
            other = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
            other(self.x[:BATCH])
            other.set_weights(layer.get_weights())
            other.reset_state()
            for x in np.split(self.x[: 2 * BATCH], 2):
                other(x)
            assert_same(layer.states, other.states, tolerance=1e-6)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_reads_a_pydataset_in_order(self, workers, request):
        if workers > 1 and BACKEND != "tensorflow":
            # Keras reads the first batch for the shapes, and then returns it after the
            # batches that its workers have prepared. The documents say so.
            request.applymarker(pytest.mark.xfail(strict=True, reason="a bug of Keras"))

        class Digits(keras.utils.PyDataset):
            def __len__(self):
                return 5

            def __getitem__(self, index):
                return np.full((1, 1, 1), index, "float32"), np.zeros((1, 1))

        # The digits of the state are the batches that the layer has read.
        layer = InitStateSimpleRNN(
            1,
            activation="linear",
            kernel_initializer="ones",
            recurrent_initializer=keras.initializers.Constant(10.0),
            stateful=True,
        )
        model = keras.Sequential([keras.Input((1, 1), batch_size=1), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse", **WITHOUT_XLA)
        model.fit(Digits(workers=workers), shuffle=False, verbose=0)
        assert layer.states[0].numpy().item() == 1234  # 0, 1, 2, 3, 4

    @pytest.mark.skipif(BACKEND != "jax", reason="needed only there")
    def test_a_stateless_call_returns_the_stream(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)
        model = self.model(layer)
        trained, others = (
            [v.value for v in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        )
        for x in np.split(self.x, 3):
            got, others = model.stateless_call(trained, others, x)
        assert all(state.fresh.all() for state in layer.states)
        for x in np.split(self.x, 3):
            want = layer(x)
        assert_same(got, want, tolerance=1e-6)
