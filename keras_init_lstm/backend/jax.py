"""The JAX backend: traced tensors have no values, and training is a pure function."""

from collections.abc import Sequence
from typing import Any

import jax
import keras

from keras_init_lstm._keras import is_empty, write_back
from keras_init_lstm.backend.base import Backend, called_by


class _Jax(Backend):
    returns_changed_variables = True
    compiles_each_shape = True
    shows_initial_state = True

    def is_symbolic(self, value: Any) -> bool:
        return isinstance(value, jax.core.Tracer) or super().is_symbolic(value)

    def write_back(self, model: keras.layers.Layer) -> None:
        write_back(model)

    def check_present(self, variables: Sequence[keras.Variable]) -> None:
        if any(map(is_empty, variables)):
            raise ValueError(
                "On JAX, a single layer can't be reset while Keras keeps the values of "
                "the model's variables elsewhere: within an epoch of `fit()`, and "
                "after an `evaluate()` or `predict()` that failed. Call "
                "`reset_states(model)`. If that raises this error too, the call failed "
                "in its first batch, and Keras has lost all variables of the model, "
                "its weights too: load the model again"
            )

    def cell_of_gru_is_faster(self, training: bool) -> bool:
        # On a CPU, XLA is slow to slice the gates out of products that were computed
        # before the loop. In training, the backward pass takes longer and hides it.
        return not training and jax.default_backend() == "cpu"

    def only_traces(self, value: Any) -> bool:
        # In the NNX mode of Keras, a trace reads and returns the variables.
        return isinstance(value, jax.core.Tracer) and not keras.config.is_nnx_enabled()

    def recomputes(self) -> bool:
        # `jax.checkpoint` has its own trace, whose values can't be kept in variables.
        return called_by("jax._src.ad_checkpoint.")


backend = _Jax()
