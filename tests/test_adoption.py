"""Existing models and layers, whose weights are taken over."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import BACKEND, FLOAT64, in_a_fresh_process
from keras_init_lstm import (
    InitialState,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    with_initial_state,
)
from keras_init_lstm._copies import copy_layer
from models import (
    ADOPTED,
    BATCH,
    FEATURES,
    SHAPE,
    TIMESTEPS,
    UnregisteredCell,
    X,
    at_two_depths,
    batch_for,
    custom_cells,
    every_layer,
    in_wrappers,
    model_of,
    normal,
    two_inputs,
    with_tokens,
)
from oracles import across_programs, assert_same, flat, to_numpy
from strategies import for_each_layer


def owning(model):
    return [x for x in model._flatten_layers() if isinstance(x, InitStateRNN)]


@keras.saving.register_keras_serializable()
def halved(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1) / 2


class TestWithInitialState:
    @pytest.mark.parametrize("architecture", ADOPTED)
    def test_predictions_are_equal_and_then_it_learns(self, architecture, tmp_path):
        model = model_of(architecture)
        x = batch_for(model)
        weights = flat(model.weights)
        adopted = with_initial_state(model, "trainable")
        assert type(adopted) is type(model) and adopted.name == model.name
        assert_same(
            adopted.predict(x, BATCH, verbose=0),
            model.predict(x, BATCH, verbose=0),
            across_programs(),
        )
        ours, theirs = ({id(v) for v in m.variables} for m in (model, adopted))
        assert ours.isdisjoint(theirs)
        kinds = [kind for layer in owning(adopted) for kind in layer.initial_state]
        for layer in owning(adopted):
            layer.reset_state()
        adopted.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        adopted.fit(x, np.ones((BATCH, 1)), BATCH, verbose=0)
        changed = [bool(np.any(to_numpy(kind.value))) for kind in kinds]
        # The initial states of a layer that gets explicit states are not learned.
        assert changed.count(False) == (2 if architecture is two_inputs else 0)
        assert_same(model.get_weights(), weights)
        for layer in owning(adopted):
            layer.reset_state()
        # Keras can load neither an unregistered cell nor a model that is used at two
        # depths.
        if architecture not in (custom_cells, at_two_depths):
            adopted.save(tmp_path / "adopted.keras")
            loaded = keras.models.load_model(tmp_path / "adopted.keras")
            assert_same(loaded(x), adopted(x))

    @pytest.mark.parametrize("dtype", [FLOAT64, "mixed_bfloat16"])
    @pytest.mark.parametrize("architecture", [every_layer, in_wrappers, with_tokens])
    def test_in_every_precision(self, architecture, dtype):
        model = model_of(architecture, dtype)
        x = batch_for(model)
        adopted = with_initial_state(model, "trainable")
        assert_same(adopted(x), model(x), across_programs(dtype))
        assert adopted.dtype_policy == model.dtype_policy
        assert {layer.dtype_policy.name for layer in owning(adopted)} == {dtype}

    def test_shared_layers_stay_shared(self):
        model = model_of(at_two_depths)
        adopted = with_initial_state(model, "trainable")
        assert len(owning(adopted)) == 2
        assert len(adopted.weights) == len(model.weights) + 4

    @pytest.mark.parametrize(
        ("where", "count"),
        [
            ("first", 1),
            (["first", "third"], 2),
            (lambda layer: layer.units == 3, 2),
        ],
        ids=["name", "names", "predicate"],
    )
    def test_where(self, where, count):
        model = model_of(every_layer)
        adopted = with_initial_state(model, 0.5, where)
        assert len(owning(adopted)) == count
        again = with_initial_state(adopted, "trainable")
        assert len(owning(again)) == 3
        (h0,) = (layer.h0 for layer in owning(again)[-1:])
        assert (to_numpy(h0.value) == (0 if where == "first" else 0.5)).all()

    def test_where_takes_any_iterable_of_names(self):
        model = model_of(every_layer)
        adopted = with_initial_state(model, 0.5, (name for name in ["first", "third"]))
        assert len(owning(adopted)) == 2
        for where in (5, [["first"]]):
            with pytest.raises(ValueError, match="`where` must .*Received"):
                with_initial_state(model, 0.5, where)

    def test_the_stream_of_another_layer_continues(self):
        x = keras.Input(SHAPE[1:], batch_size=SHAPE[0])
        layer = InitStateLSTM(3, initial_state=0.5, stateful=True, name="running")
        h = layer(x), layers.LSTM(3, name="chosen")(x)
        model = keras.Model(x, layers.Concatenate()(h))
        model(X)
        adopted = with_initial_state(model, "trainable", "chosen")
        assert_same(adopted(X), model(X))

    def test_where_names_a_wrapper_or_a_model(self):
        adopted = with_initial_state(
            model_of(in_wrappers), "trainable", ["each", "two"]
        )
        assert len(owning(adopted)) == 4
        adopted = with_initial_state(model_of(at_two_depths), "trainable", "inner")
        assert len(owning(adopted)) == 1

    def test_frozen_layers_stay_frozen(self):
        model = model_of(in_wrappers)
        model.layers[2].forward_layer.trainable = False
        model.layers[3].backward_layer.cell.trainable = False
        model.layers[1].trainable = False
        adopted = with_initial_state(model, "trainable")
        assert not adopted.layers[2].forward_layer.trainable_variables
        assert len(adopted.layers[3].backward_layer.trainable_variables) == 1
        assert len(adopted.layers[2].backward_layer.trainable_variables) == 4
        assert adopted.trainable and not adopted.layers[1].trainable
        assert not adopted.layers[1].layer.trainable

    def test_a_frozen_model_around_a_trainable_layer(self):
        model = model_of(at_two_depths)
        (middle,) = (x for x in model.layers if type(x) is type(model))
        middle.trainable = False
        model.get_layer("inner").trainable = True
        adopted = with_initial_state(model, "trainable")
        assert not adopted.get_layer(middle.name).trainable
        assert adopted.get_layer("inner").layers[0].trainable

    def test_bidirectional_keeps_zero_output_for_mask(self):
        model = model_of(with_tokens)
        model.layers[1].forward_layer.zero_output_for_mask = False
        adopted = with_initial_state(model, "trainable")
        assert_same(adopted(batch_for(model)), model(batch_for(model)))
        assert not adopted.layers[1].forward_layer.zero_output_for_mask

    def test_is_compiled_with_the_same_arguments(self):
        def loss(y, predicted):  # The loss and the metric are not registered.
            return keras.ops.mean((y - predicted) ** 2, axis=-1)

        class Metric(keras.metrics.MeanAbsoluteError):
            pass

        model = model_of(two_inputs)
        steps = 1 if BACKEND == "torch" else 2  # PyTorch can't run 2.
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        model.compile(
            keras.optimizers.Adam(schedule, beta_1=0.8),
            loss,
            loss_weights=[2.0],
            metrics=["mae", Metric(name="own")],
            weighted_metrics=[halved],
            steps_per_execution=steps,
            run_eagerly=False,
            jit_compile=False,
        )
        x, y = batch_for(model), np.ones((BATCH, 1))
        model.fit(x, y, verbose=0)
        before = model.evaluate(x, y, verbose=0, return_dict=True)
        adopted = with_initial_state(model, "trainable")
        assert model.compiled
        assert adopted.evaluate(x, y, verbose=0, return_dict=True) == before
        assert adopted.optimizer.get_config() == model.optimizer.get_config()
        assert adopted.optimizer.iterations == 0 and model.optimizer.iterations == 1
        assert adopted.steps_per_execution == steps and not adopted.jit_compile
        adopted.fit(x, y, verbose=0)

    @pytest.mark.parametrize("scaled", [True, False])
    def test_loss_scaling(self, scaled):
        model = model_of(every_layer, "mixed_float16")
        model.compile("sgd", "mse", auto_scale_loss=scaled)
        adopted = with_initial_state(model)
        assert type(adopted.optimizer) is type(model.optimizer)

    def test_models_that_can_not_be_rewritten(self):
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.lstm = layers.LSTM(2, name="inside")

            def call(self, x):
                return self.lstm(x)

        own = Own()
        own(np.zeros(SHAPE))
        for model in (own, keras.Sequential([own, layers.LSTM(2)])):
            with pytest.raises(
                ValueError, match=r"inside is made .* class Own .*from_keras"
            ):
                with_initial_state(model, "trainable")
        model = model_of(every_layer)
        for where in ("none", ["first", "none"], lambda _: False):
            with pytest.raises(ValueError, match=r"first \(LSTM\), second \(GRU\)"):
                with_initial_state(model, "trainable", where)

    def test_a_subclass_of_lstm_is_not_replaced(self):
        class Own(layers.LSTM):
            pass

        model = keras.Sequential([keras.Input(SHAPE[1:]), Own(2), layers.Dense(1)])
        with pytest.raises(ValueError, match="which are: none"):
            with_initial_state(model)

    def test_in_a_new_process(self, tmp_path):
        adopted = with_initial_state(model_of(in_wrappers), 0.5)
        adopted.save(tmp_path / "adopted.keras")
        x = batch_for(adopted)
        np.save(tmp_path / "x.npy", x)
        script = """
