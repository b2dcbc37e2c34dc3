"""The layer in models, as users build, train, save and load them."""

import copy
import json
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from keras import layers

from explicit_state import ExplicitState
from keras_init_lstm import Fixed, InitStateLSTM, ResetStates, Sampled, Trainable
from properties import LAYERS, assert_same, cases, flat

BATCH, TIMESTEPS, FEATURES, UNITS = 4, 5, 3, 2
KINDS = {
    "zeros": None,
    "fixed": [Fixed([0.5, -0.25]), 0.125],
    "sampled": Sampled(0.5, 0.25, seed=1),
    "trainable": [Trainable([0.5, -0.25], regularizer="l2"), Trainable("ones")],
}


def inputs_of(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def weights_of(units):
    """Arguments that start every layer of a model from the same weights."""
    return {
        "kernel_initializer": keras.initializers.GlorotUniform(seed=units),
        "recurrent_initializer": keras.initializers.Orthogonal(seed=units),
    }


def owning(units, **kwargs):
    return InitStateLSTM(
        units, initial_state=[0.25, Trainable(-0.5)], **weights_of(units), **kwargs
    )


def by_hand(units, **kwargs):
    h0, c0 = keras.initializers.Constant(0.25), keras.initializers.Constant(-0.5)
    return ExplicitState(units, h0, c0, fixed=["h0"], **weights_of(units), **kwargs)


def dense():
    return layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(seed=3))


def sequential(rnn):
    return keras.Sequential([keras.Input((None, FEATURES)), rnn(UNITS), dense()])


def sequential_without_input(rnn):
    return keras.Sequential([rnn(UNITS), dense()])


def functional(rnn):
    x = keras.Input((TIMESTEPS, FEATURES))
    return keras.Model(x, dense()(rnn(UNITS)(x)))


def subclassed(rnn):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.rnn = rnn(UNITS)
            self.dense = dense()

        def call(self, x, training=False):
            return self.dense(self.rnn(x, training=training))

    return Model()


def stack(rnn):
    return keras.Sequential(
        [rnn(4, return_sequences=True), rnn(3, return_sequences=True), rnn(2), dense()]
    )


def shared(rnn):
    layer = rnn(FEATURES, return_sequences=True)
    x = keras.Input((None, FEATURES))
    return keras.Model(x, dense()(layers.GlobalMaxPool1D()(layer(layer(x) + x))))


def nested(rnn):
    inner = keras.Sequential(
        [keras.Input((None, FEATURES)), rnn(FEATURES, return_sequences=True)]
    )
    x = keras.Input((None, FEATURES))
    return keras.Model(x, functional(rnn)(inner(x)))


def masked(rnn):
    return keras.Sequential(
        [layers.Masking(0.0), rnn(UNITS, return_sequences=True), rnn(UNITS), dense()]
    )


ARCHITECTURES = [
    sequential,
    sequential_without_input,
    functional,
    subclassed,
    stack,
    shared,
    nested,
    masked,
]


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // BATCH

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], self.y[part]


DATA = {
    "arrays": lambda x, y: {"x": x, "y": y, "batch_size": BATCH, "shuffle": False},
    "tf.data": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    },
    "PyDataset": lambda x, y: {"x": Sequence(x, y), "shuffle": False},
}


