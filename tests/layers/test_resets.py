"""Calls with a reset mask."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import layers, ops

from backends import tf
from keras_init_lstm import (
    Conditional,
    InitialState,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
)
from keras_init_lstm._keras import mask_of, rnn_hands_mask_on
from models import BATCH, CONTEXT, FEATURES, TIMESTEPS, UNITS, X, normal
from oracles import (
    assert_same,
    by_pieces,
    encoded,
    flat,
    gradients,
    nested,
    owned_values,
    pieces,
    to_numpy,
)
from strategies import ALL_KINDS, arrays, at_most, for_each_layer

RESET = np.zeros((BATCH, TIMESTEPS), bool)
RESET[0, 2] = RESET[1, [0, 3]] = RESET[2, [1, 2, 4]] = True


@st.composite
def reset_masks(draw, batch, timesteps):
    size = batch * timesteps
    drawn = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.reshape(drawn, (batch, timesteps))


class TestTheRule:
    @for_each_layer(ALL_KINDS, dropout=False, dtypes=["float32", "float64"])
    def test_equals_a_run_of_each_piece_alone(self, case, data):
        assume(not case.misplaces_zeros and case.goes_both_ways)
        layer = case.layer()
        reset_mask = data.draw(reset_masks(*case.inputs.shape[:2]))
        owned = keras.tree.flatten(case.states(layer))
        explicit = [
            data.draw(st.none() | arrays(case.batch, units))
            for units in layer.state_units
        ]
        pairs = zip(explicit, owned, strict=True)
        want, *states = by_pieces(
            case,
            case.reference(layer, return_sequences=True, return_state=True),
            reset_mask,
            [own if state is None else state for state, own in pairs],
            lambda row, _: [state[row] for state in owned],
        )
        if not layer.return_sequences:
            want = want[:, -1]
        got = case.call(
            layer, initial_state=nested(layer, explicit), reset_mask=reset_mask
        )
        if layer.return_state:
            want = [want, *states]
        assert_same(got, want, case.tolerance)

    @pytest.mark.tensorflow
    @for_each_layer(
        ["trainable"],
        dropout=False,
        dtypes=["float64"],
        return_sequences=True,
        return_state=True,
        go_backwards=False,
    )
    def test_gradients(self, case, data):
        assume(not case.misplaces_zeros)
        layer = case.layer()
        reset_mask = data.draw(reset_masks(*case.inputs.shape[:2]))
        inputs = tf.constant(case.inputs, "float64")
        case = dataclasses.replace(case, inputs=inputs)
        reference = case.reference(layer)
        values = [tf.constant(value) for value in owned_values(layer)]

        def loss(outputs):
            return sum(tf.reduce_sum(o**3) for o in keras.tree.flatten(outputs))

        with tf.GradientTape() as tape:
            tape.watch([inputs, *values])
            tiled = [tf.tile(v[None], (case.batch, 1)) for v in values]
            expected = loss(
                by_pieces(case, reference, reset_mask, tiled, lambda *_: values)
            )
        weights = [weight.value for weight in reference.trainable_weights]
        want = tape.gradient(expected, [inputs, *weights, *values])
        training = data.draw(st.booleans())
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            got_loss = loss(case.call(layer, reset_mask=reset_mask, training=training))
        weights = [weight.value for weight in layer.trainable_weights]
        got = tape.gradient(got_loss, [inputs, *weights])
        zero = [tf.zeros_like(w) for w in [inputs, *weights]]
        want, got = (
            [z if g is None else g for z, g in zip(zero, found, strict=True)]
            for found in (want, got)
        )
        assert_same(got, want, 1e-9)

    @pytest.mark.tensorflow
    def test_second_derivatives_by_all_initial_states(self):
        found = []
        for use_fused in (True, False):
            layer = lstm(use_fused=use_fused, dtype="float64")
            values = [kind.value.value for kind in layer.initial_state]

            def call(layer=layer):
                return layer(X.astype("float64"), reset_mask=RESET)

            found.append(gradients(call, values, order=2))
        assert_same(*found, 1e-9)

    @pytest.mark.parametrize("go_backwards", [False, True])
    @pytest.mark.parametrize("use_fused", [False, "auto"])
    def test_a_context_with_a_time_axis_is_read_at_the_resets(
        self, go_backwards, use_fused
    ):
        timesteps = 9  # For fewer timesteps, "auto" does not choose the fused loop.
        x, context = normal(BATCH, timesteps, FEATURES), normal(BATCH, timesteps, 6)
        reset_mask = np.tile(RESET, 2)[:, :timesteps]
        start = Conditional(layers.Dense(UNITS, activation="tanh"), over_time=True)
        layer = InitStateLSTM(
            UNITS,
            initial_state=start,
            go_backwards=go_backwards,
            return_sequences=True,
            return_state=True,
            use_fused=use_fused,
        )
        got = layer(x, context=context, reset_mask=reset_mask)
        reference = layers.LSTM(
            UNITS, go_backwards=go_backwards, return_sequences=True, return_state=True
        )
        reference.build(x.shape)
        reference.set_weights(layer.cell.get_weights())
        case = _Inputs(x, None)

        def start_at(row, timestep):
            at = context[row, timestep]
            return [encoded(entry.encoder, at) for entry in layer.initial_state]

        first = [
            np.stack(
                [start_at(row, -1 if go_backwards else 0)[k] for row in range(BATCH)]
            )
            for k in range(2)
        ]
        want = by_pieces(case, reference, reset_mask, first, start_at)
        assert_same(got, want, 1e-5)
        alone = layer.get_initial_state(BATCH, context=context)
        assert_same(alone, first, 1e-5)
        # A call without a reset mask has the same initial states.
        want = reference(x, initial_state=first)
        assert_same(layer(x, context=context), want, 1e-5)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    inputs: object
    mask: object


@keras.saving.register_keras_serializable()
class KeepingCell(layers.Layer):
    """A cell whose outputs are its initial states."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def call(self, inputs, states):
        return states[0], [states[0]]


