"""JAX: tensors without values while it traces, and training in pure functions."""

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
                "On JAX, a layer can't be reset by itself while Keras keeps the "
                "variables of its model elsewhere: within an epoch of `fit()`, and "
                "after an `evaluate()` or `predict()` that failed. Call "
                "`reset_states(model)`. If that raises this too, the call failed in "
                "its first batch, and Keras has lost all variables of the model, its "
                "weights too: load the model again"
            )

    def only_traces(self, value: Any) -> bool:
        # In the NNX mode of Keras a trace reads and returns the variables themselves.
        return isinstance(value, jax.core.Tracer) and not keras.config.is_nnx_enabled()

    def recomputes(self) -> bool:
        # It is traced apart, and no variable may take a value out of that trace.
        return called_by("jax._src.ad_checkpoint.")


backend = _Jax()
