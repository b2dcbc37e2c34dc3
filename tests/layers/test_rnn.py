"""Layers equal the layers of Keras that are called with the tiled initial states."""

import copy
import dataclasses
import functools
import itertools
import json

import keras
import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from backends import FUSES, WITHOUT_XLA, compiled, tf
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
)
from keras_init_lstm._copies import copy_layer
from keras_init_lstm._keras import layers_within, mask_of, rnn_hands_mask_on
from keras_init_lstm.streams import as_stateful
from models import BATCH, CONTEXT, FEATURES, INITIAL_STATES, UNITS, X, encoder, normal
from oracles import (
    HandedItsStates,
    across_programs,
    assert_same,
    flat,
    gradients,
    nested,
    owners_of,
    reference_of,
    scale_of,
    to_numpy,
)
from strategies import ALL_KINDS, arrays, for_each_layer


class TestTheOneRule:
    @for_each_layer(ALL_KINDS)
    def test_outputs_equal_keras_with_the_tiled_states(self, case):
        layer = case.layer()
        states = case.states(layer)
        want = case.call(case.reference(layer), initial_state=states)
        if layer.takes_context:  # NumPy computes the encoder in `states`.
            assert_same(case.call(layer), want, case.tolerance)
        else:
            case.assert_same(case.call(layer), want)

    @for_each_layer(("zeros", "fixed", "trainable"))
    def test_in_training_with_dropout(self, case, data):
        layer = case.layer()
        reference = case.reference(layer)
        states = case.states(layer)

        def call(layer, **kwargs):
            return case.call(layer, training=True, **kwargs)

        if data.draw(st.booleans()):
            call = compiled(call)
        case.assert_same(call(layer), call(reference, initial_state=states))

    @for_each_layer(["sampled"], dropout=False)
    def test_in_training_with_the_states_drawn(self, case):
        layer, twin = case.layer(), case.layer()
        for entry, other in zip(layer.initial_state, twin.initial_state, strict=True):
            other.seed_generator.state.assign(to_numpy(entry.seed_generator.state))
        reference = case.reference(layer)
        for _ in range(2):
            states = twin.get_initial_state(case.batch, training=True)
            got = case.call(layer, training=True)
            case.assert_same(got, case.call(reference, initial_state=states))

    @for_each_layer()
    def test_explicit_states_by_their_names(self, case, data):
        layer = case.layer(return_state=True)
        given = [normal(case.batch, u, seed=k) for k, u in enumerate(layer.state_units)]
        path = data.draw(st.sampled_from(["", "lstm/", "inner/lstm/"]))
        named = {
            f"{path}{name}": state
            for name, state in zip(layer.state_names, given, strict=True)
        }
        # The order in the dictionary has no meaning.
        named = {name: named[name] for name in data.draw(st.permutations(list(named)))}
        want = case.call(layer, initial_state=nested(layer, given))
        assert_same(case.call(layer, initial_state=named), want)
        left_out = dict(list(named.items())[1:])
        other_path = {**left_out, "a/b": given[0]}
        for wrong in (left_out, {**named, "more": given[0]}, other_path, {}):
            with pytest.raises(ValueError, match="`initial_state` must be a list, or"):
                case.call(layer, initial_state=wrong)

    def test_states_by_their_names_in_a_model(self, tmp_path):
        inputs, h = keras.Input((None, FEATURES)), keras.Input((UNITS,))
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        states = {"lstm/c0": h * 2, "lstm/h0": h}
        model = keras.Model([inputs, h], layer(inputs, initial_state=states))
        given = [X, normal(BATCH, UNITS)]
        want = layer(X, initial_state=[given[1], given[1] * 2])
        assert_same(model(given), want, 1e-6)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(loaded(given), want, 1e-6)

    @for_each_layer()
    def test_an_explicit_state_replaces_the_owned_state(self, case, data):
        layer = case.layer()
        owned = keras.tree.flatten(case.states(layer))
        explicit = [
            data.draw(st.none() | arrays(case.batch, units))
            for units in layer.state_units
        ]
        expected = [
            state if given is None else given
            for given, state in zip(explicit, owned, strict=True)
        ]
        explicit, expected = nested(layer, explicit), nested(layer, expected)
        want = case.call(case.reference(layer), initial_state=expected)
        case.assert_same(case.call(layer, initial_state=explicit), want)
        case.assert_same(layer(case.inputs, explicit, case.mask), want)

    @for_each_layer()
    def test_symbolic_shapes_and_dtypes(self, case):
        layer = case.layer()
        reference = case.reference(layer)
        timesteps = case.inputs.shape[1] if case.arguments["unroll"] else None
        shape = (None, timesteps, case.inputs.shape[2])
        assert layer.compute_output_shape(shape) == reference.compute_output_shape(
            shape
        )
        symbolic = keras.KerasTensor(shape, dtype=layer.compute_dtype)
        for got, want, real in zip(
            keras.tree.flatten(layer(symbolic)),
            keras.tree.flatten(reference(symbolic)),
            flat(layer(case.inputs)),
            strict=True,
        ):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            assert got.dtype == keras.backend.standardize_dtype(real.dtype)

    def test_an_implicit_mask_equals_the_explicit_mask(self):
        tokens = np.array([[1, 2, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
        embedding = keras.layers.Embedding(3, 2, mask_zero=True)
        layer = InitStateLSTM(3, initial_state=[0.5, -0.5], return_sequences=True)
        embedded = embedding(tokens)
        got = layer(embedded)
        assert_same(got, layer(keras.ops.copy(embedded), mask=tokens != 0))
        if rnn_hands_mask_on():
            assert_same(mask_of(got), tokens != 0)
        else:
            assert mask_of(got) is None

    @for_each_layer()
    def test_output_masks_equal_keras(self, case):
        layer = case.layer()
        mask = None if case.mask is None else keras.ops.convert_to_tensor(case.mask)
        got = keras.tree.flatten(layer.compute_mask(case.inputs, mask))
        want = keras.tree.flatten(case.reference(layer).compute_mask(case.inputs, mask))
        assert [id(m) for m in got] == [id(m) for m in want]


def gradients_of_fit(case, layer, weights, **kwargs):
    """The change of each weight in one step of `fit()`, which is its gradient.

    A constraint changes the weight after the step.
    """
    given = {"inputs": case.inputs}
    if layer.takes_context:  # Keras 3.10 to 3.12 reject an input that is not used.
        given["context"] = case.context
    if case.mask is not None:
        given["mask"] = case.mask
    symbolic = {
        name: keras.Input(batch_shape=array.shape, dtype=array.dtype.name, name=name)
        for name, array in given.items()
    }
    outputs = dataclasses.replace(case, **symbolic).call(layer)
    model = keras.Model(symbolic, outputs)
    loss = keras.losses.MeanSquaredError("sum")
    model.compile(keras.optimizers.SGD(1.0), loss, **kwargs)
    before = flat(weights)
    y = np.zeros(outputs.shape)
    # Don't shuffle: each row has its own noise.
    model.fit(given, y, case.batch, shuffle=False, verbose=0)
    return [old - new for old, new in zip(before, flat(weights), strict=True)]


class TestGradientsOfFit:
    @for_each_layer(
        ("trainable", "sampled", "conditional"),
        examples=2,  # Each example is traced twice.
        dtypes=["float32"],
        dropout=False,
        return_state=False,
    )
    def test_equal_keras_with_explicitly_tiled_states(self, case, data):
        layer = case.layer(stateful=data.draw(st.booleans()))
        noise_of = case.layer()
        for entry, other in zip(
            layer.initial_state, noise_of.initial_state, strict=True
        ):
            if hasattr(entry, "seed_generator"):
                other.seed_generator.state.assign(to_numpy(entry.seed_generator.state))
                other.mean.assign(np.zeros(other.mean.shape))
                other.stddev.assign(np.ones(other.stddev.shape))
        context = {"context": case.context} if layer.takes_context else {}
        noise = noise_of.get_initial_state(case.batch, training=True, **context)
        reference = HandedItsStates(case.reference(layer), layer, flat(noise))
        owned = [weight for owner in owners_of(layer) for weight in owner.weights]
        mode = data.draw(st.sampled_from([{"run_eagerly": True}, WITHOUT_XLA]))
        got = gradients_of_fit(case, layer, layer.cell.weights + owned, **mode)
        weights = reference.rnn.weights + keras.tree.flatten(reference.owned)
        want = gradients_of_fit(case, reference, weights, **mode)
        assert_same(got, want, tolerance=10 * case.tolerance * scale_of(want))


@pytest.mark.tensorflow
class TestGradientsOfTheTape:
    @for_each_layer(("trainable", "conditional"), ("float32", "float64"))
    def test_equal_keras_with_the_tiled_states(self, case):
        layer = case.layer()
        for entry in layer.initial_state:
            entry.set_weights([np.random.normal(size=w.shape) for w in entry.weights])
        owners = owners_of(layer)
        reference = case.reference(layer)
        inputs = tf.constant(case.inputs, layer.compute_dtype)
        states = keras.tree.map_structure(
            lambda state: tf.constant(state, layer.compute_dtype), case.states(layer)
        )
        flat_states = keras.tree.flatten(states)
        case = dataclasses.replace(case, inputs=inputs)
        *got, of_owned = gradients(
            lambda: case.call(layer, training=True),
            [
                inputs,
                *(w.value for w in layer.cell.weights),
                [[w.value for w in owner.weights] for owner in owners],
            ],
        )
        *want, of_states = gradients(
            lambda: case.call(reference, training=True, initial_state=states),
            [inputs, *(w.value for w in reference.cell.weights), flat_states],
        )
        for owner, state, of_state, mine in zip(
            owners, flat_states, flat(of_states), of_owned, strict=True
        ):
            got += [tf.cast(gradient, of_state.dtype) for gradient in mine]
            if not isinstance(owner, keras.layers.Dense):
                want.append(of_state.sum(axis=0))
                continue
            # Apply the chain rule of a `Dense` layer.
            if owner.activation is keras.activations.tanh:
                of_state = of_state * (1 - to_numpy(state) ** 2)
            want.append(case.context.T.astype(of_state.dtype) @ of_state)
            if owner.use_bias:
                want.append(of_state.sum(axis=0))
        assert_same(got, want, tolerance=10 * case.tolerance * scale_of(want))

    @for_each_layer(
        ["trainable"],
        examples=2,  # Each example is run twice for each unit.
        dtypes=["float64"],
        dropout=False,
        activation="tanh",  # Finite differences need a smooth function.
        recurrent_activation="sigmoid",
    )
    def test_of_the_states_equal_finite_differences(self, case):
        layer = case.layer()

        def loss():
            return sum((o.astype("float64") ** 3).sum() for o in flat(case.call(layer)))

        values = [entry.value for entry in layer.initial_state]
        found = gradients(lambda: case.call(layer), [v.value for v in values])
        step = 1e-6
        for variable, gradient in zip(values, flat(found), strict=True):
            for unit in range(len(gradient)):
                change = step * np.eye(len(gradient))[unit]
                start = to_numpy(variable)
                variable.assign(start + change)
                above = loss()
                variable.assign(start - change)
                below = loss()
                variable.assign(start)
                np.testing.assert_allclose(
                    gradient[unit], (above - below) / (2 * step), rtol=1e-5, atol=1e-7
                )

    def test_mixed_precision_sums_in_float32(self):
        # The sum of 4096 rows of 1 + 2**-7 is exact in float32, but not in bfloat16.
        layer = InitStateLSTM(1, initial_state="trainable", dtype="mixed_bfloat16")
        with tf.GradientTape() as tape:
            state = tf.cast(layer.get_initial_state(4096)[0], "float32")
            loss = tf.reduce_sum(state * (1 + 2**-7))
        gradient = tape.gradient(loss, layer.initial_state[0].value.value)
        assert float(gradient[0]) == 4096 * (1 + 2**-7)


# At masked timesteps, Keras repeats the last output. A piece does not know the outputs
# of earlier pieces, so let both put out zeros.
IN_ORDER = {
    "dropout": False,
    "go_backwards": False,
    "zero_output_for_mask": True,
    "return_sequences": True,
}


class TestRowsAndTimesteps:
    @for_each_layer(("fixed", "conditional"), dropout=False)
    def test_rows_are_independent(self, case, data):
        layer = case.layer()
        whole = flat(case.call(layer))
        rows = data.draw(st.permutations(range(case.batch)))
        cut = data.draw(st.integers(0, case.batch))
        for part in (rows, rows[:cut], rows[cut:]):
            if part:
                got = case.rows(part).call(layer)
                assert_same(got, [o[part] for o in whole], tolerance=case.tolerance)

    @for_each_layer(**IN_ORDER, return_state=True)
    def test_two_pieces_equal_the_whole_sequence(self, case, data):
        assume(not case.misplaces_zeros)
        layer = case.layer()
        outputs, *states = layer(case.inputs, mask=case.mask)
        cut = data.draw(st.integers(0, case.inputs.shape[1]))
        carried, pieces = None, []
        for part in (slice(0, cut), slice(cut, None)):
            if case.inputs[:, part].shape[1]:
                mask = None if case.mask is None else case.mask[:, part]
                piece, *carried = layer(
                    case.inputs[:, part], initial_state=carried, mask=mask
                )
                pieces.append(piece)
        got = [np.concatenate(flat(pieces), axis=1), *flat(carried)]
        want = flat([outputs, *states])
        assert_same(got, want, tolerance=case.tolerance * scale_of(want))

    @for_each_layer(ALL_KINDS, **IN_ORDER, unroll=False)
    def test_chunks_of_a_stateful_layer_equal_one_call(self, case, data):
        layer = case.layer()
        stream = case.layer(stateful=True)
        stream.set_weights(layer.get_weights())
        call = stream
        if data.draw(st.booleans()):
            call = compiled(stream, reduce_retracing=True)
        # Only the first call uses the context. Later contexts must have no effect.
        contexts = iter([case.context])
        timesteps = case.inputs.shape[1]
        cuts = sorted(data.draw(st.sets(st.integers(1, timesteps))) | {0, timesteps})
        pieces = []
        for start, stop in itertools.pairwise(cuts):
            kwargs = {}
            if case.mask is not None:
                kwargs["mask"] = case.mask[:, start:stop]
            if stream.takes_context:
                kwargs["context"] = next(contexts, case.context + 1)
            piece = call(case.inputs[:, start:stop], **kwargs)
            pieces.append(flat(piece)[0])
        whole = flat(case.call(layer))[0]
        assert_same(
            np.concatenate(pieces, axis=1),
            whole,
            tolerance=case.tolerance * scale_of(whole),
        )

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("kind", INITIAL_STATES)
    @pytest.mark.parametrize("training", [False, True])
    def test_traced_once_for_every_batch_and_time(self, kind, training):
        layer = InitStateLSTM(
            UNITS, initial_state=INITIAL_STATES[kind], return_sequences=True
        )
        layer.build((None, None, FEATURES))
        traces = []

        @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES))])
        def call(x):
            traces.append(x.shape)
            return layer(x, training=training)

        for batch in (1, 2, 7):
            for timesteps in (1, 2, 9):
                x = normal(batch, timesteps, FEATURES)
                outputs = call(x)
                assert outputs.shape == (batch, timesteps, UNITS)
                if not (training and kind == "sampled"):
                    assert_same(outputs, layer(x), tolerance=1e-6)
        assert len(traces) == 1


