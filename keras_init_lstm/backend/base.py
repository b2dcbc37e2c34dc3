"""The interface of a backend, with defaults for a backend that always knows its shapes.

On JAX and PyTorch, Python knows the shape of every tensor, and operations run, or are
traced, in the order of the Python code.
"""

import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from types import CodeType
from typing import Any

import keras

from keras_init_lstm._keras import ONNX_EXPORTERS


def called_by(*functions: str) -> bool:
    """Whether a caller has a module and name that begin with one of `functions`."""
    return any(
        f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}".startswith(
            functions
        )
        for frame, _ in traceback.walk_stack(None)
    )


class NotFusedError(NotImplementedError):
    """The fused loop does not run. The message is the reason."""


class Backend:
    """The interface of a backend. The defaults are for shapes that are always known."""

    # The class of the variables that hold carried states.
    Variable = keras.Variable
    # Whether training runs in pure functions of `layer.variables`, and changes of
    # other variables are lost.
    returns_changed_variables = False
    # Whether `predict_on_batch()` compiles each new shape.
    compiles_each_shape = False
    # Whether the outputs at masked timesteps before the first unmasked one are the
    # initial h, and not zeros.
    shows_initial_state = False

    def is_symbolic(self, value: Any) -> bool:
        """Whether `value` is a tensor without known values."""
        return isinstance(value, keras.KerasTensor)

    def as_tensor(self, value: Any) -> Any:
        """Converts a tensor, an array or a variable to a tensor."""
        return keras.ops.convert_to_tensor(value)

    def with_shape(self, tensor: Any, shape: Sequence[Any], expectation: str) -> Any:
        """Returns `tensor`, with a check at run time of sizes that are unknown before.

        Operations on the returned tensor wait for the check.

        Args:
            tensor: Any tensor.
            shape: For each dimension an integer, a scalar integer tensor, or `None`
                for any size.
            expectation: The text of the error before "Received".
        """
        return tensor

    def replica_id(self) -> Any:
        """Returns the number of the current replica in distributed training, else 0."""
        return 0

    def is_called_by(self, functions: Collection[CodeType]) -> bool:
        """Whether one of `functions` called the function that calls this method."""
        return sys._getframe(2).f_code in functions

    def after(self, value: Any, function: Callable[[], None]) -> None:
        """Calls a function. In a graph, its operations run after `value`."""
        function()

    def trackable(self, variables: dict[str, Sequence[keras.Variable]]) -> Any:
        """Returns an object by which the backend's file formats find variables."""
        return None

    def write_back(self, model: keras.layers.Layer) -> None:
        """Updates the variables of a model that is being trained."""

    def check_present(self, variables: Sequence[keras.Variable]) -> None:
        """Raises a `ValueError` if an assignment to the variables would be lost."""

    def only_traces(self, value: Any) -> bool:
        """Whether a value exists only in a trace, and can't be kept in a variable.

        False if the trace reads and returns the variables.
        """
        return False

    def recomputes(self) -> bool:
        """Whether activation checkpointing runs the current call."""
        return False

    def check_runs_once(self, name: str, difference: str) -> None:
        """Raises a `ValueError` within activation checkpointing.

        Args:
            name: The layer or the initial state, the subject of the error.
            difference: What would be different in a second call.
        """
        if self.recomputes():
            raise ValueError(
                f"{name} can't be within activation checkpointing (`keras.RematScope`, "
                "`keras.remat`, `tf.recompute_grad`, `jax.checkpoint`, "
                "`torch.utils.checkpoint`), which calls it again in the backward pass: "
                f"{difference}, and the gradients would be wrong. Leave it out of the "
                "checkpointed function"
            )

    def check_length_is_traced(self, name: str) -> None:
        """Raises a `ValueError` if a file for any length would be wrong.

        Args:
            name: The name of the layer that runs Keras's loop.
        """

    def cell_of_gru_is_faster(self, training: bool) -> bool:
        """Whether to call the cell of a GRU, and not the GRU of Keras's backend."""
        return False

    def traces_for_onnx(self) -> bool:
        """Whether a call is traced for an ONNX file."""
        # Only the call stack shows it: Keras exports with functions that trace for
        # other purposes too, and the converters set no flag.
        return called_by(*ONNX_EXPORTERS)

    def random_state(self) -> Any:
        """Returns the states of the backend's global generators, as lists."""
        return None

    def set_random_state(self, state: Any) -> None:
        """Restores the states that `random_state()` returned."""
