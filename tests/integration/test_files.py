"""Files of other backends and of Keras 2."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_init_lstm
from backends import RELEASE, release
from oracles import across_programs, assert_same

DATA_FOLDER = Path(__file__).parents[1] / "data"


def loaded(path):
    with zipfile.ZipFile(path) as archive:
        writer = json.loads(archive.read("metadata.json"))["keras_version"]
    # An older Keras may not know all arguments in the configurations.
    if release(writer) > RELEASE:
        pytest.skip(f"written by Keras {writer}, read by {keras.__version__}")
    return keras.models.load_model(path)


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
    model = keras_init_lstm.keras2.load_model(DATA_FOLDER / "keras2" / "keras2.h5")
    assert_same(model(data["x"]), data["outputs"], 1e-6)
    adopted = keras_init_lstm.with_initial_state(model, "trainable")
    assert_same(adopted(data["x"]), model(data["x"]), across_programs())
