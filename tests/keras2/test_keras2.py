"""Files of Keras 2, which are loaded, and objects of Keras 2, which raise errors."""

import json
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers
from tf_keras.src.layers.rnn import gru, lstm

from keras2_models import KINDS, REFUSED, batch_of, called, sequential, tokens
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateLSTM,
    InitStateRNN,
    Sampled,
    Trainable,
    keras2,
    with_initial_state,
)
from keras_init_lstm.streams import reset_states
from models import SHAPE, TIMESTEPS, X
from oracles import assert_same

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(
        tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14),
        reason="older ones do otherwise with masks, and are refused",
    ),
]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file")
        # Keras 3 warns of layers for which Keras 2 did not.
        warnings.filterwarnings("ignore", ".* does not support masking", UserWarning)
        yield


@pytest.fixture(autouse=True)
def plain_loops(monkeypatch):
    """Saves time: Keras 2 would trace a function for cuDNN and gradients per layer."""
    monkeypatch.setattr(lstm, "lstm_with_backend_selection", lstm.standard_lstm)
    monkeypatch.setattr(gru, "gru_with_backend_selection", gru.standard_gru)


def with_drawn_weights(model):
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if weight.trainable or "moving" in weight.name:
            drawn = rng.normal(0, 0.5, weight.shape)
            weight.assign(np.abs(drawn) if "variance" in weight.name else drawn)
    return model


class TestFiles:
    @pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))
    def test_predictions_equal_keras_2(self, make, tmp_path):
        old = with_drawn_weights(make())
        old.compile("adam", "mse", metrics=["mae"])
        x = batch_of(old)
        models = []
        for suffix in ("h5", "keras"):
            path = tmp_path / f"old.{suffix}"
            old.save(path)
            content = path.read_bytes()
            models.append(keras2.load_model(path))
            assert path.read_bytes() == content
        model = models[0]
        assert len(model.trainable_weights) == len(old.trainable_weights)
        models.append(with_initial_state(model, "trainable"))
        layers = models[-1]._flatten_layers()
        assert any(isinstance(layer, InitStateRNN) for layer in layers)
        model.save(tmp_path / "new.keras")
        models.append(keras.models.load_model(tmp_path / "new.keras"))
        expected = old(x)
        tolerance = 1e-3 if "float16" in str(old.get_config()) else 1e-6
        for loaded in models:
            predicted = loaded(x)
            tf.nest.assert_same_structure(predicted, expected)
            assert_same(predicted, expected, tolerance)

    def test_copies_and_their_files_pass_masks_on(self, tmp_path):
        """A layer of Keras 3.16 does not pass its mask on."""
        lstm = layers.LSTM(2, return_sequences=True)
        old = with_drawn_weights(sequential(layers.Masking(), lstm, layers.LSTM(2)))
        x = np.where(np.arange(TIMESTEPS)[:, None] < 2, X, 0).astype("float32")
        old.save(tmp_path / "old.keras")
        model = keras2.load_model(tmp_path / "old.keras")
        adopted = with_initial_state(model, "trainable")
        assert type(adopted.layers[1]).__name__ == "InitStateLSTM"
        again = with_initial_state(adopted, "fixed", where=adopted.layers[1].name)
        for each in (model, adopted, again):
            assert_same(each(x), old(x), 1e-6)
            each.save(tmp_path / "new.keras")
            loaded = keras.models.load_model(tmp_path / "new.keras")
            assert_same(loaded(x), old(x), 1e-6)

    def test_a_fused_loop_has_the_hard_sigmoid_of_keras_2(self, tmp_path):
        """It is the default of an LSTM before Keras 2.3."""
        lstm = layers.LSTM(3, recurrent_activation="hard_sigmoid")
        old = with_drawn_weights(sequential(layers.RepeatVector(12), lstm, shape=(4,)))
        old.save(tmp_path / "old.h5")
        model = with_initial_state(keras2.load_model(tmp_path / "old.h5"))
        (layer,) = (each for each in model.layers if isinstance(each, InitStateRNN))
        layer.use_fused = True
        x = 5 * np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        assert_same(model(x), old(x), 1e-6)

    @pytest.mark.parametrize("version", ["2.1.6-tf", "2.2.4"])
    def test_files_of_early_versions(self, version, tmp_path):
        """They have no input layers, modules and `reset_after`, and are always HDF5."""

        def early(config):
            if isinstance(config, list):
                return [early(part) for part in config]
            if not isinstance(config, dict):
                return config
            unknown = ("module", "registered_name", "reset_after", "time_major")
            config = {k: early(v) for k, v in config.items() if k not in unknown}
            if config.get("class_name") == "Functional":
                config["class_name"] = "Model"
            if config.get("class_name") == "Sequential":
                config["config"] = config["config"]["layers"][1:]
            return config

        inner = tf_keras.Sequential(
            [
                layers.Embedding(5, 3, input_length=TIMESTEPS),
                layers.LSTM(3, recurrent_activation="hard_sigmoid"),
                layers.RepeatVector(4),
                layers.Bidirectional(layers.GRU(2, reset_after=False)),
            ]
        )
        outer = called(lambda x: layers.Dense(2)(inner(x))[..., 0], tokens())
        for old in map(with_drawn_weights, (inner, outer)):
            old.save(tmp_path / "old.keras", save_format="h5")
            with h5py.File(tmp_path / "old.keras", "r+") as file:
                config = early(json.loads(file.attrs["model_config"]))
                file.attrs["model_config"] = json.dumps(config).encode()
                file.attrs["keras_version"] = version.encode()
            x = batch_of(old)
            assert_same(keras2.load_model(tmp_path / "old.keras")(x), old(x), 1e-6)

    @pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=list(REFUSED))
    def test_unsupported_layers(self, make, words, tmp_path):
        old = make()
        for suffix in ("h5", "keras"):
            old.save(tmp_path / f"old.{suffix}")
            with pytest.raises(ValueError, match=words):
                keras2.load_model(tmp_path / f"old.{suffix}")

    def test_other_files(self, tmp_path):
        old = sequential(layers.LSTM(2))
        new = keras.Sequential([keras.Input(SHAPE[1:]), keras.layers.LSTM(2)])
        whole = "must be the path of a .h5 or .keras file with a whole model of Keras 2"
        for name, write, words in (
            ("old.weights.h5", old.save_weights, "weights alone.*`load_weights"),
            ("weights.h5", old.save_weights, "weights alone.*`load_weights"),
            ("folder", old.save, "a folder.*SavedModel.*tf_keras.*save it as .h5"),
            ("new.keras", new.save, "of Keras 3.*`keras.models.load_model"),
            ("new.h5", new.save, "of Keras 3.*`keras.models.load_model"),
            ("text.h5", lambda path: path.write_text("LSTM"), "another format"),
            ("nothing.h5", str, "does not exist"),
            (
                "other.keras",
                lambda path: zipfile.ZipFile(path, "w").close(),
                "an archive without a model",
            ),
        ):
            path = tmp_path / name
            write(path)
            with pytest.raises(ValueError, match=f"`path` {whole}.*{name}.*{words}"):
                keras2.load_model(path)
            if "weights" in name:  # Follow the advice in the error.
                loaded = keras.models.clone_model(new)
                loaded.load_weights(path)
                assert_same(loaded(X), old(X), 1e-6)
        with pytest.raises(ValueError, match="`compile` must be False"):
            keras2.load_model(tmp_path / "old.h5", compile=True)

    def test_custom_classes(self, tmp_path):
        @tf_keras.utils.register_keras_serializable(package="users")
        class Doubled(layers.Layer):
            def call(self, x):
                return 2.0 * x

        class DoubledOfKeras3(keras.layers.Layer):
            def call(self, x):
                return 2.0 * x

        old = sequential(Doubled(), layers.LSTM(2))
        for suffix in ("h5", "keras"):
            path = tmp_path / f"old.{suffix}"
            old.save(path)
            with pytest.raises(ValueError, match="doubled .*'users>Doubled': ..."):
                keras2.load_model(path)
            given = {"users>Doubled": DoubledOfKeras3}
            assert_same(keras2.load_model(path, custom_objects=given)(X), old(X), 1e-6)