@pytest.mark.parametrize(
    "names", [("GRU", "LSTM"), ("LSTM", "GRU"), ("SimpleRNN", "LSTM", "GRU")]
)
class TestStacks:
    X = normal(3, 4, 2)
    MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], bool)

    def layers(self, names):
        """A stack of this package and a stack of Keras with the same weights."""
        both = []
        for cls in (InitStateRNN, keras.layers.RNN):
            cells = [getattr(keras.layers, f"{name}Cell")(2) for name in names]
            both.append(cls(cells, return_sequences=True, return_state=True))
            both[-1].build((None, None, 2))
            both[-1].set_weights([normal(*w.shape) for w in both[-1].weights])
        return both

    def test_initial_and_last_states_equal_keras(self, names):
        layer, reference = self.layers(names)

        got, expected = (rnn(self.X, mask=self.MASK) for rnn in (layer, reference))

        keras.tree.assert_same_structure(got, expected)
        assert_same(got, expected, across_programs())
        states = layer.get_initial_state(3)
        keras.tree.assert_same_structure(states, reference.get_initial_state(3))

    def test_take_the_states_that_they_return(self, names):
        layer, reference = self.layers(names)
        _, *states = reference(self.X)

        expected = reference(self.X, mask=self.MASK, initial_state=states)

        got = layer(self.X, mask=self.MASK, initial_state=states)
        assert_same(got, expected, across_programs())
        # They may be nested as `state_size` too.
        bare = [state[0] if len(state) == 1 else state for state in states]
        got = layer(self.X, mask=self.MASK, initial_state=bare)
        assert_same(got, expected, across_programs())