class TestSampled:
    def test_is_drawn_for_each_piece(self):
        shape = (64, 9, 1)
        start = Sampled(mean=2.0, stddev=0.5, seed=3)
        layer = InitStateRNN(KeepingCell(8), initial_state=start, return_sequences=True)
        reset_mask = np.random.default_rng(0).random(shape[:2]) < 0.3
        outputs = to_numpy(layer(np.zeros(shape), reset_mask=reset_mask, training=True))
        drawn = []
        for row, marks in enumerate(reset_mask):
            for begin, end in pieces(marks):
                of_piece = outputs[row, begin:end]
                assert (of_piece == of_piece[0]).all()
                drawn.append(of_piece[0])
        drawn = np.concatenate(drawn)
        assert len(np.unique(drawn)) > 0.99 * len(drawn)
        assert abs(drawn.mean() - 2.0) < 0.05 and abs(drawn.std() - 0.5) < 0.05

    @pytest.mark.tensorflow
    def test_is_drawn_for_each_piece_in_the_fused_loop(self):
        x, reset_mask = normal(3, 12, FEATURES), np.zeros((3, 12), bool)
        reset_mask[:, [4, 5, 9]] = True

        def run(use_fused):
            layer = InitStateLSTM(
                UNITS,
                initial_state=Sampled(stddev=1.0, learned=True, seed=5),
                seed=1,
                return_sequences=True,
                kernel_initializer=keras.initializers.RandomNormal(seed=1),
                recurrent_initializer=keras.initializers.RandomNormal(seed=2),
                use_fused=use_fused,
            )
            with tf.GradientTape() as tape:
                outputs = layer(x, reset_mask=reset_mask, training=True)
                loss = tf.reduce_sum(outputs**3)
            return outputs, tape.gradient(loss, layer.trainable_weights)

        assert_same(run(True), run(False), 1e-5)

    @pytest.mark.tensorflow
    def test_layers_of_one_size_may_differ_in_the_kind_that_is_drawn(self):
        """Layers of one size may share a compiled loop."""
        options = {
            "use_fused": True,
            "kernel_initializer": "ones",
            "recurrent_initializer": "ones",
        }
        got = [
            InitStateGRU(7, initial_state=start, **options)(
                X, reset_mask=RESET, training=True
            )
            for start in ("trainable", Sampled(stddev=0.0), "trainable")
        ]
        assert_same(got[1:], got[:1] * 2)

    def test_is_the_mean_at_inference(self):
        layer = InitStateLSTM(UNITS, initial_state=Sampled(0.5, 10.0))
        twin = InitStateLSTM(UNITS, initial_state=0.5, seed=0)
        twin.build(X.shape)
        layer.build(X.shape)
        twin.set_weights([*layer.cell.get_weights(), *twin.get_weights()[3:]])
        assert_same(layer(X, reset_mask=RESET), twin(X, reset_mask=RESET))


