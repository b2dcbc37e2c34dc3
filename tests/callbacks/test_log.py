"""The logs of initial states in training, for TensorBoard."""

import os
import pathlib
import sys
import warnings

import keras
import numpy as np
import pytest

from backends import tf
from keras_init_lstm import Fixed, InitStateLSTM
from keras_init_lstm.callbacks import LogInitialState
from models import BATCH, FEATURES, UNITS, PerRow, X, sampled
from oracles import flat

pytestmark = pytest.mark.tensorflow


def events(folder):
    """The logged values, `{tag: {step: array}}`. Each step must be there once."""
    logged = {}
    for path in sorted(pathlib.Path(folder).glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                steps = logged.setdefault(value.tag, {})
                assert event.step not in steps
                steps[event.step] = tf.make_ndarray(value.tensor)
    return logged


def fit(model, *callbacks, epochs=2, **kwargs):
    model.compile("sgd", "mse")
    y = np.ones((BATCH, UNITS))
    model.fit(X, y, epochs=epochs, verbose=0, callbacks=[*callbacks], **kwargs)


def small_model(**kwargs):
    layer = InitStateLSTM(UNITS, name="rnn", **{"initial_state": "trainable", **kwargs})
    return keras.Sequential([keras.Input((None, FEATURES)), layer], name="model")


class Recorder(keras.callbacks.Callback):
    """Records the values of variables at each step."""

    def __init__(self, *variables):
        super().__init__()
        self.variables, self.seen = variables, {}

    def record(self, step):
        self.seen[step] = [v.astype("float64") for v in flat(self.variables)]

    def on_train_begin(self, logs=None):
        self.record(0)

    def on_epoch_end(self, epoch, logs=None):
        self.record(epoch + 1)


class TestLog:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16"])
    def test_every_owned_value_of_a_nested_model(self, dtype, tmp_path):
        def layer(name, *entries):
            return InitStateLSTM(
                2,
                name=name,
                initial_state=[*entries],
                return_sequences=True,
                dtype=dtype,
            )

        distribution = sampled([0.5, -2.0], [0.1, 0.2], learned=True)
        first, second = layer("first", "trainable", None), layer("second", None, 0.5)
        third = layer("third", distribution, PerRow())
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES)),
                keras.layers.Bidirectional(first, name="both"),
                keras.Sequential([second, third], name="inner"),
                keras.layers.LSTM(2),
            ],
            name="model",
        )
        (both, inner, _) = model.layers
        fixed, drawn = inner.layers[0].c0, inner.layers[1].h0
        variables = {
            "model/both/forward_first/h0/value": both.forward_layer.h0.value,
            "model/both/backward_first/h0/value": both.backward_layer.h0.value,
            "model/inner/second/c0/value": fixed.value,
            "model/inner/third/h0/mean": drawn.mean,
            "model/inner/third/h0/stddev": drawn.stddev,
        }
        recorder = Recorder(*variables.values())
        fit(model, LogInitialState(tmp_path), recorder, epochs=3)
        found = events(tmp_path / "initial_state")
        paths = {variable.path: name for name, variable in variables.items()}
        assert {tag.rpartition("/")[0] for tag in found} == set(paths)
        assert len(found) == 2 * len(variables)
        moved = 0
        for index, variable in enumerate(variables.values()):
            norms = found[f"{variable.path}/norm"]
            histograms = found[f"{variable.path}/histogram"]
            assert list(norms) == list(histograms) == [0, 1, 2, 3]
            for step, norm in norms.items():
                value = recorder.seen[step][index]
                np.testing.assert_allclose(norm, np.sqrt((value**2).sum()), rtol=1e-6)
                left, right, counts = histograms[step].T
                assert counts.sum() == len(value)
                np.testing.assert_allclose(left[0], value.min(), rtol=1e-6)
                np.testing.assert_allclose(right[-1], value.max(), rtol=1e-6)
            moved += norms[3] != norms[0]
        assert moved >= 2

    def test_tags_are_the_paths_of_the_variables(self, tmp_path):
        fit(small_model(), LogInitialState(str(tmp_path)))
        assert sorted(events(tmp_path / "initial_state")) == [
            f"model/rnn/{state}/value/{what}"
            for state in ("c0", "h0")
            for what in ("histogram", "norm")
        ]

    def test_a_resumed_run_continues_the_steps(self, tmp_path):
        model = small_model()
        fit(model, LogInitialState(tmp_path), initial_epoch=3, epochs=5)
        found = events(tmp_path / "initial_state")
        assert list(found["model/rnn/h0/value/norm"]) == [3, 4, 5]

    def test_one_callback_for_two_runs(self, tmp_path):
        model, callback = small_model(), LogInitialState(tmp_path)
        fit(model, callback, epochs=1)
        fit(model, callback, initial_epoch=2, epochs=3)
        found = events(tmp_path / "initial_state")
        assert list(found["model/rnn/h0/value/norm"]) == [0, 1, 2, 3]

    @pytest.mark.parametrize("update_freq", ["epoch", 1000])
    def test_together_with_the_callback_of_keras(self, update_freq, tmp_path):
        board = keras.callbacks.TensorBoard(tmp_path, update_freq=update_freq)
        fit(small_model(), board, LogInitialState(tmp_path))
        assert events(tmp_path / "train")
        found = events(tmp_path / "initial_state")
        assert {tuple(steps) for steps in found.values()} == {(0, 1, 2)}
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "initial_state",
            "train",
        ]

    def test_every_epoch_is_written_at_its_end(self, tmp_path):
        seen = []

        class Look(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                found = events(tmp_path / "initial_state")
                seen.append(list(found["model/rnn/h0/value/norm"]))

        fit(small_model(), LogInitialState(tmp_path), Look(), epochs=3)
        assert seen == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_the_file_is_closed_at_the_end(self, tmp_path):
        callback = LogInitialState(tmp_path)
        fit(small_model(), callback)
        files = pathlib.Path("/proc/self/fd").iterdir()
        opened = [os.path.realpath(file) for file in files]
        assert not any(str(tmp_path) in path for path in opened)

    def test_a_model_that_fit_builds_has_no_step_0(self, tmp_path):
        layer = InitStateLSTM(2, initial_state=Fixed([3.0, 4.0]))
        model = keras.Sequential([layer])
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "LogInitialState")
            fit(model, LogInitialState(tmp_path))
        found = events(tmp_path / "initial_state")
        assert found[f"{layer.h0.value.path}/norm"] == {1: 5, 2: 5}

    def test_a_model_without_owned_states(self, tmp_path):
        with pytest.warns(UserWarning, match="nothing to log"):
            fit(small_model(initial_state=None), LogInitialState(tmp_path))
