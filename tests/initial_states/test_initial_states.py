"""The kinds of initial state, and their arguments."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import FLOAT64, compiled, tf
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitialState,
    InitStateLSTM,
    Sampled,
    Trainable,
)
from models import UNITS, PerRow, X, sampled
from oracles import assert_same, flat, reference_of, to_numpy
from strategies import sizes


def drawn(entry, batch, units, training=True):
    """`batch` rows of the initial state `entry`."""
    layer = InitStateLSTM(units, initial_state=[entry, None])
    layer.build((None, None, 1))
    return to_numpy(layer.initial_state[0].call(batch, training=training))


class TestSampled:
    """Statistical tests, at fixed seeds. False-alarm rate of each bound: below 1e-7.

    A mean of n draws is compared at 6 standard errors (2e-9 two-sided for the normal
    limit, which n = 20,000 reaches well within the margin to 1e-7), and so is the
    standard deviation, whose standard error is at most stddev * sqrt((kurtosis - 1)
    / 4 n), with the kurtosis 3 of a normal distribution; the others have less. Each
    test makes at most 10 such comparisons: below 1e-6 altogether.
    """

    rows = 20_000

    def test_arguments_have_defaults(self):
        config = Sampled().get_config()
        assert (config["mean"], config["stddev"]) == (0.0, 0.1)
        assert (config["distribution"], config["at_inference"]) == ("normal", "mean")

    @pytest.mark.parametrize("learned", [False, True, "mean", "stddev"])
    @pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
    def test_moments_are_the_arguments(self, distribution, learned):
        mean, stddev = np.array([0.5, -2.0, 0.0]), np.array([0.1, 3.0, 1.0])
        entry = sampled(mean, stddev, distribution, learned=learned, seed=1)
        draws = drawn(entry, self.rows, 3).astype("float64")
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
        entry = Sampled(0.0, 1.0, distribution, seed=2)
        draws = drawn(entry, 10 * self.rows, 1).astype("float64")
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
        first, second, other = (
            to_numpy(entry.call(self.rows, training=True)) for entry in (h0, h0, c0)
        )
        pairs = {
            "units": (first[:, 0], first[:, 1]),
            "rows": (first[:-1, 0], first[1:, 0]),
            "calls": (first[:, 0], second[:, 0]),
            "states": (first[:, 0], other[:, 0]),
        }
        for name, (a, b) in pairs.items():
            # The correlation of independent draws has a standard error 1 / sqrt(n).
            assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a)), name

    @given(st.integers(-(2**40), 2**40), sizes("units"))
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

    def test_states_with_different_distributions(self):
        layer = InitStateLSTM(
            UNITS, initial_state=[Sampled(0.5, 0.1, seed=1), Sampled(0.2, 0.3, seed=1)]
        )
        h, c = flat(layer.get_initial_state(10_000, training=True))
        # Standard errors are at most 0.3 / sqrt(20,000) = 0.002; this is 6 of them.
        moments = [np.mean(h), np.std(h), np.mean(c), np.std(c)]
        np.testing.assert_allclose(moments, [0.5, 0.1, 0.2, 0.3], atol=0.013)
        assert (to_numpy(layer(X, training=True)) != to_numpy(layer(X))).all()

    def test_at_inference_the_mean_or_a_draw(self):
        mean = np.arange(3.0)
        np.testing.assert_array_equal(
            drawn(Sampled(mean), 2, 3, training=False), [mean, mean]
        )
        draws = drawn(Sampled(mean, at_inference="sample"), 2, 3, training=False)
        assert (draws != mean).all()
        assert (draws[0] != draws[1]).all()

    def test_get_initial_state_equals_the_states_of_a_call(self):
        layer = InitStateLSTM(2, initial_state=[Sampled([1.0, 2.0]), None])
        h, c = layer.get_initial_state(3)
        assert_same([h, c], [np.array([[1, 2]] * 3, "f"), np.zeros((3, 2), "f")])
        h, c = layer.get_initial_state(3, training=True)
        assert len(np.unique(to_numpy(h))) == 6
        np.testing.assert_array_equal(
            to_numpy(layer.initial_state[0].call(1)), [[1, 2]]
        )
        assert_same(c, np.zeros((3, 2), "f"))

    def test_zero_stddev_is_the_mean(self):
        np.testing.assert_array_equal(
            drawn(Sampled([1.0, 2.0], 0.0), 2, 2), [[1, 2], [1, 2]]
        )

    @pytest.mark.parametrize(
        "as_graph", [False, pytest.param(True, marks=pytest.mark.tensorflow)]
    )
    def test_every_call_in_training_draws(self, as_graph):
        layer = InitStateLSTM(4, initial_state=Sampled(seed=4))
        call = compiled(layer) if as_graph else layer
        x = np.ones((3, 2, 1), "float32")
        first, second = flat([call(x, training=True), call(x, training=True)])
        assert (first != second).any()
        assert (first[0] != first[1]).any()
        assert_same(call(x, training=False), call(x))
        assert_same(call(x)[0], call(x)[1])

    @pytest.mark.tensorflow
    def test_learned_by_reparameterisation(self):
        layer = InitStateLSTM(2, initial_state=sampled(1.0, 2.0, learned=True))
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

    @pytest.mark.parametrize(
        ("learned", "moves"),
        [
            (False, []),
            ("mean", ["mean"]),
            ("stddev", ["stddev"]),
            (True, ["mean", "stddev"]),
        ],
    )
    def test_fit_moves_what_is_learned(self, learned, moves, tmp_path):
        kind = Sampled(0.5, 0.25, learned=learned, seed=1)
        layer = InitStateLSTM(UNITS, initial_state=[kind, None])
        model = keras.Sequential([keras.Input(X.shape[1:]), layer])
        model.compile("sgd", "mse")
        model.fit(X, np.ones((len(X), UNITS)), verbose=0)
        values = {
            name: to_numpy(getattr(layer.h0, name)) for name in ("mean", "stddev")
        }
        untouched = {"mean": 0.5, "stddev": 0.25}
        moved = [name for name in values if (values[name] != untouched[name]).all()]
        assert moved == moves
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras").layers[0]
        assert loaded.h0.learned == learned
        assert_same([loaded.h0.mean, loaded.h0.stddev], list(values.values()))
        names = [w.path.split("/")[-1] for w in loaded.h0.trainable_weights]
        assert names == moves

    @pytest.mark.parametrize("learned", [True, "stddev"])
    def test_a_learned_stddev_stays_non_negative(self, learned):
        layer = InitStateLSTM(2, initial_state=sampled(1.0, 2.0, learned=learned))
        layer.build((None, None, 1))
        stddev = layer.initial_state[0].stddev
        gradient = keras.ops.convert_to_tensor([1.0, 9.0])
        keras.optimizers.SGD(1.0).apply([gradient], [stddev])
        np.testing.assert_array_equal(to_numpy(stddev), [1.0, 0.0])


class TestTrainable:
    def test_regularizer_and_constraint_act_on_the_value(self):
        entry = Trainable(
            -2.0, regularizer=keras.regularizers.L2(0.5), constraint="non_neg"
        )
        layer = InitStateLSTM(3, initial_state=[entry, None])
        layer.build((None, None, 2))
        assert [float(loss) for loss in layer.losses] == [0.5 * 3 * 4]
        value = layer.initial_state[0].value
        keras.optimizers.SGD(0.0).apply([keras.ops.zeros(3)], [value])
        np.testing.assert_array_equal(to_numpy(value), np.zeros(3))


class TestGivenValues:
    @pytest.mark.parametrize("dtype", ["float16", "float32", FLOAT64])
    def test_a_given_array_is_kept_exactly(self, dtype):
        info = np.finfo(dtype)
        array = np.array(
            [-0.0, info.max, info.tiny, info.smallest_subnormal, 1 / 3, math.pi], dtype
        )
        layer = InitStateLSTM(
            6,
            initial_state=[array, None],
            dtype=dtype,
            recurrent_initializer="zeros",  # the default cannot always make float16
        )
        restored = InitStateLSTM.from_config(layer.get_config())
        for each in (layer, restored):
            each.build((None, None, 1))
            got = to_numpy(each.initial_state[0].value)
            assert got.dtype == array.dtype
            assert got.tobytes() == array.tobytes()

    def test_the_given_array_is_copied(self):
        array = np.ones(2)
        layer = InitStateLSTM(2, initial_state=[array, None])
        array[:] = 7
        assert_same(layer.get_initial_state(1)[0], np.ones((1, 2), "float32"))

    def test_initializers_set_the_variables(self):
        ones = keras.initializers.Ones()
        for entry in (Fixed("ones"), Fixed(ones), Trainable("ones"), Trainable(ones)):
            layer = InitStateLSTM(2, initial_state=[entry, None])
            assert_same(layer.get_initial_state(1)[0], np.ones((1, 2), "float32"))

    def test_a_random_initializer_draws_for_each_state(self):
        layer = InitStateLSTM(8, initial_state=Trainable("random_normal"))
        assert all((s != 0).all() for s in flat(layer.get_initial_state(1)))

    def test_functions_that_keras_can_not_serialize(self):
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
        tensor = keras.ops.convert_to_tensor
        for value in (
            tensor([1.0, 2.0]),
            keras.Variable([1.0, 2.0]),
            tensor([1, 2]),
            [1.0, 2.0],
            (1, 2),
            tensor([1.0, 2.0], "bfloat16"),
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
    """Values that are neither a finite number nor a finite array `(units,)`."""
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


class TestKinds:
    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (Fixed(0.5), "Fixed(value=0.5)"),
            (Fixed([0.5, 1.0], name="h"), "Fixed(value=[0.5, 1.0])"),
            (Fixed(np.array([0.5, 1.0])), "Fixed(value=[0.5, 1.0])"),
            (Fixed(np.ones(64)), "Fixed(value=<array of shape (64,)>)"),
            (Trainable(), "Trainable()"),
            (
                Trainable("ones", constraint="non_neg"),
                "Trainable(initializer='ones', constraint='non_neg')",
            ),
            (Sampled(0.5, 0.25, seed=1), "Sampled(mean=0.5, stddev=0.25, seed=1)"),
            (PerRow(dtype="float64"), "PerRow()"),
        ],
        ids=str,
    )
    def test_repr_shows_the_arguments(self, kind, text):
        assert repr(kind) == text
        assert repr(kind.copy(name="c0")) == text

    @pytest.mark.parametrize("kind", [Fixed(), Trainable(), Sampled(), PerRow()])
    def test_have_no_value_before_they_are_built(self, kind):
        layer = InitStateLSTM(3, initial_state=[kind, None])
        with pytest.raises(AttributeError, match="no `value` before it is built: call"):
            _ = layer.h0.value
        assert not hasattr(layer.h0, "value")
        with pytest.raises(AttributeError, match="has no attribute 'values'"):
            _ = layer.h0.values
        layer.get_initial_state(1)
        if isinstance(kind, PerRow):
            with pytest.raises(AttributeError, match="PerRow 'h0' owns no `value`"):
                _ = layer.h0.value
        else:
            assert layer.h0.value.shape == (3,)

    def test_a_subclass_keeps_its_arguments(self):
        class Scaled(Trainable):
            def __init__(self, *args, scale=2.0, **kwargs):
                super().__init__(*args, **kwargs)
                self.scale = scale

            def call(self, batch_size, training=False):
                return self.scale * super().call(batch_size)

        class Number(Fixed):
            def __init__(self, number=3, **kwargs):
                super().__init__(float(number), **kwargs)

        class Given(InitialState):
            def __init__(self, array, function, **kwargs):
                super().__init__(**kwargs)
                self.array, self.function = array, function

            def call(self, batch_size, training=False):
                return self.function(np.tile(self.array, (batch_size, 1)))

        layer = InitStateLSTM(2, initial_state=[Scaled("ones", scale=4.0), Number(5)])
        want = [np.full((1, 2), value, "float32") for value in (4, 5)]
        assert_same(layer.get_initial_state(1), want)
        assert repr(layer.h0) == "Scaled(args=('ones',), scale=4.0)"
        kind = Given(np.ones(2, "float32"), lambda array: 2 * array)
        layer = InitStateLSTM(2, initial_state=[kind, None])
        assert_same(layer.get_initial_state(1)[0], np.full((1, 2), 2, "float32"))

    def test_a_class_without_a_config_is_saved(self, tmp_path):
        @keras.saving.register_keras_serializable("test_initial_states")
        class Level(InitialState):
            def __init__(self, level=0.0, **kwargs):
                super().__init__(**kwargs)
                self.level = level

            def call(self, batch_size, training=False):
                return keras.ops.full((batch_size, self.units), self.level)

        layer = InitStateLSTM(2, initial_state=Level(0.5), dtype="float32")
        model = keras.Sequential([keras.Input(X.shape[1:]), layer])
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert loaded.layers[0].h0.level == 0.5
        assert_same(loaded(X), model(X))

    def test_a_custom_dtype_policy(self):
        class Policy(keras.DTypePolicy):
            pass

        layer = InitStateLSTM(2, initial_state="trainable", dtype=Policy("float32"))
        assert tuple(layer(X).shape) == (len(X), 2)

    def test_a_class_that_takes_no_name(self):
        class Nameless(InitialState):
            def __init__(self):
                super().__init__()

        message = "`initial_state`, for h0: .*unexpected keyword argument 'name'"
        with pytest.raises(ValueError, match=message):
            InitStateLSTM(2, initial_state=Nameless())

    def test_a_frozen_distribution_is_still_learned(self):
        entry = Sampled(learned=True, trainable=False)
        assert entry.learned and not entry.trainable
        layer = InitStateLSTM(2, initial_state=[entry, None])
        layer(np.ones((2, 3, 1)))
        assert len(layer.trainable_weights) == 3
        layer.h0.trainable = True
        assert len(layer.trainable_weights) == 5
        with pytest.raises(ValueError, match="`learned` must be one of"):
            Sampled(learned="yes")


@keras.saving.register_keras_serializable("test_initial_states")
class FromLayers(InitialState):
    """A custom kind that computes a state with layers without a `build()`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = [keras.layers.Dense(3), keras.layers.Dense(UNITS)]

    def call(self, batch_size, training=False):
        h = keras.ops.ones((batch_size, 2))
        for layer in self.layers:
            h = layer(h)
        return h


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_functional_model_builds_the_layers_inside_a_kind(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=FromLayers())
    model = keras.Sequential([keras.Input(X.shape[1:]), layer])
    assert len(model.weights) == 3 + 2 * 4
    want = model(X)
    states = layer.get_initial_state(len(X))
    assert flat(states)[0].any()
    assert_same(want, reference_of(layer)(X, initial_state=states), tolerance=1e-6)
    assert len(model.weights) == 3 + 2 * 4
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded(X), want, tolerance=1e-6)
    assert_same(InitStateLSTM.from_keras(layer)(X), want, tolerance=1e-6)