def test_a_stack_of_one_cell_with_one_state():
    """A stack of Keras fails: on JAX always, on TensorFlow with a mask."""
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], bool)
    layer = InitStateRNN([keras.layers.GRUCell(2)], return_state=True)
    reference = keras.layers.RNN(layer.cell.cells[0], return_state=True)

    got = layer(normal(3, 4, 2), mask=mask)

    assert_same(got, reference(normal(3, 4, 2), mask=mask), across_programs())


class TestInvalidCalls:
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2), (3, 5, 3)])
    def test_a_failed_first_call_leaves_the_layer_unbuilt(self, shape, stateful):
        layer = InitStateLSTM(2, stateful=stateful)
        with pytest.raises(ValueError, match="ndim=3|`initial_state"):
            layer(np.ones(shape), initial_state=[np.ones((4, 2))] * 2)
        assert not layer.built
        assert layer.states is None
        assert layer(np.ones((2, 5, 3))).shape == (2, 2)

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("shape", [(4, 4), (8, 2), (1, 2), (2, 4), (1, 8), (4, 1)])
    def test_the_shape_of_a_state_at_run_time(self, shape, stateful):
        layer = InitStateLSTM(UNITS, stateful=stateful)
        layer(X)
        carried = flat(layer.states or ())
        unknown = tf.TensorSpec((None, None))

        @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES)), unknown])
        def call(x, state):
            return layer(x, initial_state=[state, None])

        with pytest.raises(tf.errors.InvalidArgumentError, match="initial_state"):
            call(X, np.ones(shape, "float32"))
        assert_same(list(layer.states or ()), carried)
        want = layer(X, initial_state=[np.ones((BATCH, UNITS)), None])
        layer.reset_states([None, carried[1]] if stateful else None)
        got = call(X, np.ones((BATCH, UNITS), "float32"))
        assert_same(got, want, tolerance=1e-6)