def lstm(**kwargs):
    kwargs = {"initial_state": "trainable", "return_sequences": True, **kwargs}
    layer = InitStateLSTM(UNITS, **kwargs)
    layer.build(X.shape)
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(0, 0.5, w.shape) for w in layer.get_weights()])
    return layer


class Tiled(InitialState):
    """A custom kind without `by_timestep()`."""

    takes_context = True

    def build(self, state_shape, context_shape):
        super().build(state_shape)

    def call(self, batch_size, training=False, context=None):
        return ops.tile(context, (1, self.units))


def test_by_default_rows_reset_to_their_initial_state():
    context = normal(BATCH, 1)
    layer = InitStateLSTM(UNITS, initial_state=Tiled(), return_sequences=True)
    got = layer(X, context=context, reset_mask=np.ones_like(RESET))
    initial_state = layer.get_initial_state(BATCH, context=context)
    want = [
        layer(X[:, t : t + 1], initial_state=initial_state, context=context)
        for t in range(TIMESTEPS)
    ]
    assert_same(got, np.concatenate(flat(want), 1), 1e-6)


class TestOneValuePerRow:
    @pytest.mark.parametrize("go_backwards", [False, True])
    def test_rows_start_from_the_owned_initial_state(self, go_backwards):
        layer = lstm(go_backwards=go_backwards)
        h, c = normal(BATCH, UNITS), normal(BATCH, UNITS, seed=1)
        rows = np.array([True, False, False, True])
        owned = layer.get_initial_state(BATCH)
        want = [
            np.where(rows[:, None], own, state)
            for own, state in zip(flat(owned), (h, c), strict=True)
        ]
        got = layer(X, initial_state=[h, c], reset_mask=rows)
        assert_same(got, layer(X, initial_state=want))

    def test_equals_a_mask_that_is_true_at_the_first_timestep(self):
        layer = lstm()
        h = c = normal(BATCH, UNITS)
        columns = np.zeros((BATCH, TIMESTEPS), bool)
        columns[[0, 3], 0] = True
        got = layer(X, initial_state=[h, c], reset_mask=columns[:, 0])
        assert_same(got, layer(X, initial_state=[h, c], reset_mask=columns), 1e-6)


class TestStreams:
    def test_chunks_equal_the_whole(self):
        whole = lstm(use_fused=False)
        stream = lstm(stateful=True, use_fused=False)
        x, reset_mask = normal(BATCH, 3 * TIMESTEPS, FEATURES), np.tile(RESET, 3)
        reset_mask[3, TIMESTEPS] = True  # At the first timestep of a chunk.
        want = whole(x, reset_mask=reset_mask)
        chunks = [
            stream(x[:, k : k + TIMESTEPS], reset_mask=reset_mask[:, k : k + TIMESTEPS])
            for k in range(0, 3 * TIMESTEPS, TIMESTEPS)
        ]
        assert_same(np.concatenate(flat(chunks), 1), want, 1e-6)

    def test_single_rows_reset_in_fit(self):
        """A learned state gets its gradient only from the rows that are reset."""
        inputs = keras.Input(batch_shape=X.shape)
        reset = keras.Input(batch_shape=(BATCH,), dtype="bool")
        layer = InitStateGRU(UNITS, initial_state="trainable", stateful=True)
        model = keras.Model([inputs, reset], layer(inputs, reset_mask=reset))
        model.compile(keras.optimizers.SGD(1.0), "mse")
        y, no = np.ones((BATCH, UNITS)), np.zeros(BATCH, bool)

        def change(marks):
            before = to_numpy(layer.h0.value)
            model.fit([X, marks], y, BATCH, verbose=0)
            return np.abs(to_numpy(layer.h0.value) - before).max()

        assert change(no) > 0  # The first call starts from the learned state.
        assert change(no) == 0
        assert change(np.array([False, True, False, False])) > 0


