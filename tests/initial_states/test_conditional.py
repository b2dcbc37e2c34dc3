"""Initial states that are computed from a context."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import BACKEND
from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
)
from keras_init_lstm.streams import (
    as_stateful,
    as_stateless,
    reset_states,
    with_states_as_inputs,
)
from models import BATCH, CONTEXT, FEATURES, UNITS, X, encoder
from oracles import assert_same, flat, gradients, reference_of


class TestEncoder:
    @pytest.mark.parametrize("given", [None, "dense", 3, lambda context: context])
    def test_must_be_a_layer(self, given):
        with pytest.raises(ValueError, match="`encoder` must be a layer.*Received"):
            Conditional(given)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: encoder(3),
            lambda: layers.RepeatVector(2),
            lambda: keras.Sequential([layers.Dense(4), layers.Reshape((2, 2))]),
            lambda: layers.LSTM(UNITS, return_sequences=True),
        ],
    )
    def test_must_return_one_row_for_each_sequence(self, make):
        context = np.ones((BATCH, 5, 6)) if "LSTM" in str(make()) else CONTEXT
        layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
        with pytest.raises(
            ValueError, match=r"(?s)`encoder`.*\((4|batch), 2\).*Receiv"
        ):
            layer(X, context=context)
        symbolic = keras.Input(context.shape[1:])
        layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
        with pytest.raises(ValueError, match=r"(?s)`encoder`.*\(batch, 2\).*Received"):
            layer(keras.Input((None, FEATURES)), context=symbolic)

    def test_is_copied_with_its_weights_for_each_state(self):
        given = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), encoder()])
        given.layers[1].trainable = False
        layer = InitStateLSTM(UNITS, initial_state=Conditional(given))
        layer(X, context=CONTEXT)
        encoders = [entry.encoder for entry in layer.initial_state]
        assert len({id(v) for m in (given, *encoders) for v in m.weights}) == 6
        for each in encoders:
            assert_same(each.get_weights(), given.get_weights())
            assert not each.trainable_weights
        assert len(layer.trainable_weights) == 3

    def test_an_unbuilt_encoder_is_initialized_for_each_state(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(layers.Dense(UNITS)))
        h, c = flat(layer.get_initial_state(BATCH, context=CONTEXT))
        assert (h != c).all()

    def test_frozen_with_the_state_and_with_the_layer(self):
        start = Conditional(encoder(), trainable=False)
        layer = InitStateLSTM(UNITS, initial_state=start)
        layer(X, context=CONTEXT)
        assert len(layer.trainable_weights) == 3
        layer.initial_state[0].trainable = True
        assert len(layer.trainable_weights) == 5
        layer.trainable = False
        assert not layer.trainable_weights
        frozen = InitStateLSTM(
            UNITS, initial_state=Conditional(encoder()), trainable=False
        )
        frozen(X, context=CONTEXT)
        assert not frozen.trainable_weights

    def test_its_losses_are_losses_of_the_layer(self):
        regularized = encoder(kernel_regularizer="l2", activity_regularizer="l1")
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(regularized), None])
        layer(X, context=CONTEXT)
        assert len(layer.losses) == 2

    def test_owns_no_value_to_assign(self):
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(encoder()), 0.5])
        with pytest.raises(ValueError, match=r"h0 to assign to\. .* is computed from"):
            layer.assign_initial_state([np.ones(UNITS), None])
        layer.assign_initial_state([None, np.ones(UNITS)])

    @pytest.mark.parametrize("training", [False, True])
    def test_gets_the_training_flag(self, training):
        class Flag(layers.Layer):
            def call(self, context, training=False):
                return keras.ops.full((len(context), UNITS), 1.0 if training else -1.0)

        layer = InitStateLSTM(UNITS, initial_state=Conditional(Flag()))
        want = np.full((BATCH, UNITS), 1.0 if training else -1.0, "float32")
        got = layer.get_initial_state(BATCH, training=training, context=CONTEXT)
        assert_same(got, [want, want])
        got = layer(X, context=CONTEXT, training=training)
        want = reference_of(layer)(X, initial_state=[want, want])
        assert_same(got, want, tolerance=1e-6)

    def test_may_be_built_after_the_layer(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        layer.build((None, None, FEATURES))
        want = layer(X, context=CONTEXT)
        assert len(layer.weights) == 7
        restored = InitStateLSTM.from_config(layer.get_config())
        restored(X, context=CONTEXT)
        restored.set_weights(layer.get_weights())
        assert_same(restored(X, context=CONTEXT), want)


def test_built_encoders_have_different_paths(tmp_path):
    given = keras.Sequential([keras.Input((6,)), layers.Dense(5), encoder()])
    x, context = keras.Input((None, FEATURES)), keras.Input((6,))
    layer = InitStateLSTM(UNITS, initial_state=Conditional(given))
    model = keras.Model([x, context], layer(x, context=context))
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)
    assert sum("/h0/" in path for path in paths) == 4
    want = model.predict([X, CONTEXT], verbose=0)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    assert_same(loaded.predict([X, CONTEXT], verbose=0), want, tolerance=1e-6)


@keras.saving.register_keras_serializable("test_conditional")
class Inner(layers.Layer):
    """A layer without a `build()`, like most custom layers."""

    def __init__(self, units=UNITS, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.normalized = layers.BatchNormalization()
        self.out = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(units)])

    def call(self, context, training=False):
        return self.out(self.normalized(context, training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_conditional")
class Outer(layers.Layer):
    """A layer whose `build()` does not build the layer inside it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Inner()

    def build(self, shape):
        self.scale = self.add_weight(shape=(UNITS,), initializer="ones")

    def call(self, context, training=False):
        # Keras 3.16 does not pass `training` to layers that are called after a
        # Sequential; pass it explicitly.
        return self.inner(context, training=training) * self.scale