class TestAttributesThatAreSet:
    def test_attributes_that_a_call_reads_are_kept_in_copies(self):
        kind = Sampled(0.5, 0.1, seed=1)
        kind.at_inference, kind.distribution = "sample", "uniform"
        layer = InitStateLSTM(UNITS, initial_state=kind)
        taken = InitStateLSTM.from_keras(layer)
        for entry in (*layer.initial_state, *taken.initial_state):
            assert entry.at_inference == "sample" and entry.distribution == "uniform"
        assert (flat(layer.get_initial_state(3))[0] != 0.5).any()
        with pytest.raises(ValueError, match="`at_inference`.*Received"):
            kind.at_inference = "no"
        with pytest.raises(ValueError, match="`distribution`.*Received"):
            kind.distribution = "no"

    @pytest.mark.parametrize(
        ("kind", "name", "value"),
        [
            (Sampled(), "stddev", 0.5),
            (Sampled(), "mean", 0.5),
            (Sampled(), "learned", True),
            (Sampled(), "seed", 1),
            (Fixed(), "value", 0.5),
            (Trainable(), "value", 0.5),
            (Trainable(), "regularizer", "l2"),
            (Trainable(), "constraint", "non_neg"),
            (Conditional(keras.layers.Dense(UNITS)), "encoder", keras.layers.Dense(1)),
            (Conditional(keras.layers.Dense(UNITS)), "over_time", True),
        ],
        ids=str,
    )
    def test_attributes_that_no_call_reads(self, kind, name, value):
        with pytest.raises(ValueError, match=f"`{name}`.*can't be set.*Received"):
            setattr(kind, name, value)
        owned = InitStateLSTM(UNITS, initial_state=kind)
        if not kind.takes_context:
            owned.get_initial_state(1)
        with pytest.raises(ValueError, match=f"`{name}`.*can't be set.*Received"):
            setattr(owned.h0, name, value)


