"""The context of a call."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import WIDEST, tf
from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
)
from models import (
    BATCH,
    CONTEXT,
    FEATURES,
    TIMESTEPS,
    UNITS,
    WRAPS,
    X,
    encoder,
    normal,
)
from oracles import assert_same, flat, reference_of, to_numpy


class TestContext:
    def test_ids_are_not_cast(self):
        # In bfloat16, 257 is 256; in float32, 2**24 + 1 is 2**24.
        table = np.arange(600.0).reshape(300, 2)
        embedding = layers.Embedding(300, UNITS, weights=[table], dtype="float32")
        layer = InitStateLSTM(
            UNITS, initial_state=Conditional(embedding), dtype="mixed_bfloat16"
        )
        seen = []

        class Look(layers.Layer):
            def call(self, context):
                seen.append(keras.backend.standardize_dtype(context.dtype))
                return keras.ops.zeros((len(X), UNITS))

        whole = np.array([257, 1, 2, 3])
        for ids in (whole, keras.ops.convert_to_tensor([257.0, 1, 2, 3])):
            layer(X, context=ids)
            got = layer.initial_state[0].call(4, context=ids)
            np.testing.assert_array_equal(to_numpy(got), table[[257, 1, 2, 3]])
            look = InitStateLSTM(
                UNITS, initial_state=[Conditional(Look(dtype=WIDEST)), None]
            )
            look(X, context=ids)
        as_a_tensor = keras.ops.convert_to_tensor(whole)
        assert seen == [keras.backend.standardize_dtype(as_a_tensor.dtype), WIDEST]

    def test_an_implicit_mask_is_not_lost(self):
        tokens = np.array([[1, 2, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
        embedding = layers.Embedding(3, 2, mask_zero=True)
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        want = layer(
            keras.ops.copy(embedding(tokens)), context=CONTEXT, mask=tokens != 0
        )
        assert_same(layer(embedding(tokens), context=CONTEXT), want)
        x, context = keras.Input((4,)), keras.Input((6,))
        model = keras.Model([x, context], layer(embedding(x), context=context))
        assert_same(model([tokens, CONTEXT]), want)
        bidirectional = InitStateBidirectional(layer)
        got = bidirectional(embedding(tokens), context=CONTEXT)
        want = bidirectional(
            keras.ops.copy(embedding(tokens)), context=CONTEXT, mask=tokens != 0
        )
        assert_same(got, want)

    @pytest.mark.parametrize("kind", ["list", "dict", "model of a list"])
    def test_a_structure_is_passed_unchanged(self, kind):
        class Sum(layers.Layer):
            def call(self, context):
                first, second = keras.tree.flatten(context)
                return first[:, :UNITS] + 2 * second[:, :UNITS]

        first, second = CONTEXT, CONTEXT + 1
        context = {"a": first, "b": second} if kind == "dict" else [first, second]
        encoder = Sum()
        if kind == "model of a list":
            a, b = keras.Input((6,)), keras.Input((6,))
            encoder = keras.Model([a, b], keras.ops.add(a, 2 * b)[:, :UNITS])
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder))
        want = (first + 2 * second)[:, :UNITS]
        got = layer.get_initial_state(BATCH, context=context)
        assert_same(got, [want, want], tolerance=1e-6)
        states = [want, want]
        got = layer(X, context=context)
        assert_same(got, reference_of(layer)(X, initial_state=states), tolerance=1e-6)

    def test_a_list_of_numbers_becomes_an_array(self):
        start = Conditional(layers.Embedding(9, UNITS))
        layer = InitStateLSTM(UNITS, initial_state=start)
        ids = [3, 1, 4, 1]
        assert_same(layer(X, context=ids), layer(X, context=np.array(ids)))
        got = layer.get_initial_state(BATCH, context=ids)
        assert_same(got, layer.get_initial_state(BATCH, context=np.array(ids)))

    def test_an_explicit_state_needs_no_context(self):
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(encoder()), 0.5])
        states = [normal(BATCH, UNITS), np.full((BATCH, UNITS), 0.5, "float32")]
        got = layer(X, initial_state=[states[0], None])
        want = reference_of(layer)(X, initial_state=states)
        assert_same(got, want)
        got = layer(X, initial_state=[states[0], None], context=CONTEXT)
        assert_same(got, want)
        kind = Conditional(encoder(), over_time=True)
        layer = InitStateLSTM(UNITS, initial_state=[kind, 0.5])
        got = layer(X, initial_state=[states[0], None])
        want = reference_of(layer)(X, initial_state=states)
        assert_same(got, want)

    def test_a_layer_shared_between_two_calls(self):
        x, a, b = keras.Input((None, FEATURES)), keras.Input((6,)), keras.Input((6,))
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        outputs = [layer(x, context=a), layer(x, context=b)]
        model = keras.Model([x, a, b], outputs)
        got = model([X, CONTEXT, CONTEXT + 1])
        want = [layer(X, context=c) for c in (CONTEXT, CONTEXT + 1)]
        assert_same(got, want)
        assert (flat(got)[0] != flat(got)[1]).all()


class TestInvalidContext:
    @pytest.mark.parametrize(
        "call",
        [
            "layer",
            pytest.param("graph", marks=pytest.mark.tensorflow),
            "get_initial_state",
        ],
    )
    def test_missing_or_not_used(self, call):
        def run(layer, **kwargs):
            if call == "get_initial_state":
                return layer.get_initial_state(BATCH, **kwargs)
            if call == "graph":
                return tf.function(layer)(X, **kwargs)
            return layer(X, **kwargs)

        with pytest.raises(ValueError, match="`context` is missing.*InitStateBidirec"):
            run(InitStateLSTM(UNITS, initial_state=[None, Conditional(encoder())]))
        with pytest.raises(ValueError, match=r"`context` is for .* has none.*Received"):
            run(InitStateGRU(UNITS, initial_state="trainable"), context=CONTEXT)

    def test_missing_in_wrappers_of_keras(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match="`context` is missing"):
            layers.Bidirectional(layer)(X)
        with pytest.raises(ValueError, match="`context` is missing"):
            layers.TimeDistributed(layer)(X[None])

    @pytest.mark.parametrize("rows", [1, 3, 5])
    def test_another_batch_size(self, rows):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        message = rf"`context` must .* \(4, \.\.\.\).*Received.*\({rows}, 6\)"
        with pytest.raises(ValueError, match=message):
            layer(X, context=np.ones((rows, 6)))

    @pytest.mark.parametrize(
        "context", [5, 0.5, "abc", object(), [[1, 2], [3]], [None] * BATCH]
    )
    def test_other_types(self, context):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match="`context` must be a tensor.*Received"):
            layer(X, context=context)
        assert not layer.built

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("rows", [1, 3, 5])
    def test_another_batch_size_at_run_time(self, rows):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        signature = [tf.TensorSpec((None, TIMESTEPS, FEATURES)), tf.TensorSpec(None)]

        @tf.function(input_signature=signature)
        def call(x, context):
            return layer(x, context=tf.ensure_shape(context, (None, 6)))

        message = rf"`context` must have one row .*Received.*\[{rows} {UNITS}\]"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(X, np.ones((rows, 6), "float32"))
        assert call(X, CONTEXT).shape == (BATCH, UNITS)

    def test_sequences_of_a_custom_cell_without_timesteps(self):
        cell = layers.GRUCell(UNITS)
        layer = InitStateRNN(cell, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match="`sequences` must be .* Received"):
            layer(X[:, 0], context=CONTEXT)
        assert not layer.built

    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize(
        ("x", "context"),
        [
            (np.ones((4, 5)), np.ones((4, 6))),
            (np.ones((4, 5, 3, 2)), np.ones((4, 6))),
            (np.ones((4, 5, 3)), np.ones((4, 5, 6))),
        ],
    )
    def test_a_failed_first_call_leaves_the_layer_unbuilt(
        self, x, context, wrap, stateful
    ):
        start = [Conditional(encoder()), None]
        layer = InitStateLSTM(UNITS, initial_state=start, stateful=stateful)
        layer = WRAPS[wrap](layer)
        with pytest.raises(ValueError, match="ndim=3|map the `context` to"):
            layer(x, context=context)
        assert not layer.built
        alone = getattr(layer, "forward_layer", layer)
        assert alone.states is None
        assert not alone.cell.built
        assert layer(np.ones((2, 7, 5)), context=np.ones((2, 6))).shape[0] == 2