class TestLegacyObjects:
    """Objects of `tf_keras` look like objects of Keras 3, but raise an error."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: tf_keras.initializers.Zeros(),
            lambda: tf_keras.layers.LSTM(3),
            lambda: tf_keras.Input((3,)),
        ],
        ids=["initializer", "layer", "tensor"],
    )
    def test_as_an_initial_state(self, make):
        legacy = make()
        for use in (
            lambda: InitStateLSTM(3, initial_state=legacy),
            lambda: Fixed(legacy),
            lambda: Trainable(legacy),
            lambda: Sampled(legacy),
        ):
            with pytest.raises(ValueError, match="legacy package tf_keras"):
                use()

    def test_as_inputs(self):
        states = [tf_keras.Input((2,)), tf_keras.Input((2,))]
        for call in (
            lambda: InitStateLSTM(2)(tf_keras.Input((3, 2))),
            lambda: InitStateLSTM(2)(X[:1], initial_state=states),
            lambda: reset_states(tf_keras.Sequential()),
        ):
            with pytest.raises(ValueError, match="legacy package tf_keras"):
                call()

    def test_as_an_encoder(self):
        with pytest.raises(ValueError, match="`encoder` must be a layer.*Received"):
            Conditional(tf_keras.layers.Dense(2))

    def test_as_a_model(self):
        legacy = tf_keras.Sequential([tf_keras.layers.LSTM(2)])
        with pytest.raises(ValueError, match=r"tf_keras.*keras2.load_model"):
            with_initial_state(legacy, "trainable")

    def test_as_a_layer(self):
        with pytest.raises(ValueError, match="must be .* `LSTM`.*tf_keras"):
            InitStateLSTM.from_keras(tf_keras.layers.LSTM(2))


def test_an_older_keras_raises(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.13.2")
    with pytest.raises(ValueError, match=r"needs Keras 3\.14.*Received: Keras 3\.13"):
        keras2.load_model("model.h5")