@keras.saving.register_keras_serializable("test_conditional")
class SubclassedModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Inner()

    def call(self, context, training=False):
        return self.inner(context, training=training)


@keras.saving.register_keras_serializable("test_conditional")
class OfStructure(layers.Layer):
    """A layer whose context is a structure of floats and integers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Inner()

    def call(self, context, training=False):
        features, identity = keras.tree.flatten(context)
        one_hot = keras.ops.take(keras.ops.eye(4), identity, axis=0)
        joined = keras.ops.concatenate([features, one_hot], axis=-1)
        return self.inner(joined, training=training)


IDENTITIES = np.array([3, 1, 0, 3], "int32")
# Encoders that Keras builds by calling them, each with a context.
BUILT_BY_CALLS = {
    "layer": (Inner, CONTEXT),
    "layer in a layer": (Outer, CONTEXT),
    "in Sequential": (lambda: keras.Sequential([Inner(3), encoder()]), CONTEXT),
    "model": (SubclassedModel, CONTEXT),
    "of a dict": (OfStructure, {"a": CONTEXT, "b": IDENTITIES}),
    "of a list": (OfStructure, [CONTEXT, IDENTITIES]),
}


def batch_of(context):
    return [X, *keras.tree.flatten(context)]


def model_around(layer, context, batch_size=None):
    x = keras.Input((None, FEATURES), batch_size)
    inputs = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype.name), context
    )
    outputs = layer(x, context=inputs)
    return keras.Model([x, *keras.tree.flatten(inputs)], outputs)


# Keras warns about such a layer when it loads a Sequential model.
@pytest.mark.filterwarnings("error::UserWarning", "ignore:.build... was called on")
@pytest.mark.parametrize("which", BUILT_BY_CALLS)
def test_an_encoder_that_keras_builds_by_a_call(which, tmp_path):
    make, context = BUILT_BY_CALLS[which]
    layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
    model = model_around(layer, context)
    alone = make()
    alone(context)
    count = len(alone.weights)
    assert len(model.weights) == 3 + 2 * count
    assert all("/h0/" in v.path for v in layer.initial_state[0].variables)
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=BACKEND != "jax")
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    model.train_on_batch(batch_of(context), np.ones((BATCH, UNITS)))
    changed = model.get_weights()
    assert len(changed) == len(before)
    assert all((a != b).any() for a, b in zip(changed, before, strict=True))
    states = [flat(kind.encoder(context))[0] for kind in layer.initial_state]
    want = reference_of(layer)(X, initial_state=states)
    assert_same(model(batch_of(context)), want, tolerance=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded(batch_of(context)), want, tolerance=1e-6)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("which", ["layer in a layer", "of a dict"])
def test_copies_with_an_encoder_that_keras_builds_by_a_call(which):
    make, context = BUILT_BY_CALLS[which]
    layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
    want = layer(X, context=context)
    taken = InitStateLSTM.from_keras(layer)
    assert_same(taken(X, context=context), want)
    model = model_around(layer, context)
    stream = as_stateful(model, BATCH)
    assert_same(stream(batch_of(context)), want, tolerance=1e-6)
    reset_states(stream)
    again = as_stateless(stream)
    assert_same(again(batch_of(context)), want, tolerance=1e-6)
    step, states = with_states_as_inputs(model, BATCH, context)
    outputs = step([*batch_of(context), *states])
    assert_same(outputs[0], want, tolerance=1e-6)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("which", ["layer in a layer", "of a dict"])
def test_both_directions_with_an_encoder_that_keras_builds_by_a_call(which):
    make, context = BUILT_BY_CALLS[which]
    layer = InitStateGRU(UNITS, initial_state=Conditional(make()), stateful=True)
    layer = InitStateBidirectional(layer)
    model = model_around(layer, context, BATCH)
    count = len(model.weights)
    reset_states(model)
    assert model(batch_of(context)).shape == (BATCH, 2 * UNITS)
    assert len(model.weights) == count >= 6 + 2 * 8


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_encoder_over_time_that_keras_builds_by_a_call(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=Conditional(Inner(), over_time=True))
    x, context = keras.Input((None, FEATURES)), keras.Input((None, 6))
    model = keras.Model([x, context], layer(x, context=context))
    count = len(model.weights)
    given = [X, np.repeat(CONTEXT[:, None], X.shape[1], axis=1)]
    want = model(given)
    assert len(model.weights) == count == 3 + 2 * 8
    states = [flat(kind.encoder(CONTEXT))[0] for kind in layer.initial_state]
    assert_same(want, reference_of(layer)(X, initial_state=states), tolerance=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded(given), want, tolerance=1e-6)


def test_an_invalid_encoder_that_keras_builds_by_a_call():
    layer = InitStateLSTM(UNITS, initial_state=Conditional(Inner(3)))
    with pytest.raises(ValueError, match=r"(?s)`encoder`.*\(batch, 2\).*Received"):
        model_around(layer, CONTEXT)


def test_an_eager_encoder_is_built_by_its_first_call():
    class Eager(Inner):
        def call(self, context, training=False):
            return super().call(flat(context)[0] + 0.0)

    layer = InitStateLSTM(UNITS, initial_state=Conditional(Eager()))
    assert layer(X, context=CONTEXT).shape == (BATCH, UNITS)
    assert len(layer.weights) == 3 + 2 * 8


@pytest.mark.tensorflow
def test_a_context_that_a_stream_does_not_use_must_be_finite():
    kind = Conditional(layers.Dense(UNITS))
    layer = InitStateLSTM(UNITS, initial_state=kind, stateful=True)
    layer(X, context=CONTEXT)
    encoders = [entry.encoder.kernel.value for entry in layer.initial_state]
    outputs = []

    def call():
        outputs.append(layer(X, context=np.full_like(CONTEXT, np.nan)))
        return outputs[-1]

    found = gradients(call, encoders)
    assert np.isfinite(outputs[-1]).all()
    assert np.isnan(flat(found)).all()


def test_a_context_that_the_encoder_rejects_draws_nothing():
    kinds = ["sampled", Conditional(layers.Dense(UNITS))]
    layer = InitStateLSTM(UNITS, initial_state=kinds, dropout=0.5)
    layer(X, context=CONTEXT, training=True)
    before = flat([v.value for v in layer.variables])
    with pytest.raises(ValueError, match="expected axis -1"):
        layer(X, context=CONTEXT[:, :-1], training=True)
    assert_same(flat([v.value for v in layer.variables]), before)
