import copy
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

import properties
from keras_init_lstm import (
    Fixed,
    InitStateGRU,
    InitStateLSTM,
    Sampled,
    Trainable,
    initial_states,
)
from properties import ALL_KINDS, assert_same, for_each_layer


def drawn(entry, batch, units, training=True):
    """`batch` rows of a state that starts from `entry`."""
    layer = InitStateLSTM(units, initial_state=[entry, None])
    layer.build((None, None, 1))
    return layer.initial_state[0].call(batch, training=training).numpy()


class TestSampled:
    """Statistical tests, at fixed seeds. False-alarm rate of each bound: below 1e-7.

    A mean of n draws is compared at 6 standard errors (2e-9 two-sided for the normal
    limit, which n = 20,000 reaches well within the margin to 1e-7), and so is the
    standard deviation, whose standard error is at most stddev * sqrt((kurtosis - 1)
    / 4 n), with the kurtosis 3 of a normal distribution; the others have less. Each
    test makes at most 10 such comparisons: below 1e-6 altogether.
    """

    rows = 20_000

    @pytest.mark.parametrize("trainable", [False, True])
    @pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
    def test_moments_are_those_asked_for(self, distribution, trainable):
        mean, stddev = np.array([0.5, -2.0, 0.0]), np.array([0.1, 3.0, 1.0])
        draws = drawn(
            Sampled(mean, stddev, distribution, trainable, seed=1), self.rows, 3
        ).astype("float64")
        error = stddev / math.sqrt(self.rows)
        assert (np.abs(draws.mean(axis=0) - mean) < 6 * error).all()
        assert (np.abs(draws.std(axis=0) - stddev) < 6 * error / math.sqrt(2)).all()

    @pytest.mark.parametrize(
        ("distribution", "kurtosis", "bound"),
        # Of a normal cut at two: E z^2 = 1 - 4 pdf(2) / (cdf(2) - cdf(-2)) = 0.77374
        # and E z^4 = 3 E z^2 - 16 pdf(2) / (cdf(2) - cdf(-2)) = 1.41620.
        [
            ("normal", 3.0, 6.0),
            ("truncated_normal", 1.41620 / 0.77374**2, 2 / math.sqrt(0.77374)),
            ("uniform", 1.8, math.sqrt(3)),
        ],
    )
    def test_shape_of_the_distribution(self, distribution, kurtosis, bound):
        draws = drawn(Sampled(distribution=distribution, seed=2), 10 * self.rows, 1)
        draws = draws.astype("float64")
        # Standard error of the fourth moment: sqrt(var(z**4) / n), var(z**4) <= 96.
        error = 6 * math.sqrt(96 / len(draws))
        assert abs(np.mean(draws**4) - kurtosis) < error
        assert np.abs(draws).max() <= bound * (1 + 1e-4)
        if distribution != "normal":
            assert np.abs(draws).max() > 0.999 * bound

    def test_rows_units_states_and_calls_are_independent(self):
        layer = InitStateLSTM(2, initial_state=Sampled(seed=3))
        layer.build((None, None, 1))
        h0, c0 = layer.initial_state
        first, second = (h0.call(self.rows, training=True).numpy() for _ in range(2))
        other = c0.call(self.rows, training=True).numpy()
        pairs = {
            "units": (first[:, 0], first[:, 1]),
            "rows": (first[:-1, 0], first[1:, 0]),
            "calls": (first[:, 0], second[:, 0]),
            "states": (first[:, 0], other[:, 0]),
        }
        for name, (a, b) in pairs.items():
            # The correlation of independent draws has a standard error 1 / sqrt(n).
            assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a)), name

    @given(st.integers(-(2**40), 2**40), st.integers(1, 5))
    def test_reproducible_from_a_seed(self, seed, units):
        entry = Sampled(seed=seed)
        first, again = drawn(entry, 3, units), drawn(entry, 3, units)
        np.testing.assert_array_equal(first, again)
        assert (first != drawn(Sampled(seed=seed + 1), 3, units)).any()

    def test_without_a_seed_draws_differ_but_follow_the_global_seed(self):
        assert (drawn("sampled", 3, 4) != drawn("sampled", 3, 4)).any()
        keras.utils.set_random_seed(1)
        first = drawn("sampled", 3, 4)
        keras.utils.set_random_seed(1)
        np.testing.assert_array_equal(first, drawn("sampled", 3, 4))

    def test_at_inference_the_mean_or_a_draw(self):
        mean = np.arange(3.0)
        np.testing.assert_array_equal(
            drawn(Sampled(mean), 2, 3, training=False), [mean, mean]
        )
        draws = drawn(Sampled(mean, at_inference="sample"), 2, 3, training=False)
        assert (draws != mean).all()
        assert (draws[0] != draws[1]).all()

    def test_the_layer_shows_what_rows_start_from(self):
        layer = InitStateLSTM(2, initial_state=[Sampled([1.0, 2.0]), None])
        h, c = layer.get_initial_state(3)
        assert_same([h, c], [np.array([[1, 2]] * 3, "f"), np.zeros((3, 2), "f")])
        h, c = layer.get_initial_state(3, training=True)
        assert len(np.unique(h)) == 6
        np.testing.assert_array_equal(layer.initial_state[0].call(1), [[1, 2]])
        assert_same(c, np.zeros((3, 2), "f"))

    def test_zero_stddev_is_the_mean(self):
        np.testing.assert_array_equal(
            drawn(Sampled([1.0, 2.0], 0.0), 2, 2), [[1, 2], [1, 2]]
        )

    @pytest.mark.parametrize("as_graph", [False, True])
    def test_every_call_of_the_layer_draws_anew_in_training_only(self, as_graph):
        layer = InitStateLSTM(4, initial_state=Sampled(seed=4))
        call = tf.function(layer) if as_graph else layer
        x = np.ones((3, 2, 1), "float32")
        first, second = call(x, training=True), call(x, training=True)
        assert (first.numpy() != second.numpy()).any()
        assert (first[0].numpy() != first[1].numpy()).any()
        assert_same(call(x, training=False), call(x))
        assert_same(call(x)[0], call(x)[1])

    def test_trainable_by_reparameterisation(self):
        layer = InitStateLSTM(2, initial_state=Sampled(1.0, 2.0, trainable=True))
        layer.build((None, None, 1))
        entry = layer.initial_state[0]
        weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "float32")
        with tf.GradientTape() as tape:
            rows = entry.call(3, training=True)
            loss = tf.reduce_sum(rows * weight)
        mean, stddev = tape.gradient(loss, [entry.mean.value, entry.stddev.value])
        noise = (rows.numpy() - 1.0) / 2.0
        np.testing.assert_allclose(mean, weight.sum(axis=0), rtol=1e-6)
        np.testing.assert_allclose(stddev, (weight * noise).sum(axis=0), rtol=1e-5)
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.apply_gradients([(tf.constant([1.0, 9.0]), entry.stddev)])
        np.testing.assert_array_equal(entry.stddev, [1.0, 0.0])


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
        # Of a cell or an encoder that Keras has built, the path begins with its name.
        assert [w.path.split("/")[-2:] for w in restored.trainable_weights] == [
            w.path.split("/")[-2:] for w in layer.trainable_weights
        ]
        restored.set_weights(layer.get_weights())
        assert_same(case.call(restored), case.call(layer))

    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    def test_what_keras_forgets_is_in_the_configuration(self, cls):
        layer = cls(2, use_cudnn=False, implementation=1)
        restored = cls.from_config(layer.get_config())
        assert restored.use_cudnn is False
        assert restored.cell.implementation == 1

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_a_given_array_survives_bit_for_bit(self, dtype):
        info = np.finfo(dtype)
        array = np.array(
            [-0.0, info.max, info.tiny, info.smallest_subnormal, 1 / 3, math.pi], dtype
        )
        layer = InitStateLSTM(6, initial_state=[array, None], dtype=dtype)
        restored = InitStateLSTM.from_config(layer.get_config())
        for each in (layer, restored):
            each.build((None, None, 1))
            got = each.initial_state[0].value.numpy()
            assert got.dtype == array.dtype
            assert got.tobytes() == array.tobytes()

    def test_the_given_array_is_copied(self):
        array = np.ones(2)
        layer = InitStateLSTM(2, initial_state=[array, None])
        array[:] = 7
        assert_same(layer.get_initial_state(1)[0], np.ones((1, 2), "float32"))

    def test_initializers_start_the_variables(self):
        ones = keras.initializers.Ones()
        for entry in (Fixed("ones"), Fixed(ones), Trainable("ones"), Trainable(ones)):
            layer = InitStateLSTM(2, initial_state=[entry, None])
            assert_same(layer.get_initial_state(1)[0], np.ones((1, 2), "float32"))

    def test_a_random_initializer_starts_each_state_on_its_own(self):
        layer = InitStateLSTM(8, initial_state=Trainable("random_normal"))
        assert all((s.numpy() != 0).all() for s in layer.get_initial_state(1))

    def test_what_keras_cannot_serialize_may_be_given(self):
        def initializer(shape, dtype=None):
            return keras.ops.full(shape, 0.5, dtype)

        class Squares(keras.regularizers.Regularizer):
            def __call__(self, value):
                return keras.ops.sum(value**2)

        entry = Trainable(initializer, Squares())
        layer = InitStateLSTM(2, initial_state=entry)
        assert_same(layer.get_initial_state(1), [np.full((1, 2), 0.5, "f")] * 2)
        assert [float(loss) for loss in layer.losses] == [0.5, 0.5]

    def test_tensors_and_variables_are_arrays(self):
        for value in (
            tf.constant([1.0, 2.0]),
            keras.Variable([1.0, 2.0]),
            tf.constant([1, 2]),
            [1.0, 2.0],
            (1, 2),
            tf.constant([1.0, 2.0], "bfloat16"),
        ):
            layer = InitStateLSTM(2, initial_state=[value, Fixed(value)])
            states = layer.get_initial_state(1)
            assert_same(states, [np.array([[1, 2]], "float32")] * 2)