class TestConfig:
    @for_each_layer(ALL_KINDS)
    def test_from_config_is_the_inverse_of_get_config(self, case, data):
        options = {"stateful": data.draw(st.booleans())}
        if case.name in ("LSTM", "GRU"):
            options |= {"use_cudnn": False, "implementation": 1}
        layer = case.layer(**options)
        for entry in filter(None, layer.initial_state):
            entry.trainable = case.units % 2 == 0
        config = layer.get_config()
        restored = type(layer).from_config(copy.deepcopy(config))
        assert json.dumps(restored.get_config()) == json.dumps(config)
        assert getattr(restored, "use_cudnn", False) is False
        assert getattr(restored.cell, "implementation", 1) == 1
        restored.build(case.inputs.shape, context_shape=case.context.shape)
        # The path of a cell or encoder that Keras has built begins with its name.
        assert [w.path.split("/")[-2:] for w in restored.trainable_weights] == [
            w.path.split("/")[-2:] for w in layer.trainable_weights
        ]
        restored.set_weights(layer.get_weights())
        assert_same(case.call(restored), case.call(layer))


@keras.saving.register_keras_serializable("test_recurrent")
class CellOfLayers(keras.layers.Layer):
    """A custom cell without a `build()`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = UNITS
        self.of_inputs = keras.Sequential([keras.layers.Dense(UNITS)])
        self.of_states = keras.layers.Dense(UNITS, use_bias=False)

    def call(self, inputs, states, training=False):
        h = keras.ops.tanh(self.of_inputs(inputs) + self.of_states(states[0]))
        return h, [h]


@pytest.mark.filterwarnings("ignore:.build... was called on")  # By Keras, loading it.
def test_a_functional_model_builds_the_layers_inside_a_cell(tmp_path):
    layer = InitStateRNN(CellOfLayers(), initial_state=0.5)
    model = keras.Sequential([keras.Input(X.shape[1:]), layer])
    assert len(model.weights) == 4
    want = model(X)
    assert len(model.weights) == 4
    states = [np.full((BATCH, UNITS), 0.5, "float32")]
    assert_same(want, keras.layers.RNN(layer.cell)(X, initial_state=states))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded(X), want, tolerance=1e-6)
    assert_same(as_stateful(model, BATCH)(X), want, tolerance=1e-6)


class TestAttributesThatAreSet:
    @pytest.mark.parametrize("one_by_one", [False, True])
    def test_an_initial_state_before_the_layer_is_built(self, one_by_one, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=["trainable", None])
        if one_by_one:
            layer.h0, layer.c0 = Fixed(0.5), "trainable"
        else:
            layer.initial_state = [Fixed(0.5), "trainable"]
        model = keras.Sequential([keras.Input(X.shape[1:]), layer])
        layer.assign_initial_state([None, np.full(UNITS, -0.5)])
        assert [v.path.split("/")[-2:] for v in layer.variables[-2:]] == [
            ["h0", "value"],
            ["c0", "value"],
        ]
        assert len(layer.trainable_weights) == 4 and len(layer.weights) == 5
        states = [np.full((BATCH, UNITS), value, "float32") for value in (0.5, -0.5)]
        want = reference_of(layer)(X, initial_state=states)
        assert_same(model(X), want, tolerance=1e-6)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(loaded(X), want, tolerance=1e-6)

    def test_an_invalid_value_changes_nothing(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        kinds = layer.initial_state
        for name, value in [("h0", "no"), ("c0", [1.0] * 7), ("initial_state", [1])]:
            with pytest.raises(ValueError, match="initial_state"):
                setattr(layer, name, value)
        with pytest.raises(TypeError, match="does not support item assignment"):
            layer.initial_state[0] = Fixed(1.0)
        assert layer.initial_state == kinds and layer.h0 is kinds[0]
        layer.build(X.shape)
        for name in ("h0", "c0", "initial_state"):
            with pytest.raises(ValueError, match=f"`{name}`.*is built.*Received"):
                setattr(layer, name, 0.5)
        assert layer.initial_state == kinds and layer.h0 is kinds[0]

    @pytest.mark.parametrize("built", [False, True])
    def test_deleting_a_state_raises(self, built):
        layer = InitStateLSTM(UNITS, initial_state=["trainable", None])
        if built:
            layer.build(X.shape)
        kinds = layer.initial_state
        for name in ("h0", "c0", "states", "initial_state"):
            with pytest.raises(AttributeError, match=f"{name}.*delete"):
                delattr(layer, name)
        with pytest.raises(AttributeError, match="h0.*Set it to None for zeros"):
            del layer.h0
        assert layer.initial_state == kinds and layer.h0 is kinds[0]
        assert layer.c0 is None and layer.states is None

    @pytest.mark.parametrize(
        ("start", "stateful", "build"),
        [
            (None, False, lambda layer: layer.build(X.shape)),
            ("trainable", False, lambda layer: layer.get_initial_state(1)),
            (None, True, lambda layer: layer.reset_states([X[:, 0, :UNITS]] * 2)),
        ],
        ids=["layer", "initial state", "stream"],
    )
    def test_setting_a_state_of_a_partly_built_layer_raises(
        self, start, stateful, build
    ):
        layer = InitStateLSTM(UNITS, initial_state=start, stateful=stateful)
        build(layer)
        with pytest.raises(ValueError, match="`h0`.*is built.*Received"):
            layer.h0 = 0.5

    def test_a_replaced_state_leaves_nothing_behind(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        layer.c0.encoder.build(CONTEXT.shape)
        layer.h0, layer.c0 = "trainable", None
        layer.build(X.shape)
        names = [weight.path.split("/")[-2] for weight in layer.weights[3:]]
        assert names == ["h0"] and len(layer.weights) == 4
        assert [each for each in layers_within(layer)[1:] if each is not layer.h0] == [
            layer.cell
        ]
        assert_same(copy_layer(layer)(X), layer(X))

    @pytest.mark.parametrize("start", [None, 0.5, "trainable"])
    @pytest.mark.parametrize("stateful", [False, True])
    def test_a_cell_of_another_size(self, start, stateful, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=start, stateful=stateful)
        layer.cell = keras.layers.LSTMCell(UNITS + 3)
        model = keras.Sequential([keras.Input(X.shape[1:], BATCH), layer])
        assert layer.state_units == (UNITS + 3,) * 2
        assert layer.weights[:3] == layer.cell.weights
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        value = 0.5 if start == 0.5 else 0.0
        states = [np.full((BATCH, UNITS + 3), value, "float32")] * 2
        want = reference_of(layer)(X, initial_state=states)
        assert_same([model(X), loaded(X)], [want, want], tolerance=1e-6)

    def test_a_cell_with_other_states(self):
        layer = InitStateRNN(keras.layers.LSTMCell(UNITS), return_state=True)
        layer.cell = keras.layers.GRUCell(UNITS)
        assert layer.state_names == ("h0",)
        of_keras = keras.layers.RNN(layer.cell, return_state=True)
        shapes = of_keras.compute_output_shape(X.shape)
        assert layer.compute_output_shape(X.shape) == shapes
        assert_same(layer(X), of_keras(X))

    def test_the_initial_states_of_a_layer_whose_cell_is_replaced(self):
        layer = InitStateLSTM(UNITS, initial_state=["trainable", None])
        first = layer.cell
        layer.cell = keras.layers.LSTMCell(UNITS + 1)
        assert layer.h0 is not None and layer.c0 is None
        assert first not in layers_within(layer)
        layer.get_initial_state(1)  # Only the states are built.
        h0, second = layer.h0, layer.cell
        layer.cell = keras.layers.LSTMCell(UNITS + 1)
        assert layer.h0 is h0
        assert second not in layers_within(layer)

    def test_a_cell_that_is_set_again_stays(self):
        layer = InitStateLSTM(UNITS)
        layer.cell = layer.cell
        layer.build(X.shape)
        assert layer.weights == layer.cell.weights

    @pytest.mark.parametrize("built", [False, True])
    def test_a_cell_that_does_not_fit_changes_nothing(self, built):
        layer = InitStateLSTM(UNITS, initial_state=Fixed([0.5] * UNITS))
        if built:
            layer.build(X.shape)
        cell, kinds, names = layer.cell, layer.initial_state, layer.state_names
        for other, message in [
            (keras.layers.LSTMCell(UNITS + 3), "state_size=|of shape .2,."),
            (keras.layers.GRUCell(UNITS), "state_size=|one state"),
            (X, "`cell`"),
        ]:
            with pytest.raises(ValueError, match=message):
                layer.cell = other
        assert (layer.cell, layer.initial_state, layer.state_names) == (
            cell,
            kinds,
            names,
        )
        states = [np.full((BATCH, UNITS), 0.5, "float32")] * 2
        got = layer(X)
        want = reference_of(layer)(X, initial_state=states)
        assert_same(got, want, tolerance=1e-6)

    @pytest.mark.parametrize(
        "changes",
        [
            {"go_backwards": True},
            {"return_sequences": True, "zero_output_for_mask": True},
            {"return_sequences": True, "return_state": True, "go_backwards": True},
            {"unroll": True},
        ],
    )
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
    def test_attributes_that_keras_reads_at_each_call(self, cls, changes):
        x = normal(BATCH, 10, FEATURES)
        mask = keras.ops.convert_to_tensor(np.arange(40).reshape(BATCH, 10) % 3 != 1)
        layer = cls(
            UNITS, initial_state=0.5, use_fused="unroll" not in changes and FUSES
        )
        layer(x)
        reference = reference_of(layer)
        for each in (layer, reference):
            for name, value in changes.items():
                setattr(each, name, value)
        states = [np.full((BATCH, UNITS), 0.5, "float32")] * len(layer.state_units)
        want = reference(x, mask=mask, initial_state=states)
        assert_same(layer(x, mask=mask), want, tolerance=1e-5)
        copied = copy_layer(layer)
        assert_same(copied(x, mask=mask), want, tolerance=1e-5)

    @pytest.mark.filterwarnings("ignore:The model does not have any trainable")
    @pytest.mark.parametrize("part", ["h0", "c0.encoder", "cell", ""])
    @pytest.mark.parametrize("when", ["before", "built", "compiled"])
    def test_frozen_parts_do_not_learn(self, part, when):
        start = ["trainable", Conditional(encoder())]
        layer, frozen = InitStateLSTM(UNITS, initial_state=start), []
        x, context = keras.Input(X.shape[1:]), keras.Input(CONTEXT.shape[1:])

        def freeze(now):
            if now == when:
                *path, last = [*part.split("."), "trainable"] if part else ["trainable"]
                owner = functools.reduce(getattr, path, layer)
                setattr(owner, last, False)
                frozen.append(owner)

        freeze("before")
        model = keras.Model([x, context], layer(x, context=context))
        freeze("built")
        model.compile("sgd", "mse", run_eagerly=True)
        freeze("compiled")
        before = flat(layer.weights)
        model.fit([X, CONTEXT], normal(BATCH, UNITS), verbose=0)
        kept = {id(weight) for weight in frozen[0].weights}
        assert kept
        for weight, old in zip(layer.weights, before, strict=True):
            assert (to_numpy(weight) == old).all() == (id(weight) in kept)

    def test_stateful_may_be_switched_off_and_on(self):
        layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
        first, second = flat(layer(X)), flat(layer(X))
        layer.stateful = False
        assert_same(layer(X), first)
        assert layer(X[:1]).shape == (1, UNITS)
        layer.reset_states()
        layer.stateful = True
        assert_same([layer(X), layer(X)], [*first, *second])
        with pytest.raises(ValueError, match="`states` .*reset_states.*Received"):
            layer.states = [X[:, 0, :UNITS]] * 2
        layer = InitStateLSTM(UNITS)
        layer(X)
        layer.stateful = False
        with pytest.raises(ValueError, match="`stateful` .*as_stateful.*Received"):
            layer.stateful = True

    def test_a_layer_becomes_stateful_before_it_is_built(self):
        layer = InitStateLSTM(UNITS, initial_state=0.5)
        layer.stateful = True
        layer(X)
        assert (to_numpy(layer.states[0]) != 0.5).any()

    def test_a_layer_raises_in_the_nnx_mode_of_keras(self, monkeypatch):
        monkeypatch.setattr(keras.config, "is_nnx_enabled", lambda: True, raising=False)
        with pytest.raises(ValueError, match="NNX mode .*Received"):
            InitStateLSTM(UNITS)


class TestCommonUses:
    """What people ask for, as the README shows it."""

    def test_zeros_passed_explicitly(self):
        layer = InitStateLSTM(UNITS, initial_state=["zeros", "zeros"], use_fused=False)
        got = layer(X)
        zeros = np.zeros((BATCH, UNITS))
        lstm = reference_of(layer)
        assert_same(got, lstm(X))
        assert_same(got, lstm(X, initial_state=[zeros, zeros]))
        assert_same(got, layer(X, initial_state=[zeros, zeros]))

    def test_last_states_of_an_encoder_are_the_initial_state_of_a_decoder(self):
        source, target = (keras.Input((None, FEATURES)) for _ in range(2))
        encoder = keras.layers.LSTM(UNITS, return_state=True)
        decoder = InitStateLSTM(UNITS, initial_state="trainable")
        _, h, c = encoder(source)
        model = keras.Model([source, target], decoder(target, initial_state=[h, c]))
        got = model.predict([X, X[:, ::-1]], verbose=0)
        _, h, c = encoder(X)
        want = reference_of(decoder)(X[:, ::-1], initial_state=[h, c])
        assert_same(got, want, tolerance=1e-6)
        other = InitStateLSTM(UNITS, initial_state="trainable")
        other.assign_initial_state([h, c], reduction="mean")
        tiled = [np.tile(np.mean(s, axis=0), (BATCH, 1)) for s in flat([h, c])]
        got = other(X)
        assert_same(got, reference_of(other)(X, initial_state=tiled), tolerance=1e-6)
