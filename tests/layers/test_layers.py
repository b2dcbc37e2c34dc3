"""Each layer extends the layer of Keras, and takes the same arguments."""

import inspect
import re

import keras
import numpy as np
import pytest
from hypothesis import assume, given

from backends import tf
from keras_init_lstm import (
    InitStateBidirectional,
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Trainable,
)
from models import BATCH, UNITS, PerRow, X
from oracles import assert_same, flat, numpy_lstm, reference_of, tiled_states
from strategies import cases

# All names in `keras.activations` except three helpers, an activation that halves the
# number of features, and an activation that needs more arguments.
EVERY_ACTIVATION = sorted(
    {name for name in dir(keras.activations) if not name.startswith("_")}
    - {"get", "serialize", "deserialize", "glu", "threshold"}
)


class TestLSTM:
    @given(cases(dtypes=("float32", "float64"), dropout=False))
    def test_outputs_follow_the_equations(self, case):
        assume(not case.misplaces_zeros)
        layer = case.layer(return_state=True)
        states = tiled_states(layer, case.batch)
        expected = numpy_lstm(case, layer, states)
        for got, want in zip(
            flat(layer(case.inputs, mask=case.mask)), expected, strict=True
        ):
            tolerance = case.tolerance * max(1.0, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=10 * tolerance)

    @pytest.mark.parametrize("name", EVERY_ACTIVATION)
    def test_with_every_activation_of_keras(self, name):
        arguments = {"activation": name, "recurrent_activation": name}
        layer = InitStateLSTM(4, initial_state=[0.5, "trainable"], **arguments)
        got = layer(X)
        states = tiled_states(layer, len(X))
        assert_same(got, reference_of(layer, **arguments)(X, initial_state=states))


class TestSignature:
    @pytest.mark.parametrize(
        "cls",
        [
            InitStateLSTM,
            InitStateGRU,
            InitStateSimpleRNN,
            InitStateRNN,
            InitStateBidirectional,
            InitStateConvLSTM1D,
            InitStateConvLSTM2D,
            InitStateConvLSTM3D,
        ],
    )
    def test_extends_the_signature_of_keras(self, cls):
        keras_cls = getattr(keras.layers, cls.__name__.removeprefix("InitState"))
        *want, _ = inspect.signature(keras_cls).parameters.values()
        *got, kwargs = inspect.signature(cls).parameters.values()
        ours = {}
        if cls is not InitStateBidirectional:
            ours["initial_state"] = None
        if hasattr(cls, "use_fused"):
            ours["use_fused"] = "auto"
        assert [(p.name, p.default, p.kind) for p in got] == [
            *((p.name, p.default, p.kind) for p in want),
            *((n, value, inspect.Parameter.KEYWORD_ONLY) for n, value in ours.items()),
        ]
        assert kwargs.kind is inspect.Parameter.VAR_KEYWORD

    @pytest.mark.parametrize(
        "cls", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN, InitStateConvLSTM2D]
    )
    def test_every_argument_is_used(self, cls):
        keras_cls = getattr(keras.layers, cls.__name__.removeprefix("InitState"))
        other = {
            bool: lambda value: not value,
            int: lambda value: value,
            float: lambda _: 0.25,
            str: lambda _: "ones",
            type(None): lambda _: None,
        }
        given = {
            name: other[type(parameter.default)](parameter.default)
            for name, parameter in inspect.signature(keras_cls).parameters.items()
            if name not in ("units", "filters", "kernel_size", "kwargs", "stateful")
        }
        for name in given:
            if "activation" in name:
                given[name] = "relu"
            elif name.endswith("regularizer"):
                given[name] = "l1"
            elif name.endswith("constraint"):
                given[name] = "non_neg"
        given |= {"seed": 7}
        given |= {"use_cudnn": False} if "use_cudnn" in given else {}
        if "strides" in given:
            given |= {"kernel_size": 2, "strides": 2, "padding": "same"}
            given |= {"data_format": "channels_first"}
        layer = cls(3, **given, initial_state="trainable", name="layer")
        want = keras_cls(3, **given, name="layer").get_config()
        got = layer.get_config()
        assert {key: got[key] for key in want} == want
        assert len(want) > 20

    @pytest.mark.parametrize(
        ("cls", "argument"),
        [
            (InitStateLSTM, "activation"),
            (InitStateGRU, "activation"),
            (InitStateSimpleRNN, "activation"),
            (InitStateRNN, "return_sequences"),
        ],
    )
    @pytest.mark.parametrize(
        "given", ["fixed", "sampled", "trainable", Trainable("ones"), PerRow()]
    )
    def test_an_initial_state_is_passed_by_name(self, cls, argument, given):
        what = keras.layers.GRUCell(UNITS) if cls is InitStateRNN else UNITS
        name = re.escape(f"`initial_state={given!r}`")
        with pytest.raises(ValueError, match=f"`{argument}` .* by name: {name}"):
            cls(what, given)
        assert cls(what, initial_state=given).h0 is not None


