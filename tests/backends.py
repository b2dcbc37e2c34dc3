"""The backend and the release of Keras on which the tests run."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the fused loop of a backend runs.

    Attributes:
        activations: Pairs of an activation and a recurrent activation.
        of_simple_rnn: More activations of a SimpleRNN.
        drops: Whether it runs recurrent dropout, and a dropout mask for each gate.
        resets_before: Whether it runs a GRU with `reset_after=False`.
        reads_masked: Whether it reads masked timesteps, which then must be finite.
        few_if_masked: Whether it is preferred for fewer than 8 timesteps with a mask.
    """

    activations: tuple = (("tanh", "sigmoid"),)
    of_simple_rnn: tuple = ()
    drops: bool = False
    resets_before: bool = False
    reads_masked: bool = False
    few_if_masked: bool = False

    def activations_of(self, cell):
        pairs = [(activation, "sigmoid") for activation in self.of_simple_rnn]
        return [*self.activations, *(pairs if cell == "simple_rnn" else [])]

    def runs(self, cell, activation="tanh", recurrent_activation="sigmoid"):
        of_state, of_gates = zip(*self.activations_of(cell), strict=True)
        runs_gates = cell == "simple_rnn" or recurrent_activation in of_gates
        return activation in of_state and runs_gates

    @property
    def cells(self):
        """The names of the cells, each with its options."""
        cells = {name: (name, {}) for name in ("lstm", "gru", "simple_rnn")}
        if self.resets_before:
            cells["gru with reset before"] = ("gru", {"reset_after": False})
        return cells


LOOPS = {
    "tensorflow": Loop(
        activations=(
            *[("tanh", "sigmoid")] * 4,  # Drawn more often than the others.
            *[("relu", "sigmoid"), ("relu", "hard_sigmoid"), ("sigmoid", "relu")],
            *[("hard_tanh", "softsign"), ("softsign", "hard_tanh")],
            *[("silu", "tanh"), ("hard_sigmoid", "silu")],
            ("tanh", "keras_init_lstm>hard_sigmoid_of_keras2"),
            *[("linear", "hard_tanh"), ("sigmoid", "linear")],
        ),
        drops=True,
        resets_before=True,
        reads_masked=True,
    ),
    "torch": Loop(of_simple_rnn=("relu",), few_if_masked=True),
}
LOOP = LOOPS.get(BACKEND)
FUSES = LOOP is not None

# JAX has float64 only with an option that changes other defaults too.
WIDEST = "float32" if BACKEND == "jax" else "float64"
FLOAT64 = pytest.param(
    "float64", marks=pytest.mark.skipif(WIDEST != "float64", reason="not in JAX")
)


# For `compile()`: XLA takes seconds for each model, and is the subject of few tests.
WITHOUT_XLA = {"jit_compile": False} if BACKEND == "tensorflow" else {}


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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