class TestBidirectional:
    @at_most(10)
    @given(reset_masks(BATCH, TIMESTEPS), st.booleans())
    def test_each_direction_reads_each_piece_from_its_own_end(self, marks, conditional):
        start = Conditional(layers.Dense(UNITS)) if conditional else "trainable"
        context = {"context": CONTEXT} if conditional else {}
        layer = InitStateBidirectional(
            InitStateLSTM(UNITS, initial_state=start, return_sequences=True)
        )
        got = to_numpy(layer(X, reset_mask=marks, **context))
        for row in range(BATCH):
            one = {key: value[row : row + 1] for key, value in context.items()}
            want = [
                layer(X[row : row + 1, begin:end], **one)
                for begin, end in pieces(marks[row])
            ]
            assert_same(got[row : row + 1], np.concatenate(flat(want), 1), 1e-5)

    def test_one_direction_with_a_context(self):
        forward = InitStateLSTM(UNITS, initial_state=Conditional(layers.Dense(UNITS)))
        backward = InitStateLSTM(UNITS, go_backwards=True)
        layer = InitStateBidirectional(forward, backward_layer=backward)
        got = layer(X, context=CONTEXT, reset_mask=RESET)
        want = [
            layer.forward_layer(X, context=CONTEXT, reset_mask=RESET),
            layer.backward_layer(X, reset_mask=RESET),
        ]
        assert_same(got, np.concatenate(flat(want), 1))


class TestElsewhereInKeras:
    def test_an_implicit_mask_is_kept(self):
        tokens = np.array([[1, 2, 0, 3, 0], [0, 1, 2, 3, 0]])
        embedded = layers.Embedding(4, FEATURES, mask_zero=True)(tokens)
        layer, marks = lstm(), RESET[:2]
        got = layer(embedded, reset_mask=marks)
        want = layer(ops.copy(embedded), mask=tokens != 0, reset_mask=marks)
        assert_same(got, want)
        if rnn_hands_mask_on():
            assert_same(mask_of(got), tokens != 0)
        else:
            assert mask_of(got) is None

    def test_in_a_functional_model_that_is_fitted_saved_and_loaded(self, tmp_path):
        inputs = keras.Input((None, FEATURES))
        reset = keras.Input((None,), dtype="bool", name="reset")
        layer = lstm()
        model = keras.Model([inputs, reset], layer(inputs, reset_mask=reset))
        model.compile("sgd", "mse")
        model.fit([X, RESET], np.ones((BATCH, TIMESTEPS, UNITS)), verbose=0)
        got = model.predict([X, RESET], verbose=0)
        assert_same(got, layer(X, reset_mask=RESET), 1e-5)
        assert np.abs(got - to_numpy(layer(X))).max() > 1e-3
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert_same(loaded.predict([X, RESET], verbose=0), got)

    def test_a_constant_in_a_functional_model(self, tmp_path):
        layer, inputs = lstm(), keras.Input(X.shape[1:], BATCH)
        model = keras.Model(inputs, layer(inputs, reset_mask=RESET))
        want = layer(X, reset_mask=RESET)
        assert_same(model(X), want, 1e-6)
        model.save(tmp_path / "model.keras")
        assert_same(keras.saving.load_model(tmp_path / "model.keras")(X), want, 1e-6)

    @pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
    @pytest.mark.parametrize("use_fused", [False, "auto", True])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("sizes", [(None, None), (BATCH, 15)])
    @pytest.mark.tensorflow
    def test_in_a_graph(self, options, use_fused, masked, sizes):
        layer = lstm(use_fused=use_fused, zero_output_for_mask=False)
        x, reset_mask = normal(BATCH, 15, FEATURES), np.tile(RESET, 3)
        mask = np.random.default_rng(0).random(reset_mask.shape) < 0.6
        given = {"x": x, "reset": reset_mask} | ({"mask": mask} if masked else {})
        if use_fused is True and masked and None in sizes:
            pytest.skip("refused: the mask is not known to be (batch, timesteps)")

        def call(x, reset, mask=None):
            return layer(x, reset_mask=reset, mask=mask)

        specs = {
            name: tf.TensorSpec((*sizes, *array.shape[2:]), array.dtype)
            for name, array in given.items()
        }
        traced = tf.function(call, **options).get_concrete_function(**specs)
        got = traced(**{name: tf.constant(array) for name, array in given.items()})
        plain = lstm(use_fused=False)
        assert_same(got, plain(x, reset_mask=reset_mask, mask=given.get("mask")), 1e-5)

    @pytest.mark.tensorflow
    def test_forward_mode_for_the_states_after_a_reset_alone(self):
        x, layer = normal(2, 9, FEATURES), lstm()
        reset_mask = np.arange(9) == np.array([[3], [5]])
        h0 = layer.h0.value.value
        with tf.autodiff.ForwardAccumulator(h0, tf.ones_like(h0)) as accumulator:
            outputs = layer(
                x, initial_state=[normal(2, UNITS)] * 2, reset_mask=reset_mask
            )
        moved = np.abs(accumulator.jvp(outputs)).max(-1) > 1e-6
        assert (moved == np.logical_or.accumulate(reset_mask, axis=1)).all()

    @pytest.mark.tensorflow
    def test_a_mask_of_another_shape_raises_at_run_time_in_a_graph(self):
        layer = lstm()
        unknown = tf.TensorSpec((None, None), "bool")

        @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES)), unknown])
        def call(x, reset):
            return layer(x, reset_mask=reset)

        call(X, RESET)
        with pytest.raises(tf.errors.InvalidArgumentError, match="reset_mask"):
            call(X, RESET[:, 1:])

    @pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
    def test_under_a_policy_of_mixed_precision(self, dtype):
        layer = lstm(dtype=dtype)
        got = layer(X, reset_mask=RESET)
        assert keras.backend.standardize_dtype(got.dtype) == layer.compute_dtype
        assert_same(ops.cast(got, "float32"), lstm()(X, reset_mask=RESET), 5e-2)


