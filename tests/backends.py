"""The backend and the release of Keras on which the tests run."""

import os
import subprocess
import sys

import keras
import pytest

BACKEND = keras.backend.backend()


def release(version):
    return tuple(int(number) for number in version.split(".")[:2])


RELEASE = release(keras.__version__)

if BACKEND == "tensorflow":
    import tensorflow as tf
else:
    tf = None  # Whatever uses it is marked `tensorflow`, and is skipped.

# Whether the backend has a fused loop.
FUSES = BACKEND in ("tensorflow", "torch")

# JAX has float64 only with an option that changes other defaults too.
WIDEST = "float32" if BACKEND == "jax" else "float64"
FLOAT64 = pytest.param(
    "float64", marks=pytest.mark.skipif(WIDEST != "float64", reason="not in JAX")
)


def compiled(call, **options):
    """A `tf.function` on TensorFlow; the call itself on other backends."""
    return tf.function(call, **options) if tf else call


def in_a_fresh_process(script, *arguments, environment=os.environ):
    """The output of a script in a new process with the same backend and paths."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={
            **environment,
            "KERAS_BACKEND": BACKEND,
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
