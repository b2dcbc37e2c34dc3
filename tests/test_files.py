"""Files that were written before, by other backends and by Keras 2."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_init_lstm
from backends import BACKEND, RELEASE, release
from oracles import across_programs, assert_same

DATA_FOLDER = Path(__file__).parent / "data"
# Written before the package was divided as it is now. They hold a model with each kind
# of state, in each wrapper, one layer of it stateful: `first` is what it predicts from
# a fresh stream, `second` what it predicts after that.
FOLDER = DATA_FOLDER / "before_the_house"
DATA = dict(np.load(FOLDER / "data.npz"))
INPUTS = [DATA["x"], DATA["context"]]
# Written with TensorFlow, whose sums are in another order.
TOLERANCE = 0 if BACKEND == "tensorflow" else 1e-6


def loaded(path=FOLDER / "model.keras"):
    with zipfile.ZipFile(path) as archive:
        writer = json.loads(archive.read("metadata.json"))["keras_version"]
    # An older Keras may not know what the layers of the writer's are configured with.
    if release(writer) > RELEASE:
        pytest.skip(f"written by Keras {writer}, read by {keras.__version__}")
    return keras.models.load_model(path)


def test_a_keras_file():
    model = loaded()
    assert_same(model(INPUTS), DATA["first"], TOLERANCE)
    assert_same(model(INPUTS), DATA["second"], TOLERANCE)
    assert len(model.trainable_weights) == 32
    learned, given = model.get_layer("lstm").c0, model.get_layer("drawn").h0
    assert learned.learned and not learned.trainable
    assert not given.learned and given.trainable
    assert float(keras.ops.convert_to_numpy(given.get_config()["stddev"])) == 1.0


def test_a_file_of_weights():
    model = keras.models.clone_model(loaded())
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    model.load_weights(FOLDER / "model.weights.h5")
    for index, weight in enumerate(model.weights):
        assert_same(weight, DATA[f"weight{index:02}"])
    assert_same(model(INPUTS), DATA["first"], TOLERANCE)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_keras_file_of_another_backend(backend):
    folder = DATA_FOLDER / "by_other_backends"
    data = dict(np.load(folder / f"by_{backend}.npz"))
    model = loaded(folder / f"by_{backend}.keras")
    assert_same(model([data["x"], data["context"]]), data["outputs"], 1e-6)


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14),
    reason="older ones do otherwise with masks, and are refused",
)
def test_a_file_of_keras_2():
    data = dict(np.load(DATA_FOLDER / "keras2" / "keras2.npz"))
    model = keras_init_lstm.load_keras2_model(DATA_FOLDER / "keras2" / "keras2.h5")
    assert_same(model(data["x"]), data["outputs"], 1e-6)
    adopted = keras_init_lstm.with_initial_state(model, "trainable")
    assert_same(adopted(data["x"]), model(data["x"]), across_programs())