def trained(model, data="arrays", **compile_arguments):
    """All that a user gets: losses in training and evaluation, and predictions."""
    x, y = inputs_of(3 * BATCH, TIMESTEPS, FEATURES), inputs_of(3 * BATCH, 1)
    x[0, 2:], x[1, :3], x[2] = 0, 0, 0
    model.compile(keras.optimizers.SGD(0.01), "mse", **compile_arguments)
    history = model.fit(**DATA[data](x, y), epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    batches = DATA[data](x, y)
    batches.pop("shuffle", None)
    loss = model.evaluate(**batches, verbose=0)
    batches.pop("y", None)
    return [np.array(history), np.array(loss), model.predict(**batches, verbose=0)]


class TestTraining:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_in_every_architecture(self, architecture):
        got = trained(architecture(owning))
        assert_same(got, trained(architecture(by_hand)), tolerance=1e-5)

    @pytest.mark.parametrize("data", DATA)
    @pytest.mark.parametrize(
        "mode", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str
    )
    def test_with_every_source_of_data_and_in_every_mode(self, data, mode):
        got = trained(functional(owning), data, **mode)
        assert_same(got, trained(functional(by_hand), data, **mode), tolerance=1e-5)

    def test_in_a_loop_of_ones_own(self):
        model, reference = functional(owning), functional(by_hand)
        x, y = inputs_of(BATCH, TIMESTEPS, FEATURES), inputs_of(BATCH, 1)
        losses = []
        for each in (model, reference):
            optimizer = keras.optimizers.SGD(0.1)
            optimizer.build(each.trainable_variables)

            @tf.function
            def step(each=each, optimizer=optimizer):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((each(x, training=True) - y) ** 2)
                gradients = tape.gradient(loss, each.trainable_variables)
                optimizer.apply(gradients, each.trainable_variables)
                return loss

            losses.append([float(step()) for _ in range(3)])
        np.testing.assert_allclose(*losses, rtol=1e-5)
        learned = model.layers[1].initial_state[1].value
        assert (learned.numpy() != -0.5).all()
        assert_same(learned, reference.layers[1].c0, tolerance=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=str)
    def test_every_kind_in_fit(self, kind, mode):
        model = functional(
            lambda units: InitStateLSTM(units, initial_state=KINDS[kind])
        )
        before = [v.numpy() for v in model.layers[1].weights]
        trained(model, **mode)
        after = [v.numpy() for v in model.layers[1].weights]
        moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
        assert moved[:3] == [True] * 3
        assert set(moved[3:]) <= {kind == "trainable"}

    def test_a_learned_distribution_in_fit(self):
        entry = Sampled(0.5, 0.25, trainable=True, seed=1)
        model = functional(lambda units: InitStateLSTM(units, initial_state=entry))
        trained(model)
        for state in model.layers[1].initial_state:
            assert (state.mean.numpy() != 0.5).all()
            assert (state.stddev.numpy() != 0.25).all()

    def test_a_stateful_model_in_fit(self):
        # With a learning rate only for the states: the loss of each epoch is then
        # that of the stream from the states learned so far.
        model = keras.Sequential(
            [
                keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH),
                InitStateLSTM(UNITS, initial_state="trainable", stateful=True),
            ]
        )
        model.layers[0].cell.trainable = False
        model.compile(keras.optimizers.SGD(1.0), "mse")
        x, y = inputs_of(2 * BATCH, TIMESTEPS, FEATURES), np.ones((2 * BATCH, UNITS))
        losses = model.fit(
            x,
            y,
            batch_size=BATCH,
            shuffle=False,
            epochs=20,
            verbose=0,
            callbacks=[ResetStates()],
        ).history["loss"]
        assert losses[-1] < losses[0]
        assert (model.layers[0].initial_state[0].value.numpy() != 0).all()


