"""All states of a layer after each timestep."""

import keras
import numpy as np
import pytest

from backends import FUSES, compiled
from keras_init_lstm import (
    Conditional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
)
from models import BATCH, CONTEXT, FEATURES, TIMESTEPS, UNITS, X, encoder, normal
from oracles import assert_same, flat, nested, reference_of, to_numpy
from strategies import ALL_KINDS, for_each_layer


def first_read(layer, array, count):
    """The `count` timesteps that a layer reads first, `(batch, count, ...)`."""
    if array is None:
        return None
    return array[:, -count:] if layer.go_backwards else array[:, :count]


def states_of_prefixes(reference, inputs, mask, call):
    """The last states of Keras's layer, called on each prefix, along a time axis."""
    last = []
    for count in range(1, inputs.shape[1] + 1):
        kwargs = {} if mask is None else {"mask": first_read(reference, mask, count)}
        _, *states = call(first_read(reference, inputs, count), **kwargs)
        last.append(flat(states))
    return [np.stack(of_state, axis=1) for of_state in zip(*last, strict=True)]


class TestStatesOverTime:
    @for_each_layer(ALL_KINDS, dropout=False, examples=10)
    def test_equal_keras_on_each_prefix(self, case):
        layer = case.layer()
        # Keras's unrolled loops reverse no mask.
        options = {"return_state": True, "return_sequences": False, "unroll": False}
        reference = case.reference(layer, **options)
        states = case.states(layer)
        want = states_of_prefixes(
            reference,
            case.inputs,
            case.mask,
            lambda x, **kwargs: reference(x, initial_state=states, **kwargs),
        )
        kwargs = {"context": case.context} if layer.takes_context else {}
        got = layer.states_over_time(case.inputs, mask=case.mask, **kwargs)
        keras.tree.assert_same_structure(got, nested(layer, want))
        assert_same(got, want, case.tolerance)

    @for_each_layer(("zeros", "sampled"), unroll=False, examples=6)
    def test_in_training_draw_what_a_call_draws(self, case):
        layer, twin = case.layer(return_state=True), case.layer()
        for kind, other in zip(layer.initial_state, twin.initial_state, strict=True):
            if kind is not None:
                other.seed_generator.state.assign(to_numpy(kind.seed_generator.state))
        for _ in range(2):
            _, *last = case.call(layer, training=True)
            got = twin.states_over_time(case.inputs, mask=case.mask, training=True)
            assert_same([state[:, -1] for state in flat(got)], last, case.tolerance)

    @pytest.mark.parametrize("go_backwards", [False, True])
    @pytest.mark.parametrize("shape", [(BATCH,), (BATCH, TIMESTEPS)])
    @pytest.mark.parametrize("over_time", [False, True])
    def test_with_resets(self, go_backwards, shape, over_time):
        kind = Conditional(encoder(), over_time=over_time)
        cells = [keras.layers.LSTMCell(UNITS), keras.layers.GRUCell(UNITS)]
        layer = InitStateRNN(
            cells,
            initial_state=[[kind, 0.5], "trainable"],
            go_backwards=go_backwards,
            return_state=True,
        )
        rng = np.random.default_rng(len(shape))
        reset_mask, mask = rng.random(shape) < 0.4, rng.random((BATCH, TIMESTEPS)) < 0.7
        context = normal(BATCH, TIMESTEPS, CONTEXT.shape[1]) if over_time else CONTEXT
        given = [normal(BATCH, UNITS, seed=k) for k in range(3)]
        given = [given[:2], given[2:]]
        got = layer.states_over_time(
            X, mask, given, context=context, reset_mask=reset_mask
        )
        for count in range(1, TIMESTEPS + 1):
            of_timesteps = [context] if over_time else []
            of_timesteps += [reset_mask] if len(shape) == 2 else []
            part = [first_read(layer, array, count) for array in of_timesteps]
            _, *want = layer(
                first_read(layer, X, count),
                mask=first_read(layer, mask, count),
                initial_state=given,
                context=part[0] if over_time else context,
                reset_mask=part[-1] if len(shape) == 2 else reset_mask,
            )
            assert_same([s[:, count - 1] for s in flat(got)], want, 1e-5)

    def test_gradients_equal_keras_on_each_prefix(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        layer(X)
        reference = reference_of(layer, return_state=True)

        class AllStates(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.lstm = layer

            def call(self, x):
                return keras.ops.concatenate(self.lstm.states_over_time(x), axis=-1)

        class OfPrefixes(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.lstm = reference
                self.h, self.c = (self.add_weight(shape=(UNITS,)) for _ in range(2))

            def call(self, x):
                rows = (keras.ops.shape(x)[0], UNITS)
                states = [keras.ops.broadcast_to(s, rows) for s in (self.h, self.c)]
                last = [
                    keras.ops.concatenate(
                        self.lstm(x[:, :count], initial_state=states)[1:], axis=-1
                    )
                    for count in range(1, TIMESTEPS + 1)
                ]
                return keras.ops.stack(last, axis=1)

        ours, theirs = AllStates(), OfPrefixes()
        for weight in (theirs.h, theirs.c):
            weight.assign(np.zeros(UNITS))
        trained = []
        for wrapper in (ours, theirs):
            model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), wrapper])
            model.compile(keras.optimizers.SGD(0.5), "mse")
            target = np.ones((BATCH, TIMESTEPS, 2 * UNITS))
            model.fit(X, target, batch_size=3, epochs=2, shuffle=False, verbose=0)
            trained.append(model)
        got = [*layer.cell.weights, layer.h0.value, layer.c0.value]
        assert_same(got, [*reference.weights, theirs.h, theirs.c], 1e-5)
        assert to_numpy(layer.h0.value).all()

    def test_explicit_states_and_the_implicit_mask(self):
        layer = InitStateLSTM(UNITS, initial_state=0.5, return_state=True)
        x = np.where(np.arange(TIMESTEPS)[None, :, None] < 2, X, 0)
        mask = np.tile(np.arange(TIMESTEPS) < 2, (BATCH, 1))
        h = normal(BATCH, UNITS)
        want = layer.states_over_time(x, mask=mask, initial_state=[h, None])
        assert_same([state[:, -1] for state in want], [s[:, 1] for s in want])
        masked = keras.layers.Masking()(keras.ops.convert_to_tensor(x))
        assert_same(layer.states_over_time(masked, initial_state=[h, None]), want)
        c = np.full((BATCH, UNITS), 0.5)
        named = {"lstm/h0": h, "lstm/c0": c}
        assert_same(layer.states_over_time(x, mask, initial_state=named), want)

    @pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
    def test_leaves_a_stream_unchanged(self, dtype):
        layer = InitStateGRU(
            UNITS, initial_state="trainable", stateful=True, dtype=dtype
        )
        layer.assign_initial_state([np.full(UNITS, 0.5)]), layer(X)
        layer.reset_states(rows=[0])
        before = [layer.states[0].carried(), layer.states[0].fresh]
        more = normal(BATCH + 1, TIMESTEPS, FEATURES)
        got = layer.states_over_time(more)
        assert_same([layer.states[0].carried(), layer.states[0].fresh], before)
        stateless = InitStateGRU.from_keras(layer, stateful=False, dtype=dtype)
        assert_same(got, stateless.states_over_time(more))
        assert keras.backend.standardize_dtype(got[0].dtype) == layer.compute_dtype

    @pytest.mark.skipif(not FUSES, reason="a backend without a fused loop")
    @pytest.mark.parametrize("has_mask", [False, True])
    @pytest.mark.parametrize("make", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
    def test_the_fused_loop_runs_where_the_output_is_the_state(
        self, make, has_mask, taken
    ):
        layer = make(UNITS, initial_state=0.5, use_fused=True, go_backwards=True)
        mask = np.ones(X.shape[:2], bool) if has_mask else None
        reset_mask = np.arange(TIMESTEPS) == [[1], [2], [4], [0]]
        got = layer.states_over_time(X, mask=mask, reset_mask=reset_mask)
        assert bool(taken) == (make is not InitStateLSTM and not has_mask)
        layer.use_fused = False
        want = layer.states_over_time(X, mask=mask, reset_mask=reset_mask)
        assert_same(got, want, tolerance=1e-6)

    def test_in_a_compiled_function(self):
        layer = InitStateLSTM(UNITS, initial_state=Sampled(0.5, 0.1, seed=1))
        layer(X)
        got = compiled(layer.states_over_time)(keras.ops.convert_to_tensor(X))
        assert_same(got, layer.states_over_time(X), 1e-6)

    def test_a_forecast_from_every_timestep(self):
        """Backtesting, as in the documents."""
        encoder = InitStateLSTM(UNITS, initial_state="trainable")
        decoder = InitStateLSTM(UNITS, return_sequences=True)
        future = normal(BATCH, TIMESTEPS, 2, 1)
        states = encoder.states_over_time(X)
        rows = (BATCH * TIMESTEPS, UNITS)
        got = decoder(
            np.reshape(future, (BATCH * TIMESTEPS, 2, 1)),
            initial_state=[keras.ops.reshape(state, rows) for state in states],
        )
        got = np.reshape(to_numpy(got), (BATCH, TIMESTEPS, 2, UNITS))
        reading = InitStateLSTM.from_keras(encoder, return_state=True)
        for count in range(1, TIMESTEPS + 1):
            _, *last = reading(X[:, :count])
            want = decoder(future[:, count - 1], initial_state=last)
            assert_same(got[:, count - 1], want, 1e-5)


class TestInvalidCalls:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mask": np.ones((BATCH, TIMESTEPS + 1), bool)}, "`mask` must be"),
            ({"mask": np.ones(BATCH, bool)}, "`mask` must be"),
            ({"initial_state": [np.ones((BATCH, UNITS))]}, "`initial_state` must be"),
            ({"initial_state": np.ones((2, 1, 1))}, "`initial_state"),
            ({"reset_mask": np.ones((BATCH, 1), bool)}, "`reset_mask` must be"),
            ({"context": CONTEXT}, "`context` is for a layer with a `Conditional`"),
            ({"sequences": keras.Input((None, FEATURES))}, "no symbolic tensors"),
            ({"sequences": X[0]}, "expected ndim=3"),
        ],
        ids=str,
    )
    def test_arguments_that_do_not_fit(self, arguments, message):
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        layer(X)
        weights = layer.get_weights()
        with pytest.raises(ValueError, match=message):
            layer.states_over_time(**{"sequences": X, **arguments})
        assert_same(layer.get_weights(), weights)

    def test_a_missing_context_builds_nothing(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match="`context` is missing"):
            layer.states_over_time(X)
        assert not layer.built
        h, c = layer.states_over_time(X, context=CONTEXT)
        assert layer.built and h.shape == c.shape == (BATCH, TIMESTEPS, UNITS)