not_finite = st.sampled_from([np.nan, np.inf, -np.inf])
not_numbers = st.sampled_from(
    ["no such initializer", True, 1j, b"x", object(), {"a": 1}, [[1.0], [1.0, 2.0]]]
)


@st.composite
def bad_arrays(draw, units):
    """What is neither a finite number nor a finite array of shape `(units,)`."""
    wrong = draw(st.integers(1, 9).filter(lambda n: n != units))
    poisoned = np.zeros(units)
    poisoned[draw(st.integers(0, units - 1))] = draw(not_finite)
    return draw(
        st.one_of(
            not_finite,
            not_numbers,
            st.sampled_from(
                [
                    np.zeros(wrong),
                    np.zeros((1, units)),
                    np.zeros((units, 1)),
                    np.zeros(0),
                    poisoned,
                    np.full(units, 1e39),
                ]
            ),
        )
    )


class TestBadInput:
    @given(st.data(), st.integers(2, 6))
    def test_values_that_do_not_fit(self, data, units):
        bad = data.draw(bad_arrays(units))
        argument, make = data.draw(
            st.sampled_from(
                [
                    ("value", lambda: Fixed(bad)),
                    ("initializer", lambda: Trainable(bad)),
                    ("mean", lambda: Sampled(mean=bad)),
                    ("stddev", lambda: Sampled(stddev=bad)),
                ]
            )
        )
        with pytest.raises(ValueError, match=rf"`{argument}`.*Received: "):
            InitStateLSTM(units, initial_state=[make(), None])

    @given(st.data(), st.integers(2, 6))
    def test_entries_that_are_none_of_the_kinds(self, data, units):
        bad = data.draw(bad_arrays(units))
        with pytest.raises(ValueError, match="(?s)(`initial_state`|`value`).*Received"):
            InitStateLSTM(units, initial_state=[bad, None])

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "Trainable",
            "learned",
            Trainable,
            keras.initializers.Zeros(),
            keras.Input((3,)),
            keras.layers.Dense(3),
            lambda: 0,
        ],
    )
    def test_unknown_names_and_types(self, bad):
        with pytest.raises(ValueError, match=r"`initial_state`.*'trainable'.*Received"):
            InitStateLSTM(3, initial_state=bad)

    @given(st.lists(properties.entries(3), max_size=4).filter(lambda e: len(e) != 2))
    def test_not_one_entry_per_state(self, entries):
        with pytest.raises(ValueError, match=r"2 states: h0 \(3 units\), c0 \(3 units"):
            InitStateLSTM(3, initial_state=entries)

    def test_messages_spell_out_the_shapes(self):
        message = "`value` of Fixed must be .* = (8,). Received: an array of shape (7,)"
        with pytest.raises(
            ValueError, match=message.replace("(", r"\(").replace(")", r"\)")
        ):
            InitStateLSTM(8, initial_state=np.zeros(7))

    @given(st.floats(max_value=0, exclude_max=True, allow_infinity=False))
    def test_negative_stddev(self, stddev):
        for bad in (stddev, [1.0, stddev]):
            with pytest.raises(ValueError, match=r"`stddev`.*negative.*Received"):
                Sampled(stddev=bad)

    @given(st.text() | st.none() | st.integers() | st.lists(st.text()))
    def test_unknown_choices(self, name):
        with pytest.raises(ValueError, match="`distribution` must be one of"):
            Sampled(distribution=name)
        with pytest.raises(ValueError, match=r"`at_inference` must be one of \['mean"):
            Sampled(at_inference=name)

    @pytest.mark.parametrize("seed", [1.5, "1", [1]])
    def test_seed(self, seed):
        with pytest.raises(ValueError, match="`seed` must be an integer"):
            Sampled(seed=seed)

    def test_finite_but_not_in_the_dtype_of_the_layer(self):
        assert Fixed(1e30)
        with pytest.raises(ValueError, match="finite in dtype float16"):
            InitStateLSTM(2, initial_state=1e30, dtype="float16")
        InitStateLSTM(2, initial_state=1e39, dtype="float64")
        with pytest.raises(ValueError, match="finite in dtype float16"):
            InitStateLSTM(2, initial_state=1e5, dtype="mixed_float16")

    def test_messages_name_the_state(self):
        with pytest.raises(ValueError, match="`initial_state`, for c0: .*shape"):
            InitStateLSTM(8, initial_state=[0.0, np.zeros((1, 8))])

    def test_symbolic_tensors_are_named_as_such(self):
        layer = InitStateLSTM(2, initial_state="trainable", stateful=True)

        for method in (layer.assign_initial_state, layer.reset_states):
            call = tf.function(lambda state, method=method: method([state, state]))
            with pytest.raises(ValueError, match=r"`states\[0\]`.*symbolic tensor"):
                call(tf.ones((3, 2)))

    def test_legacy_objects_are_named_as_such(self):
        for legacy in (
            tf_keras.initializers.Zeros(),
            tf_keras.layers.LSTM(3),
            tf_keras.Input((3,)),
        ):
            for make in (
                lambda legacy=legacy: InitStateLSTM(3, initial_state=legacy),
                lambda legacy=legacy: Fixed(legacy),
                lambda legacy=legacy: Trainable(legacy),
                lambda legacy=legacy: Sampled(legacy),
            ):
                with pytest.raises(ValueError, match="legacy tf_keras"):
                    make()

    def test_a_kind_without_a_value_has_nothing_to_assign(self):
        class Zeros(initial_states.InitialState):
            def call(self, batch_size, training=False):
                return keras.ops.zeros((batch_size, self.units))

        layer = InitStateLSTM(3, initial_state=[Zeros(), None])
        assert_same(layer.get_initial_state(2)[0], np.zeros((2, 3), "float32"))
        with pytest.raises(ValueError, match="owns no value of h0 to assign to"):
            layer.assign_initial_state([np.ones(3), None])
