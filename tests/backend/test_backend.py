"""The backends of the package, and their imports."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_init_lstm
from backends import BACKEND, FUSES, in_a_fresh_process
from keras_init_lstm.backend import backend

PACKAGE = Path(keras_init_lstm.__file__).parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
ALLOWED = {
    "backend/tensorflow.py": {"tensorflow"},
    "callbacks/log.py": {"tensorflow"},
    "loops/activations.py": {"tensorflow"},
    "loops/cells.py": {"tensorflow"},
    "loops/products.py": {"tensorflow"},
    "loops/tensorflow.py": {"tensorflow"},
    "loops/tensorflow_export.py": {"tensorflow"},
    "loops/tensorflow_loop.py": {"tensorflow"},
    "loops/tensorflow_passes.py": {"tensorflow"},
    "loops/torch.py": {"torch"},
    "backend/jax.py": {"jax"},
    "backend/torch.py": {"torch"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_a_framework_is_imported_only_in_its_own_files():
    files = {
        path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")
    }
    assert ALLOWED.keys() <= files.keys()
    for name, path in files.items():
        frameworks = FRAMEWORKS.intersection(imported(path))
        assert frameworks <= ALLOWED.get(name, set()), name


def test_the_package_loads_no_other_framework():
    script = (
        "import sys, keras; before = set(sys.modules); import keras_init_lstm;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not (FRAMEWORKS - {BACKEND}).intersection(done.stdout.split())


def test_another_backend_raises():
    # Use a fake backend, which needs no other package.
    script = (
        "import keras; keras.backend.backend = lambda: 'numpy'; import keras_init_lstm"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (
        "ImportError: keras_init_lstm works with the TensorFlow, JAX and PyTorch"
        in done.stderr
    )
    assert "Received: the backend 'numpy'" in done.stderr


@pytest.mark.parametrize("use_fused", ["auto", False])
def test_which_backends_have_a_fused_loop(use_fused):
    layer = keras_init_lstm.InitStateLSTM(2, use_fused=use_fused)
    assert tuple(layer(np.ones((2, 10, 3))).shape) == (2, 2)
    layer = keras_init_lstm.InitStateLSTM(2, use_fused=True)
    if FUSES:
        assert tuple(layer(np.ones((2, 10, 3))).shape) == (2, 2)
    else:
        with pytest.raises(
            ValueError, match=f"not support the backend {BACKEND}.*auto"
        ):
            layer(np.ones((2, 10, 3)))


def test_is_symbolic():
    assert backend.is_symbolic(keras.Input((3,)))
    for known in (np.ones(3), keras.ops.ones(3), 1.0, "text", None):
        assert not backend.is_symbolic(known)


def test_float64():
    script = """
import keras, numpy as np, keras_init_lstm
layer = keras_init_lstm.InitStateLSTM(2, initial_state=1 / 3, dtype="float64")
h, c = layer.get_initial_state(1)
assert float(h[0, 0]) == 1 / 3
print(keras.backend.standardize_dtype(layer(np.ones((2, 5, 3))).dtype))
"""
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    assert in_a_fresh_process(script, environment=environment) == "float64\n"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is there"
)
def test_log_initial_state_needs_tensorflow():
    layer = keras_init_lstm.InitStateLSTM(2, initial_state="trainable")
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    log = keras_init_lstm.callbacks.LogInitialState("logs")
    with pytest.raises(ImportError, match="writes with TensorFlow: pip install"):
        model.fit(np.ones((2, 5, 3)), np.ones((2, 2)), callbacks=[log], verbose=0)


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_a_stream_runs_without_private_names_of_pytorch():
    script = """
import sys
import keras, numpy as np, torch
assert torch._subclasses.FakeTensor
sys.modules["torch._subclasses"] = None
del torch._C._functorch.is_functorch_wrapped_tensor, torch._C._current_graph_task_id
import keras_init_lstm
layer = keras_init_lstm.InitStateLSTM(2, initial_state="trainable", stateful=True)
layer(np.ones((1, 3, 2))).sum().backward()
carried = keras.ops.convert_to_numpy(layer.states[0])
print(bool((carried != 0).all()), layer.h0.value.value.grad is not None)
"""
    assert in_a_fresh_process(script).split() == ["True", "True"]


@pytest.mark.skipif(
    bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed"
)
def test_logs_for_tensorboard_need_tensorflow(tmp_path):
    layer = keras_init_lstm.InitStateLSTM(2, initial_state="trainable")
    model = keras.Sequential([keras.Input((5, 3)), layer])
    model.compile("sgd", "mse")
    x, y = np.ones((2, 5, 3), "float32"), np.ones((2, 2), "float32")
    callback = keras_init_lstm.callbacks.LogInitialState(tmp_path)
    with pytest.raises(ImportError, match="tensorflow"):
        model.fit(x, y, verbose=0, callbacks=[callback])
