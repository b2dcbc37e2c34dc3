"""What PyTorch writes for other runtimes, by the plain `model.export`."""

import importlib.util

import keras
import pytest

from backends import BACKEND
from keras_init_lstm import InitStateLSTM, Sampled
from models import BATCH, FEATURES, UNITS, normal
from oracles import assert_same

NEEDED = {"onnx": ("onnxruntime", "onnxscript"), "torch": ()}
X = normal(BATCH, 5, FEATURES)
SPEC = [keras.InputSpec(shape=X.shape, dtype="float32")]

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch alone")


def exported(layer, folder, form, timesteps=5, **kwargs):
    if not all(importlib.util.find_spec(package) for package in NEEDED[form]):
        pytest.skip(f"without {NEEDED[form]}")
    model = keras.Sequential([keras.Input((timesteps, FEATURES)), layer])
    model(X)
    path = str(folder / f"model.{'pt2' if form == 'torch' else form}")
    model.export(path, format=form, verbose=False, **kwargs)
    if form == "torch":
        import torch

        program = torch.export.load(path).module()
        return model, lambda x: program(torch.from_numpy(x))
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return model, lambda x: session.run(None, {name: x})[0]


@pytest.mark.parametrize("form", NEEDED)
def test_runs_from_the_owned_states(form, tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    model, call = exported(layer, tmp_path, form, input_signature=SPEC)
    assert_same(call(X), model(X), tolerance=1e-5)


def test_torch_export_has_a_batch_size_of_one_if_none_is_given(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    model, call = exported(layer, tmp_path, "torch")
    assert_same(call(X[:1]), model(X[:1]), tolerance=1e-5)
    with pytest.raises(AssertionError, match="Guard failed"):
        call(X)


def test_onnx_takes_any_batch_size(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    model, call = exported(layer, tmp_path, "onnx")
    for x in (X, X[:2]):
        assert_same(call(x), model(x), tolerance=1e-5)


def test_onnx_refuses_to_draw(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample"))
    with pytest.raises(ValueError, match="ONNX file can't draw an initial state"):
        exported(layer, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())


def test_torch_export_refuses_to_draw(tmp_path):
    """By PyTorch, which can't trace the generator that Keras makes of a seed."""
    layer = InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample"))
    with pytest.raises(RuntimeError):
        exported(layer, tmp_path, "torch", input_signature=SPEC)
