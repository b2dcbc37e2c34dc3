import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import properties
from keras_init_lstm import Fixed, InitStateLSTM, Sampled, Trainable
from properties import (
    ALL_KINDS,
    assert_same,
    cases,
    flat,
    for_each_layer,
    tiled_states,
)

# Of the names in `keras.activations`, those that are no activations of an LSTM: three
# helpers, one that halves its input, and one that needs more arguments.
EVERY_ACTIVATION = sorted(
    {name for name in dir(keras.activations) if not name.startswith("_")}
    - {"get", "serialize", "deserialize", "glu", "threshold"}
)


class TestTheOneRule:
    @for_each_layer(ALL_KINDS)
    def test_outputs_are_those_of_keras_with_the_tiled_state(self, case):
        layer = case.layer()
        states = case.states(layer)
        want = case.call(case.reference(layer), initial_state=states)
        if layer.takes_context:  # The product of the encoder is NumPy's in `states`.
            assert_same(case.call(layer), want, case.tolerance)
        else:
            case.assert_same(case.call(layer), want)

    @for_each_layer(("zeros", "fixed", "trainable"))
    def test_also_in_training_with_dropout(self, case, data):
        layer = case.layer()
        reference = case.reference(layer)
        states = case.states(layer)

        def call(layer, **kwargs):
            return case.call(layer, training=True, **kwargs)

        if data.draw(st.booleans()):
            call = tf.function(call)
        case.assert_same(call(layer), call(reference, initial_state=states))

    @given(cases(dtypes=("float32", "float64"), dropout=False))
    def test_outputs_are_those_of_the_equations(self, case):
        layer = case.layer(return_state=True)
        states = tiled_states(layer, case.batch)
        expected = properties.numpy_lstm(case, layer, states)
        for got, want in zip(
            flat(layer(case.inputs, mask=case.mask)), expected, strict=True
        ):
            tolerance = case.tolerance * max(1.0, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=10 * tolerance)

    @for_each_layer()
    def test_shapes_and_dtypes_are_known_before_the_call(self, case):
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

    @for_each_layer(("trainable", "conditional"), ("float32", "float64"))
    def test_gradients_are_those_of_keras_with_the_tiled_state(self, case):
        layer = case.layer()
        for entry in layer.initial_state:
            entry.set_weights([np.random.normal(size=w.shape) for w in entry.weights])
        reference = case.reference(layer)
        inputs = tf.constant(case.inputs, layer.compute_dtype)
        states = keras.tree.map_structure(
            lambda state: tf.constant(state, layer.compute_dtype), case.states(layer)
        )
        flat_states = keras.tree.flatten(states)
        weights = [w.value for w in layer.cell.weights]
        owned = [[w.value for w in entry.weights] for entry in layer.initial_state]
        case = dataclasses.replace(case, inputs=inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = case.call(layer, training=True)
            loss = sum(tf.reduce_sum(o**2) for o in keras.tree.flatten(outputs))
        *got, of_owned = tape.gradient(
            loss, [inputs, *weights, owned], unconnected_gradients="zero"
        )
        with tf.GradientTape() as tape:
            tape.watch([inputs, *flat_states])
            outputs = case.call(reference, training=True, initial_state=states)
            loss = sum(tf.reduce_sum(o**2) for o in keras.tree.flatten(outputs))
        *want, of_states = tape.gradient(
            loss,
            [inputs, *(w.value for w in reference.cell.weights), flat_states],
            unconnected_gradients="zero",
        )
        for entry, state, of_state, mine in zip(
            layer.initial_state, flat_states, of_states, of_owned, strict=True
        ):
            of_state = of_state.numpy()
            got += [tf.cast(gradient, of_state.dtype) for gradient in mine]
            if not entry.takes_context:
                want.append(of_state.sum(axis=0))
                continue
            # The chain rule for a `Dense`, by hand.
            if entry.encoder.activation is keras.activations.tanh:
                of_state = of_state * (1 - state.numpy() ** 2)
            want.append(case.context.T.astype(of_state.dtype) @ of_state)
            if entry.encoder.use_bias:
                want.append(of_state.sum(axis=0))
        scale = max(1.0, *(np.abs(g).max() for g in flat(want)))
        assert_same(got, want, tolerance=10 * case.tolerance * scale)

    @for_each_layer(
        ["trainable"],
        dtypes=["float64"],
        dropout=False,
        activation="tanh",
        recurrent_activation="sigmoid",
    )  # smooth, for the differences
    def test_gradients_of_the_states_are_finite_differences(self, case):
        layer = case.layer()

        def loss():
            outputs = layer(case.inputs, mask=case.mask)
            return sum(tf.reduce_sum(o**2) for o in keras.tree.flatten(outputs))

        values = [entry.value for entry in layer.initial_state]
        with tf.GradientTape() as tape:
            value = loss()
        gradients = tape.gradient(
            value, [v.value for v in values], unconnected_gradients="zero"
        )
        step = 1e-6
        for variable, gradient in zip(values, gradients, strict=True):
            for unit in range(len(gradient)):
                change = step * np.eye(len(gradient))[unit]
                start = variable.numpy()
                variable.assign(start + change)
                above = loss()
                variable.assign(start - change)
                below = loss()
                variable.assign(start)
                np.testing.assert_allclose(
                    gradient[unit], (above - below) / (2 * step), rtol=1e-5, atol=1e-7
                )

    def test_mixed_precision_adds_up_the_gradient_in_float32(self):
        # 4096 rows of 1 + 2**-8 add up to 4112; in bfloat16 the sum gets stuck.
        layer = InitStateLSTM(1, initial_state="trainable", dtype="mixed_bfloat16")
        with tf.GradientTape() as tape:
            state = tf.cast(layer.get_initial_state(4096)[0], "float32")
            loss = tf.reduce_sum(state * (1 + 2**-7))
        gradient = tape.gradient(loss, layer.initial_state[0].value.value)
        assert float(gradient[0]) == 4096 * (1 + 2**-7)

    @pytest.mark.parametrize("name", EVERY_ACTIVATION)
    def test_with_every_activation_of_keras(self, name):
        arguments = {"activation": name, "recurrent_activation": name}
        layer = InitStateLSTM(4, initial_state=[0.5, "trainable"], **arguments)
        lstm = keras.layers.LSTM(4, **arguments)
        x = np.random.normal(size=(3, 5, 2))
        got = layer(x)
        lstm.build(x.shape)
        lstm.set_weights(layer.cell.get_weights())
        states = tiled_states(layer, 3)
        assert_same(got, lstm(x, initial_state=states))

    @for_each_layer(["sampled"], dropout=False)
    def test_in_training_with_the_states_drawn(self, case):
        layer, twin = case.layer(), case.layer()
        for entry, other in zip(layer.initial_state, twin.initial_state, strict=True):
            other.seed_generator.state.assign(entry.seed_generator.state)
        reference = case.reference(layer)
        for _ in range(2):
            states = twin.get_initial_state(case.batch, training=True)
            got = case.call(layer, training=True)
            case.assert_same(got, case.call(reference, initial_state=states))

    @for_each_layer()
    def test_an_explicit_state_wins_over_the_owned(self, case, data):
        layer = case.layer()
        owned = keras.tree.flatten(case.states(layer))
        explicit = [
            data.draw(st.none() | properties.arrays(case.batch, units))
            for units in layer.state_units
        ]
        expected = [
            state if given is None else given
            for given, state in zip(explicit, owned, strict=True)
        ]
        explicit, expected = (
            keras.tree.pack_sequence_as(layer.state_size, states)
            for states in (explicit, expected)
        )
        want = case.call(case.reference(layer), initial_state=expected)
        case.assert_same(case.call(layer, initial_state=explicit), want)
        case.assert_same(layer(case.inputs, explicit, case.mask), want)

    def test_an_implicit_mask_is_the_explicit_one(self):
        tokens = np.array([[1, 2, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
        embedding = keras.layers.Embedding(3, 2, mask_zero=True)
        layer = InitStateLSTM(3, initial_state=[0.5, -0.5], return_sequences=True)
        embedded = embedding(tokens)
        got = layer(embedded)
        assert_same(got, layer(keras.ops.copy(embedded), mask=tokens != 0))
        assert_same(got._keras_mask, tokens != 0)

    @for_each_layer()
    def test_output_masks_are_those_of_keras(self, case):
        layer = case.layer()
        mask = None if case.mask is None else tf.constant(case.mask)
        got = keras.tree.flatten(layer.compute_mask(case.inputs, mask))
        want = keras.tree.flatten(case.reference(layer).compute_mask(case.inputs, mask))
        assert [id(m) for m in got] == [id(m) for m in want]


# Where a piece begins with masked steps, the whole would repeat the output before
# them, which the piece does not know; hence the zeros.
IN_ORDER = {
    "dropout": False,
    "go_backwards": False,
    "zero_output_for_mask": True,
    "return_sequences": True,
}


class TestRowsAndSteps:
    @for_each_layer(("fixed", "conditional"), dropout=False)
    def test_rows_do_not_see_each_other(self, case, data):
        layer = case.layer()
        whole = flat(case.call(layer))
        rows = data.draw(st.permutations(range(case.batch)))
        cut = data.draw(st.integers(0, case.batch))
        for part in (rows, rows[:cut], rows[cut:]):
            if part:
                got = case.call(layer, rows=part)
                assert_same(got, [o[part] for o in whole], tolerance=case.tolerance)

    @for_each_layer(**IN_ORDER, return_state=True)
    def test_a_sequence_in_two_pieces_is_the_whole(self, case, data):
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
        scale = max(1.0, *(np.abs(o).max() for o in want))
        assert_same(got, want, tolerance=case.tolerance * scale)

    @for_each_layer(ALL_KINDS, **IN_ORDER, unroll=False)
    def test_a_stateful_layer_fed_in_chunks_is_one_pass(self, case, data):
        layer = case.layer()
        stream = case.layer(stateful=True)
        stream.set_weights(layer.get_weights())
        call = (
            tf.function(stream, reduce_retracing=True)
            if data.draw(st.booleans())
            else stream
        )
        # Used in the first call only; what comes later must not matter.
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
        scale = max(1.0, np.abs(whole).max())
        assert_same(
            np.concatenate(pieces, axis=1), whole, tolerance=case.tolerance * scale
        )


class TestWithoutInitialState:
    @pytest.mark.parametrize("initial_state", [None, "zeros", [None, "zeros"]])
    def test_it_is_an_lstm(self, initial_state):
        x = np.random.normal(size=(3, 5, 2)).astype("float32")
        layer = InitStateLSTM(4, initial_state=initial_state, name="lstm")
        lstm = keras.layers.LSTM(4, name="lstm")
        assert isinstance(layer, keras.layers.LSTM)
        layer(x), lstm(x)
        assert [w.path for w in layer.weights] == [w.path for w in lstm.weights]
        assert len(layer.variables) == len(lstm.variables)
        layer.set_weights(lstm.get_weights())
        assert_same(layer(x), lstm(x))
        lstm.set_weights([w + 1 for w in layer.get_weights()])
        layer.set_weights(lstm.get_weights())
        assert_same(layer(x), lstm(x))

    def test_the_summary_is_that_of_lstm(self):
        def summary(cls):
            lines = []
            model = keras.Sequential([keras.Input((5, 2)), cls(4, name="lstm")])
            model.summary(print_fn=lambda text, **_: lines.extend(text.splitlines()))
            rows = "\n".join(lines[1:]).replace("InitStateLSTM", "LSTM")
            return [row.split() for row in rows.replace("━", "").split("\n")]

        assert ["Total", "params:", "112", "(448.00", "B)"] in summary(InitStateLSTM)
        assert summary(InitStateLSTM) == summary(keras.layers.LSTM)

    def test_every_argument_keeps_its_name_place_and_default(self):
        arguments = (3, "relu", "tanh", False, "ones", "zeros", "ones", False)
        layer = InitStateLSTM(*arguments, dropout=0.25, initial_state="trainable")
        lstm = keras.layers.LSTM(*arguments, dropout=0.25)
        ours = layer.get_config()
        for key, value in lstm.get_config().items():
            assert ours[key] == value or key == "name"
        with pytest.raises(TypeError):
            InitStateLSTM(*[3] * 26, "trainable")


class TestOwnership:
    def test_each_state_owns_its_variables_and_names_them(self):
        given_twice = Trainable("ones")
        layer = InitStateLSTM(3, initial_state=given_twice, name="lstm")
        layer.build((None, None, 2))
        assert [w.path for w in layer.weights[3:]] == ["lstm/h0/value", "lstm/c0/value"]
        assert given_twice not in layer.initial_state
        other = InitStateLSTM(2, initial_state=[given_twice, given_twice])
        other.build((None, None, 2))
        assert len({id(w) for w in layer.weights + other.weights}) == 10

    def test_states_built_before_the_layer_have_the_same_names(self):
        layer = InitStateLSTM(3, initial_state=[Trainable("ones"), 0.5], name="lstm")
        assert_same(
            layer.get_initial_state(2),
            [np.ones((2, 3), "f"), np.full((2, 3), 0.5, "f")],
        )
        layer.assign_initial_state([np.full(3, 2.0), None])
        layer.build((None, None, 2))
        assert [w.path for w in layer.weights[3:]] == ["lstm/h0/value", "lstm/c0/value"]
        assert_same(
            layer.get_initial_state(1),
            [np.full((1, 3), 2, "f"), np.full((1, 3), 0.5, "f")],
        )

    @pytest.mark.parametrize("dtype", properties.DTYPES + ("float16", "bfloat16"))
    @pytest.mark.parametrize("kind", ["fixed", "sampled", "trainable"])
    def test_variables_are_under_the_dtype_policy_of_the_layer(self, kind, dtype):
        layer = InitStateLSTM(
            3,
            initial_state=kind,
            dtype=dtype,
            recurrent_initializer="zeros",  # the default cannot make bfloat16
        )
        layer.build((None, None, 2))
        assert {w.dtype for w in layer.weights} == {layer.variable_dtype}
        outputs = layer(np.zeros((2, 4, 2)), training=True)
        assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
        states = layer.get_initial_state(2)
        assert keras.backend.standardize_dtype(states[0].dtype) == layer.compute_dtype

    def test_trainable_can_be_switched(self):
        layer = InitStateLSTM(3, initial_state=[Trainable(), Sampled(trainable=True)])
        layer.build((None, None, 2))
        assert len(layer.trainable_weights) == 6
        layer.initial_state[0].trainable = False
        assert len(layer.trainable_weights) == 5
        restored = InitStateLSTM.from_config(layer.get_config())
        restored.build((None, None, 2))
        assert [w.path.split("/")[1:] for w in restored.trainable_weights[3:]] == [
            ["c0", "mean"],
            ["c0", "stddev"],
        ]
        layer.trainable = False
        assert not layer.trainable_weights
        layer.trainable = True
        assert len(layer.trainable_weights) == 6

    def test_a_frozen_layer_has_frozen_states(self):
        layer = InitStateLSTM(3, initial_state="trainable", trainable=False)
        layer.build((None, None, 2))
        assert not layer.trainable_weights
        assert not layer.initial_state[0].trainable
        layer.trainable = True
        assert len(layer.trainable_weights) == 5

    def test_unfreezing_a_model_does_not_make_a_given_state_learn(self):
        layer = InitStateLSTM(3, initial_state=[Fixed(), Sampled()])
        layer.build((None, None, 2))
        layer.trainable = False
        layer.trainable = True
        assert len(layer.trainable_weights) == 3

    def test_regularizer_and_constraint_act_on_the_value(self):
        entry = Trainable(
            -2.0, regularizer=keras.regularizers.L2(0.5), constraint="non_neg"
        )
        layer = InitStateLSTM(3, initial_state=[entry, None])
        layer.build((None, None, 2))
        assert [float(loss) for loss in layer.losses] == [0.5 * 3 * 4]
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.apply_gradients([(tf.zeros(3), layer.initial_state[0].value)])
        np.testing.assert_array_equal(layer.initial_state[0].value, np.zeros(3))


class TestRefusedCalls:
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2), (3, 5, 3)])
    def test_the_first_call_leaves_the_layer_as_it_was(self, shape, stateful):
        layer = InitStateLSTM(2, stateful=stateful)
        with pytest.raises(ValueError, match="ndim=3|`initial_state"):
            layer(np.ones(shape), initial_state=[np.ones((4, 2))] * 2)
        assert not layer.built
        assert layer.states is None
        assert layer(np.ones((2, 5, 3))).shape == (2, 2)

    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("shape", [(4, 4), (8, 2), (1, 2), (2, 4), (1, 8), (4, 1)])
    def test_a_state_whose_shape_is_known_at_run_time(self, shape, stateful):
        layer = InitStateLSTM(2, stateful=stateful)
        x = np.ones((4, 5, 3), "float32")
        layer(x)
        carried = [s.numpy() for s in layer.states or ()]
        unknown = tf.TensorSpec((None, None))

        @tf.function(input_signature=[tf.TensorSpec((None, None, 3)), unknown])
        def call(x, state):
            return layer(x, initial_state=[state, None])

        with pytest.raises(tf.errors.InvalidArgumentError, match="initial_state"):
            call(x, np.ones(shape, "float32"))
        assert_same(list(layer.states or ()), carried)
        want = layer(x, initial_state=[np.ones((4, 2)), None])
        layer.reset_states([None, carried[1]] if stateful else None)
        assert_same(call(x, np.ones((4, 2), "float32")), want, tolerance=1e-6)


class TestAssign:
    @for_each_layer(("fixed", "sampled", "trainable"))
    def test_assigns_the_value_or_the_mean_over_the_batch(self, case, data):
        layer = case.layer()
        given = [
            data.draw(
                st.none()
                | properties.arrays(units)
                | properties.arrays(case.batch, units)
            )
            for units in layer.state_units
        ]
        before = properties.owned_values(layer)
        layer.assign_initial_state(keras.tree.pack_sequence_as(layer.state_size, given))
        for got, value, old in zip(
            properties.owned_values(layer), given, before, strict=True
        ):
            if value is None:
                want = old
            else:
                want = value if value.ndim == 1 else value.mean(axis=0)
            np.testing.assert_array_equal(got, np.asarray(want, got.dtype))
        want = case.call(case.reference(layer), initial_state=case.states(layer))
        case.assert_same(case.call(layer), want)

    def test_zeros_are_not_owned(self):
        layer = InitStateLSTM(3, initial_state=["trainable", None])
        with pytest.raises(ValueError, match="no value of c0"):
            layer.assign_initial_state([np.ones(3), np.ones(3)])
        assert_same(layer.get_initial_state(1), [np.zeros((1, 3), "f")] * 2)
        layer.assign_initial_state([np.ones(3), None])
        assert float(layer.get_initial_state(1)[0][0, 0]) == 1
