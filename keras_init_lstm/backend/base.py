"""What the package asks of a backend, and how one answers that always knows its shapes.

On JAX and PyTorch Python runs with the shape of every tensor known, and operations
run, or are recorded, in the order in which Python comes to them.
"""

import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from types import CodeType
from typing import Any

import keras

from keras_init_lstm._keras import ONNX_EXPORTERS


def called_by(*functions: str) -> bool:
    """Whether a function runs now whose module and name begin with one of these."""
    return any(
        f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}".startswith(
            functions
        )
        for frame, _ in traceback.walk_stack(None)
    )


class NotFusedError(NotImplementedError):
    """Raised where the fused loop is not to run, with the reason."""


class Backend:
    """The answers of a backend whose shapes are always known."""

    # The class of the variables that hold a stream.
    Variable = keras.Variable
    # Whether training runs in pure functions of `layer.variables`, so that what a call
    # changes must be among these.
    returns_changed_variables = False
    # Whether even outside of a function of the user's each new shape is compiled.
    compiles_each_shape = False
    # Whether the output at a masked timestep is the initial h as long as none was read.
    shows_initial_state = False

    def is_symbolic(self, value: Any) -> bool:
        """Whether `value` stands for a tensor whose values are not known now."""
        return isinstance(value, keras.KerasTensor)

    def as_tensor(self, value: Any) -> Any:
        """Returns the tensor of a tensor, an array or a variable."""
        return keras.ops.convert_to_tensor(value)

    def with_shape(self, tensor: Any, shape: Sequence[Any], expectation: str) -> Any:
        """Returns `tensor`, checked at run time where its shape is not known before.

        What is made from the tensor that is returned waits for the check.

        Args:
            tensor: Any tensor.
            shape: For each dimension an integer, a scalar integer tensor, or `None`
                where any size will do.
            expectation: What the error says before "Received".
        """
        return tensor

    def replica_id(self) -> Any:
        """The number of the replica that runs, of several that train in step, or 0."""
        return 0

    def is_called_by(self, functions: Collection[CodeType]) -> bool:
        """Whether one of these functions called the function that asks."""
        return sys._getframe(2).f_code in functions

    def after(self, value: Any, then: Callable[[], None]) -> None:
        """Calls `then`, in a graph not before `value` is computed."""
        then()

    def trackable(self, variables: dict[str, Sequence[keras.Variable]]) -> Any:
        """An object that makes variables known to the backend's own file formats."""
        return None

    def write_back(self, model: keras.layers.Layer) -> None:
        """Gives the variables of a model that is being trained their present values."""

    def check_present(self, variables: Sequence[keras.Variable]) -> None:
        """Raises a `ValueError` if what is written into variables would be lost."""

    def only_traces(self, value: Any) -> bool:
        """Whether a value exists in a trace alone, and must not be left in a variable.

        False for variables that the trace reads and returns.
        """
        return False

    def recomputes(self) -> bool:
        """Whether activation checkpointing runs a call, once or again."""
        return False

    def check_runs_once(self, name: str, difference: str) -> None:
        """Raises a `ValueError` within activation checkpointing.

        Args:
            name: What is called.
            difference: What a second call finds or does.
        """
        if self.recomputes():
            raise ValueError(
                f"{name} can't be within activation checkpointing (`keras.RematScope`, "
                "`keras.remat`, `tf.recompute_grad`, `jax.checkpoint`, "
                "`torch.utils.checkpoint`), which calls it again in the backward pass: "
                f"{difference}, and the gradients would be wrong. Leave it out of what "
                "is checkpointed"
            )

    def check_length_is_traced(self, name: str) -> None:
        """Raises a `ValueError` if a file is to take any length, and could not.

        Args:
            name: The layer whose loop of Keras is to run.
        """

    def traces_for_onnx(self) -> bool:
        """Whether a call is traced for an ONNX file, which holds less than a graph."""
        # Keras exports by functions that trace for other purposes too, and its
        # converters trace like any user, without a flag: only the call stack tells.
        return called_by(*ONNX_EXPORTERS)

    def random_state(self) -> Any:
        """The states of the generators that random operations share, in lists."""
        return None

    def set_random_state(self, state: Any) -> None:
        """Sets those generators to what `random_state()` returned."""