import sys
import keras, keras_init_lstm, numpy as np
model = keras.models.load_model(sys.argv[1] + "/adopted.keras")
y = model(np.load(sys.argv[1] + "/x.npy"))
np.save(sys.argv[1] + "/y.npy", keras.ops.convert_to_numpy(y))
"""
        in_a_fresh_process(script, tmp_path)
        assert_same(np.load(tmp_path / "y.npy"), adopted(x))


METHODS = {
    "LSTM": InitStateLSTM.from_keras,
    "GRU": InitStateGRU.from_keras,
    "SimpleRNN": InitStateSimpleRNN.from_keras,
    "stacked": InitStateRNN.from_keras,
    "custom": InitStateRNN.from_keras,
}


@pytest.mark.parametrize("where", [None, "a", "both", "ours"])
def test_every_stream_continues(where):
    stateful = {"stateful": True, "return_sequences": True}
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH),
            layers.Bidirectional(layers.LSTM(3, **stateful), name="both"),
            layers.LSTM(3, name="a", **stateful),
            keras.Sequential([layers.GRU(3, name="b", **stateful)]),
            InitStateGRU(3, initial_state=0.5, name="ours", **stateful),
        ]
    )
    x = [normal(*SHAPE, seed=i) for i in range(3)]
    for batch in x[:2]:
        model.predict(batch, batch_size=BATCH, verbose=0)
    adopted = with_initial_state(model, "trainable", where=where)
    got = adopted.predict(x[2], batch_size=BATCH, verbose=0)
    assert_same(got, model.predict(x[2], batch_size=BATCH, verbose=0))


class TestFromKeras:
    @for_each_layer(["zeros"])
    def test_outputs_are_bit_identical(self, case):
        rnn = case.reference(case.layer(), activity_regularizer="l2", name="taken")
        rnn.cell.trainable = False
        # The custom cell has an initial state that is not zero.
        start = None if case.name == "custom" else "trainable"
        taken = METHODS[case.name](rnn, start)
        drops = case.arguments["dropout"] or case.arguments["recurrent_dropout"]
        for training in (False, True):
            if training and drops and BACKEND == "torch":
                break  # On PyTorch, Keras uses no seed for dropout.
            assert_same(
                taken(case.inputs, mask=case.mask, training=training),
                rnn(case.inputs, mask=case.mask, training=training),
            )
        owned = len(taken.state_units) if start else 0
        assert taken.name == "taken" and len(taken.trainable_variables) == owned
        assert len(taken.losses) == len(rnn.losses)
        assert not taken.cell.trainable

    def test_the_fused_loop_is_off(self):
        assert not InitStateLSTM.from_keras(layers.LSTM(2)).use_fused
        lstm = InitStateLSTM.from_keras(layers.LSTM(2), use_fused="auto")
        assert lstm.use_fused == "auto"
        assert InitStateLSTM.from_keras(lstm).use_fused == "auto"

    @pytest.mark.parametrize(
        ("layer", "method"),
        [
            (
                lambda **k: layers.GRU(2, reset_after=False, **k),
                InitStateGRU.from_keras,
            ),
            (
                lambda **k: layers.SimpleRNN(2, activation=lambda a: a / 2, **k),
                InitStateSimpleRNN.from_keras,
            ),
            (
                lambda **k: layers.RNN([UnregisteredCell(3), UnregisteredCell(2)], **k),
                InitStateRNN.from_keras,
            ),
        ],
    )
    def test_every_layer(self, layer, method):
        layer = layer(stateful=True)
        layer.trainable = False
        assert not method(layer, "trainable").built
        layer(X)
        taken = method(layer, "trainable")
        assert_same([taken(X), taken(X)], [layer(X), layer(X)])
        assert not taken.trainable_variables

    def test_arguments_that_get_config_omits(self):
        gru = layers.GRU(2, use_cudnn=False, implementation=1)
        gru.supports_masking = not gru.supports_masking
        taken = InitStateGRU.from_keras(gru, dropout=0.5)
        assert not taken.use_cudnn and taken.cell.implementation == 1
        assert taken.supports_masking == gru.supports_masking
        assert taken.dropout == 0.5
        assert InitStateLSTM.from_keras(layers.LSTM(2), use_fused="auto").use_fused

    def test_layers_of_this_package(self):
        start = [0.5, Sampled(0.2, 0.1, seed=1)]
        layer = InitStateLSTM(2, initial_state=start, stateful=True)
        x = np.ones(SHAPE)
        layer(x, training=True)
        layer.assign_initial_state([np.array([1.0, 2.0]), None])
        layer.reset_state()
        taken = InitStateLSTM.from_keras(layer)
        assert_same(taken.states[0], layer.states[0])
        taken.assign_initial_state([np.array([3.0, 4.0]), None])
        assert (to_numpy(taken.states[0]) == [3, 4]).all()  # The rows are fresh.
        taken.assign_initial_state([np.array([1.0, 2.0]), None])
        assert_same(taken(x, training=True), layer(x, training=True))

    @pytest.mark.parametrize("built", [False, True])
    @pytest.mark.parametrize("cls", [layers.LSTM, InitStateLSTM])
    def test_a_replaced_cell_raises(self, built, cls):
        class Doubling(layers.LSTMCell):
            def call(self, inputs, states, training=False):
                h, (_, c) = super().call(inputs, states, training)
                return 2 * h, [2 * h, c]

        layer = cls(2)
        layer.cell = Doubling(2)
        if built:
            layer.build(SHAPE)
        with pytest.raises(ValueError, match="cell LSTMCell.*Received: .*Doubling"):
            InitStateLSTM.from_keras(layer)
        if built:
            with pytest.raises(ValueError, match="can't be copied: it holds"):
                copy_layer(layer)

    @pytest.mark.parametrize(
        ("cls", "name"),
        [(InitStateLSTM, "LSTM"), (InitStateGRU, "GRU"), (InitStateRNN, "RNN")],
    )
    @pytest.mark.parametrize(
        "given",
        [
            layers.LSTM(2),
            layers.GRU(2),
            layers.RNN(layers.LSTMCell(2)),
            layers.Dense(2),
            InitStateSimpleRNN(2),
            "lstm",
        ],
        ids=str,
    )
    def test_another_object_raises(self, cls, name, given):
        if type(given).__name__ == name:
            assert cls.from_keras(given).units == 2 if name != "RNN" else True
            return
        message = f"`layer` must be a layer `{name}` of Keras 3.*Received"
        with pytest.raises(ValueError, match=message):
            cls.from_keras(given)

    def test_unbuilt_layers_of_this_package(self):
        layer = InitStateLSTM(2, initial_state="trainable", stateful=True)
        taken = InitStateLSTM.from_keras(layer)
        assert_same(taken.get_initial_state(1), [np.zeros((1, 2), "float32")] * 2)
        layer.assign_initial_state([np.array([1.0, 2.0]), np.array([3.0, 4.0])])
        states = [np.full((4, 2), 5.0, "float32"), None]
        layer.reset_states(states)
        taken = InitStateLSTM.from_keras(layer)
        assert not taken.built
        assert_same(taken.get_initial_state(1), layer.get_initial_state(1))
        assert_same(taken.states, layer.states)

    def test_a_stateless_layer_takes_over_no_stream(self):
        layer = InitStateLSTM(2, stateful=True)
        layer(X)
        taken = InitStateLSTM.from_keras(layer, stateful=False)
        assert taken.states is None
        assert taken(X[:1]).shape == (1, 2)

    def test_zeros_of_a_stateful_keras_layer_become_the_initial_state(self):
        lstm = layers.LSTM(2, stateful=True)
        lstm.build(SHAPE)
        taken = InitStateLSTM.from_keras(lstm, 0.5)
        assert (to_numpy(taken.states[0]) == 0.5).all()

    def test_an_initial_state_of_an_unregistered_class(self):
        class Ones(InitialState):
            def call(self, batch_size, training=False):
                return keras.ops.ones((batch_size, self.units))

        layer = InitStateLSTM(2, initial_state=Ones())
        taken = InitStateLSTM.from_keras(layer)
        assert type(taken.h0) is Ones and taken.h0 is not layer.h0

    def test_of_this_package_with_other_initial_states(self):
        layer = InitStateLSTM(2, initial_state="trainable")
        layer.assign_initial_state([np.ones(2), np.ones(2)])
        taken = InitStateLSTM.from_keras(layer, "trainable")
        assert_same(taken.get_initial_state(1), [np.zeros((1, 2), "float32")] * 2)

    def test_the_outputs_are_equal(self):
        lstm = layers.LSTM(2)
        want = lstm(X)
        taken = InitStateLSTM.from_keras(lstm, "trainable")
        assert type(taken) is InitStateLSTM and taken.use_fused is False
        assert_same(taken(X), want)

    def test_a_frozen_layer_may_be_made_trainable(self):
        lstm = layers.LSTM(2)
        lstm(X)
        lstm.trainable = False
        assert InitStateLSTM.from_keras(lstm, 0.5).trainable_weights == []
        taken = InitStateLSTM.from_keras(lstm, "trainable", trainable=True)
        assert len(taken.trainable_weights) == 5

    def test_a_repeated_cell(self):
        cell = layers.LSTMCell(FEATURES)
        rnn = layers.RNN([cell, cell, layers.GRUCell(2)])
        want = rnn(X)
        taken = InitStateRNN.from_keras(rnn, "trainable")
        assert taken.cell.cells[0] is taken.cell.cells[1] is not cell
        assert len(taken.weights) == 3 + 3 + 5
        assert_same(taken(X), want)

    @pytest.mark.parametrize("method", ["call", "inner_loop", "get_initial_state"])
    def test_a_subclass_that_computes_something_else_raises(self, method):
        def own(self, *args, **kwargs):
            return 2 * getattr(layers.LSTM, method)(self, *args, **kwargs)

        for base in (layers.LSTM, InitStateLSTM):
            subclass = type("Own", (base,), {method: own})
            with pytest.raises(ValueError, match="subclass Own, whose custom"):
                InitStateLSTM.from_keras(subclass(2))
            if base is InitStateLSTM:
                assert isinstance(subclass.from_keras(subclass(2)), subclass)

    def test_a_subclass_with_a_custom_constructor(self):
        class Named(layers.LSTM):
            def __init__(self, units, **kwargs):
                super().__init__(units, **{"name": "mine", **kwargs})

        lstm = Named(2)
        assert_same(InitStateLSTM.from_keras(lstm, "trainable")(X).shape, lstm(X).shape)