class TestWrappers:
    @pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
    @pytest.mark.parametrize("return_sequences", [False, True])
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_bidirectional(self, merge_mode, return_sequences, with_mask):
        arguments = {"return_sequences": return_sequences}
        layer = layers.Bidirectional(
            InitStateLSTM(UNITS, initial_state="trainable", **arguments), merge_mode
        )
        reference = layers.Bidirectional(layers.LSTM(UNITS, **arguments), merge_mode)
        x = inputs_of(BATCH, TIMESTEPS, FEATURES)
        mask = np.arange(TIMESTEPS) < np.arange(BATCH)[:, None] if with_mask else None
        layer(x), reference(x)
        states = inputs_of(4, UNITS)
        layer.forward_layer.assign_initial_state(list(states[:2]))
        layer.backward_layer.assign_initial_state(list(states[2:]))
        for direction in ("forward_layer", "backward_layer"):
            owner, lstm = getattr(layer, direction), getattr(reference, direction)
            lstm.set_weights(owner.cell.get_weights())
        assert len(layer.trainable_weights) == 10
        tiled = [np.tile(s, (BATCH, 1)) for s in states]
        assert_same(layer(x, mask=mask), reference(x, initial_state=tiled, mask=mask))
        explicit = list(inputs_of(4, BATCH, UNITS))
        assert_same(
            layer(x, initial_state=explicit, mask=mask),
            reference(x, initial_state=explicit, mask=mask),
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_time_distributed(self, kind):
        layer = layers.TimeDistributed(InitStateLSTM(UNITS, initial_state=KINDS[kind]))
        x = inputs_of(BATCH, 3, TIMESTEPS, FEATURES)
        outputs = layer(x)
        slices = [layer.layer(x[:, i]) for i in range(3)]
        assert_same(outputs, np.stack(flat(slices), axis=1))
        assert layer(x, training=True).shape == (BATCH, 3, UNITS)


class TestSituations:
    """What people ask for, as the README shows it."""

    x = inputs_of(BATCH, TIMESTEPS, FEATURES)

    def lstm(self, layer, **kwargs):
        lstm = layers.LSTM(UNITS, **kwargs)
        lstm.build(self.x.shape)
        lstm.set_weights(layer.cell.get_weights())
        return lstm

    def test_zeros_passed_explicitly(self):
        layer = InitStateLSTM(UNITS, initial_state=["zeros", "zeros"])
        got = layer(self.x)
        zeros = np.zeros((BATCH, UNITS))
        lstm = self.lstm(layer)
        assert_same(got, lstm(self.x))
        assert_same(got, lstm(self.x, initial_state=[zeros, zeros]))
        assert_same(got, layer(self.x, initial_state=[zeros, zeros]))

    def test_states_drawn_from_a_normal_distribution_each(self):
        layer = InitStateLSTM(
            UNITS, initial_state=[Sampled(0.5, 0.1, seed=1), Sampled(0.2, 0.3, seed=1)]
        )
        h, c = layer.get_initial_state(10_000, training=True)
        # Standard errors are at most 0.3 / sqrt(20,000) = 0.002; this is 6 of them.
        moments = [np.mean(h), np.std(h), np.mean(c), np.std(c)]
        np.testing.assert_allclose(moments, [0.5, 0.1, 0.2, 0.3], atol=0.013)
        assert (layer(self.x, training=True).numpy() != layer(self.x).numpy()).all()

    def test_a_stateful_layer_given_its_states_before_its_first_call(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        states = list(inputs_of(2, BATCH, UNITS))
        layer.reset_states(states=states)
        assert_same(layer.states, states)
        for _ in range(2):
            got = layer(self.x)
            lstm = self.lstm(layer, return_state=True)
            want, *states = lstm(self.x, initial_state=states)
            assert_same(got, want)
            assert_same(layer.states, states)

    def test_final_states_of_an_encoder_start_a_decoder(self):
        source, target = (keras.Input((None, FEATURES)) for _ in range(2))
        encoder = layers.LSTM(UNITS, return_state=True)
        decoder = InitStateLSTM(UNITS, initial_state="trainable")
        _, h, c = encoder(source)
        model = keras.Model([source, target], decoder(target, initial_state=[h, c]))
        got = model.predict([self.x, self.x[:, ::-1]], verbose=0)
        _, h, c = encoder(self.x)
        want = self.lstm(decoder)(self.x[:, ::-1], initial_state=[h, c])
        assert_same(got, want, tolerance=1e-6)
        other = InitStateLSTM(UNITS, initial_state="trainable")
        other.assign_initial_state([h, c])
        tiled = [np.tile(np.mean(s, axis=0), (BATCH, 1)) for s in (h, c)]
        got = other(self.x)
        assert_same(got, self.lstm(other)(self.x, initial_state=tiled), tolerance=1e-6)


class TestShapes:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("training", [False, True])
    def test_traced_once_for_every_batch_and_time(self, kind, training):
        layer = InitStateLSTM(UNITS, initial_state=KINDS[kind], return_sequences=True)
        layer.build((None, None, FEATURES))
        traces = []

        @tf.function(input_signature=[tf.TensorSpec((None, None, FEATURES))])
        def call(x):
            traces.append(x.shape)
            return layer(x, training=training)

        for batch in (1, 2, 7):
            for timesteps in (1, 2, 9):
                x = inputs_of(batch, timesteps, FEATURES)
                outputs = call(x)
                assert outputs.shape == (batch, timesteps, UNITS)
                if not (training and kind == "sampled"):
                    assert_same(outputs, layer(x), tolerance=1e-6)
        assert len(traces) == 1


def models_to_save():
    """A model for each way to start, each with a wrapper, a policy or a stream."""
    x = inputs_of(BATCH, TIMESTEPS, FEATURES)

    def model(*layers_, batch_size=None):
        shape = (TIMESTEPS, FEATURES)
        return keras.Sequential([keras.Input(shape, batch_size), *layers_])

    def rnn(kind, **kwargs):
        return InitStateLSTM(UNITS, initial_state=KINDS[kind], **kwargs)

    yield model(rnn("zeros", return_sequences=True), rnn("sampled")), x
    yield model(layers.Bidirectional(rnn("trainable")), layers.Dense(1)), x
    yield model(rnn("fixed", dtype="float64", activation="relu")), x
    yield model(rnn("trainable", dtype="mixed_bfloat16")), x
    yield model(rnn("trainable", stateful=True), batch_size=BATCH), x
    i, h = keras.Input((TIMESTEPS, FEATURES)), keras.Input((UNITS,))
    functional = keras.Model([i, h], rnn("trainable")(i, initial_state=[h, None]))
    yield functional, [x, inputs_of(BATCH, UNITS)]


class TestSaving:
    @settings(max_examples=30)
    @given(cases(layers=LAYERS))
    def test_a_saved_file_gives_the_same_layer(self, tmp_path_factory, case):
        folder = tmp_path_factory.mktemp("saved")
        layer = case.layer()
        for weight in layer.weights:
            weight.assign(np.abs(np.random.normal(size=weight.shape)))
        model = keras.Sequential([keras.Input(case.inputs.shape[1:]), layer])
        model.save(folder / "model.keras")
        loaded = keras.models.load_model(folder / "model.keras")
        configs = [json.dumps(each.get_config()) for each in (loaded.layers[0], layer)]
        assert configs[0] == configs[1]
        clone = keras.models.clone_model(model)
        model.save_weights(folder / "model.weights.h5")
        clone.load_weights(folder / "model.weights.h5")
        want = layer(case.inputs, mask=case.mask)
        for each in (loaded, clone):
            for a, b in zip(layer.weights, each.layers[0].weights, strict=True):
                assert a.path.split("/")[-2:] == b.path.split("/")[-2:]
                assert a.numpy().tobytes() == b.numpy().tobytes()
            assert_same(each.layers[0](case.inputs, mask=case.mask), want)

    def test_in_a_fresh_process_without_custom_objects(self, tmp_path):
        for index, (model, x) in enumerate(models_to_save()):
            folder = tmp_path / str(index)
            folder.mkdir()
            inputs = x if isinstance(x, list) else [x]
            np.savez(folder / "inputs.npz", *inputs)
            for weight in model.weights:
                weight.assign(np.random.normal(size=weight.shape))
            model.save(folder / "model.keras")
            model.save_weights(folder / "model.weights.h5")
            (folder / "model.json").write_text(model.to_json())
            want = model(x).numpy().astype("float64")
            np.save(folder / "outputs.npy", want)
        script = """
import pathlib, sys
import keras, keras_init_lstm, numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    x = list(np.load(folder / "inputs.npz").values())
    want = np.load(folder / "outputs.npy")
    loaded = keras.models.load_model(folder / "model.keras")
    restored = keras.models.model_from_json((folder / "model.json").read_text())
    restored.load_weights(folder / "model.weights.h5")
    for model in (loaded, restored):
        got = model(x if len(x) > 1 else x[0]).numpy().astype("float64")
        np.testing.assert_array_equal(got, want)
    print(folder.name)
"""
        folders = sorted(tmp_path.iterdir())
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, folders)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [f.name for f in folders], done.stderr

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("built", [False, True])
    def test_copies(self, kind, built, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=KINDS[kind])
        model = keras.Sequential([layer])
        x = inputs_of(BATCH, TIMESTEPS, FEATURES)
        if built:
            want = model(x)
        model.save(tmp_path / "model.keras")
        for each in (
            keras.models.load_model(tmp_path / "model.keras"),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            keras.Sequential([copy.deepcopy(layer)]),
        ):
            got = each(x)
            assert got.shape == (BATCH, UNITS)
            if built and each.layers[0].name == layer.name:
                each.set_weights(model.get_weights())
                assert_same(each(x), want)

    def test_a_weights_file_knows_the_states_by_name(self, tmp_path):
        def model(h, c):
            layer = InitStateLSTM(UNITS, initial_state=[h, c])
            return keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), layer])

        model(Trainable("ones"), 5.0).save_weights(tmp_path / "model.weights.h5")
        other = model(7.0, Trainable())
        other.load_weights(tmp_path / "model.weights.h5")
        states = other.layers[0].get_initial_state(1)
        assert_same(states, [np.ones((1, UNITS), "f"), np.full((1, UNITS), 5, "f")])
        for crossed in ((None, 7.0), (7.0, "sampled"), ("sampled", 7.0)):
            model(7.0, None).save_weights(tmp_path / "model.weights.h5")
            other = model(*crossed)
            with pytest.raises(ValueError, match="could not be loaded|expected"):
                other.load_weights(tmp_path / "model.weights.h5")

    @pytest.mark.parametrize("stateful", [False, True])
    def test_a_checkpoint_of_tensorflow_holds_every_state(self, tmp_path, stateful):
        def new():
            return keras.Sequential(
                [
                    keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH),
                    InitStateLSTM(UNITS, initial_state="trainable", stateful=stateful),
                ]
            )

        model, other = new(), new()
        for weight in model.weights:
            weight.assign(np.random.normal(size=weight.shape))
        x = inputs_of(BATCH, TIMESTEPS, FEATURES)
        model(x)
        path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
        tf.train.Checkpoint(model=other).restore(path).assert_consumed()
        assert_same(other.get_weights(), model.get_weights())
        assert_same(other(x), model(x))

    def test_a_loaded_model_goes_on_with_the_random_stream(self, tmp_path):
        model, x = next(models_to_save())
        model(x, training=True)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        restored = keras.models.clone_model(model)
        restored.load_weights(tmp_path / "model.weights.h5")
        want = model(x, training=True)
        assert_same(loaded(x, training=True), want)
        assert_same(restored(x, training=True), want)
        assert (model(x, training=True).numpy() != want.numpy()).any()

    @pytest.mark.parametrize("stateful", [False, True])
    def test_a_run_interrupted_and_resumed_is_one_that_was_not(
        self, tmp_path, stateful
    ):
        x, y = inputs_of(2 * BATCH, TIMESTEPS, FEATURES), inputs_of(2 * BATCH, UNITS)

        class Interrupt(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 2:
                    raise KeyboardInterrupt

        def run(*callbacks):
            entry = Sampled(trainable=True, distribution="uniform")
            model = keras.Sequential(
                [
                    keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH),
                    InitStateLSTM(UNITS, initial_state=entry, stateful=stateful),
                ]
            )
            model.compile("adam", "mse")
            if callbacks:
                model.load_weights(tmp_path / "start.weights.h5")
            else:
                model.save_weights(tmp_path / "start.weights.h5")
            model.fit(
                x,
                y,
                batch_size=BATCH,
                epochs=4,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, ResetStates()],
            )
            return model

        unbroken = run()
        backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        with pytest.raises(KeyboardInterrupt):
            run(*backup, Interrupt())
        resumed = run(*backup)
        assert_same(resumed.get_weights(), unbroken.get_weights())

    def test_a_weights_file_of_an_lstm_is_refused_and_not_half_loaded(self, tmp_path):
        lstm = functional(lambda units: layers.LSTM(units))
        lstm.save_weights(tmp_path / "lstm.weights.h5")
        model = functional(InitStateLSTM)
        with pytest.raises(ValueError, match="could not be loaded"):
            model.load_weights(tmp_path / "lstm.weights.h5")

    def test_export(self, tmp_path):
        for model, x in models_to_save():
            if not isinstance(x, list):
                want = model(x)
                for layer in model.layers:
                    if isinstance(layer, InitStateLSTM):
                        layer.reset_state()
                model.export(tmp_path / "model", verbose=False)
                exported = tf.saved_model.load(str(tmp_path / "model"))
                assert_same(exported.serve(x), want, tolerance=1e-6)

    def test_a_saved_model_carries_its_stream(self, tmp_path):
        *_, (model, x), _ = models_to_save()
        reference = copy.deepcopy(model)
        reference.set_weights(model.get_weights())
        model.layers[0].reset_state()
        call = tf.function(model, input_signature=[tf.TensorSpec(x.shape)])
        tf.saved_model.save(
            model, str(tmp_path), signatures=call.get_concrete_function()
        )
        loaded = tf.saved_model.load(str(tmp_path))
        for _ in range(2):
            got = loaded.signatures["serving_default"](tf.constant(x))
            assert_same(got, reference(x), tolerance=1e-6)