class TestInvalidArguments:
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
    def test_invalid_entries(self, data, units):
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

    @pytest.mark.parametrize(
        "initializer", ["random_normal", keras.initializers.RandomNormal()]
    )
    def test_the_error_for_an_initializer_names_fixed_and_trainable(self, initializer):
        message = r"Trainable\(initializer\)`, which is learned, or `Fixed\(init"
        with pytest.raises(ValueError, match=message):
            InitStateLSTM(3, initial_state=initializer)

    @given(st.data(), st.integers(2, 6))
    def test_no_contents_of_arrays_in_messages(self, data, units):
        bad = np.full((units + 1, 50), 0.123456789)
        bad[data.draw(st.integers(0, units)), 7] = np.nan
        layer = InitStateLSTM(units, initial_state="trainable", stateful=True)
        x = np.ones((2, 4, 3))
        calls = (
            lambda given: InitStateLSTM(units, initial_state=given),
            lambda given: InitStateLSTM(units, initial_state=[given, None]),
            Fixed,
            Sampled,
            lambda given: Sampled(0.0, given),
            lambda given: layer.assign_initial_state([given, None]),
            lambda given: layer.assign_initial_state({"h0": given, "c0": None}),
            lambda given: layer.reset_states([given, None]),
            lambda given: layer.reset_states(given),
            lambda given: layer(x, initial_state=given),
            lambda given: layer(x, initial_state=[given, None]),
            lambda given: layer(x, context=given),
        )
        call = data.draw(st.sampled_from(calls))
        with pytest.raises(ValueError, match="Received") as error:
            call(data.draw(st.sampled_from([bad, bad.tolist()])))
        assert len(str(error.value)) < 1000

    @pytest.mark.parametrize(
        "bad", [np.array(["a"]), np.array([None]), np.array(0, "M8[s]"), np.array([1j])]
    )
    def test_arrays_of_other_types(self, bad):
        with pytest.raises(ValueError, match=r"`value` must be .*Received.*dtype"):
            Fixed(bad)

    @pytest.mark.parametrize("bad", [-1, 2.5, None, "2", True, np.ones(2)])
    def test_an_invalid_batch_size(self, bad):
        layer = InitStateLSTM(3, initial_state="trainable")
        with pytest.raises(ValueError, match="`batch_size` must be .*Received"):
            layer.get_initial_state(bad)

    def test_values_that_are_infinite_in_the_compute_dtype(self):
        layer = InitStateLSTM(
            2, initial_state="trainable", stateful=True, dtype="mixed_float16"
        )
        for call in (
            lambda: layer.assign_initial_state([np.full(2, 1e6), None]),
            lambda: layer.reset_states([np.full((1, 2), 1e6), None]),
        ):
            with pytest.raises(ValueError, match="finite in dtype float16"):
                call()

    def test_messages_name_the_shapes(self):
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