class TestWithoutInitialState:
    @pytest.mark.parametrize("initial_state", [None, "zeros", [None, "zeros"]])
    def test_equals_lstm(self, initial_state):
        arguments = {"initial_state": initial_state, "use_fused": False}
        layer = InitStateLSTM(UNITS, **arguments, name="lstm")
        lstm = keras.layers.LSTM(UNITS, name="lstm")
        assert isinstance(layer, keras.layers.LSTM)
        layer(X), lstm(X)
        assert [w.path for w in layer.weights] == [w.path for w in lstm.weights]
        assert len(layer.variables) == len(lstm.variables)
        layer.set_weights(lstm.get_weights())
        assert_same(layer(X), lstm(X))
        lstm.set_weights([w + 1 for w in layer.get_weights()])
        layer.set_weights(lstm.get_weights())
        assert_same(layer(X), lstm(X))

    def test_has_the_summary_of_lstm(self):
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


class NegatesCall(keras.layers.LSTM):
    def call(self, *args, **kwargs):
        return -super().call(*args, **kwargs)


class NegatesLoop(keras.layers.LSTM):
    def inner_loop(self, *args, **kwargs):
        last, outputs, states = super().inner_loop(*args, **kwargs)
        return -last, -outputs, states


class TestOverriddenMethods:
    @pytest.mark.parametrize(
        "bases",
        [
            (InitStateLSTM, NegatesCall),
            (NegatesCall, InitStateLSTM),
            (InitStateLSTM, NegatesLoop),
            (NegatesLoop, InitStateLSTM),
        ],
    )
    def test_run(self, bases):
        class Ours(*bases):
            pass

        layer = Ours(UNITS, initial_state=0.5)
        layer.build(X.shape)
        states = tiled_states(layer, len(X))
        expected = -reference_of(layer)(X, initial_state=states)
        assert_same(layer(X), expected, tolerance=1e-6)

    @pytest.mark.parametrize("overridden", ["call", "inner_loop"])
    def test_run_if_they_are_set_on_the_object(self, overridden):
        layer, seen = InitStateLSTM(UNITS, initial_state=0.5), []
        method = getattr(layer, overridden)

        def replacement(*args, **kwargs):
            seen.append(overridden)
            return method(*args, **kwargs)

        setattr(layer, overridden, replacement)
        layer(X)
        assert seen


@pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
def test_arguments_that_keras_omits_are_in_the_configuration(cls):
    layer = cls(2, use_cudnn=False, implementation=1)
    restored = cls.from_config(layer.get_config())
    assert restored.use_cudnn is False
    assert restored.cell.implementation == 1


def test_units_may_be_a_numpy_integer():
    layer = InitStateLSTM(np.int64(UNITS), initial_state="trainable")
    ones = np.ones((BATCH, UNITS), "float32")
    layer.assign_initial_state([ones[0], None])
    assert_same(layer(X), layer(X, initial_state=[ones, None]))
    with pytest.raises(ValueError, match=rf"\({BATCH}, {UNITS}\)"):
        layer(X, initial_state=[np.ones((BATCH, UNITS + 1)), None])


@pytest.mark.tensorflow
def test_use_fused_raises_where_only_the_initial_state_has_a_tangent():
    layer = InitStateLSTM(UNITS, initial_state=0.5, use_fused=True)
    layer.build(X.shape)
    h0 = layer.h0.value.value
    message = "does not support forward-mode.*Received: use_fused=True"
    with (
        tf.autodiff.ForwardAccumulator(h0, tf.ones_like(h0)),
        pytest.raises(ValueError, match=message),
    ):
        layer(X)