class TestInvalidArguments:
    @pytest.mark.parametrize(
        "reset_mask",
        [
            RESET[:, 1:],
            RESET[1:],
            RESET[:1],
            RESET[..., None],
            RESET[0, 0],
            np.zeros(TIMESTEPS, bool),
            RESET.astype("float32"),
            True,
            "first",
            [[True], [True, False]],
            RESET.astype(object),
            RESET.astype(str),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("stateful", [False, True])
    def test_an_invalid_reset_mask(self, reset_mask, stateful):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=stateful)
        with pytest.raises(ValueError, match=r"`reset_mask` must be a boolean tensor"):
            layer(X, reset_mask=reset_mask)
        assert not layer.built
        with pytest.raises(ValueError, match=r"`reset_mask` must be a boolean tensor"):
            InitStateBidirectional(layer)(X, reset_mask=reset_mask)

    def test_a_reset_needs_a_context(self):
        layer = InitStateSimpleRNN(
            UNITS, initial_state=Conditional(layers.Dense(UNITS))
        )
        states = [normal(BATCH, UNITS)]
        with pytest.raises(ValueError, match="`context` is missing"):
            layer(X, initial_state=states, reset_mask=RESET)
        assert not layer.built
        layer(X, initial_state=states)
        with pytest.raises(ValueError, match="`context` is missing"):
            layer(X, initial_state=states, reset_mask=RESET)

    @pytest.mark.parametrize("context", [CONTEXT[:, 0], normal(BATCH, 2, 6)])
    def test_a_context_without_a_time_axis(self, context):
        start = Conditional(layers.Dense(UNITS), over_time=True)
        with pytest.raises(ValueError, match="`context` must have a time axis"):
            InitStateLSTM(UNITS, initial_state=start)(X, context=context)

    def test_an_invalid_option(self):
        with pytest.raises(ValueError, match="`over_time` must be one of"):
            Conditional(layers.Dense(UNITS), over_time="yes")


def test_a_list_and_integers_are_accepted():
    layer = lstm()
    want = layer(X, reset_mask=RESET)
    assert_same(layer(X, reset_mask=RESET.tolist()), want)
    assert_same(layer(X, reset_mask=RESET.astype("int32")), want)


def test_a_mask_without_a_reset_changes_nothing():
    layer = lstm(use_fused=False)
    assert_same(layer(X, reset_mask=np.zeros_like(RESET)), layer(X), 1e-6)
