"""How a context and a reset mask pass through a Keras call."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm._checks import described, shape_of
from keras_init_lstm._types import Shape
from keras_init_lstm.loops.call import InPlaceOfMask

if TYPE_CHECKING:
    from typing_extensions import Self

# The first call builds a layer, and several threads may call it at the same time.
build_lock = threading.RLock()


class TakesContext(keras.layers.Layer):
    """Mixin for layers that are called with a context or a reset mask.

    List it before the Keras layer among the base classes.

    Keras casts floating-point arguments to the layer's dtype (in bfloat16, the ID
    257.0 becomes 256.0), and drops the implicit mask of the sequences if the call has
    a second tensor. `__call__()` therefore wraps a context and a reset mask in an
    object that Keras does not treat as a tensor. `call()` unwraps both with
    `unwrapped()`.

    A subclass implements `_check_call()`, `_build_owned()` and a `build()` with a
    `context_shape`.
    """

    @property
    def takes_context(self) -> bool:
        """Whether an owned initial state is `Conditional`."""
        raise NotImplementedError

    def _check_call(
        self,
        sequences: Any,
        initial_state: Any,
        context: Any,
        reset_mask: Any,
        reads_stream: bool = True,
    ) -> None:
        """Raises a `ValueError` if the arguments of a call do not fit the layer.

        Args:
            sequences: This and the next three are the arguments of the call.
            initial_state: As at the call.
            context: As at the call.
            reset_mask: As at the call.
            reads_stream: Whether the call reads the stream of a stateful layer, whose
                batch size must then be equal. Defaults to `True`.
        """
        raise NotImplementedError

    def _build_owned(
        self, context: Any = None, at_once: bool = False, shape: Shape | None = None
    ) -> None:
        """Builds the owned states that are not built yet.

        Args:
            context: `KerasTensor`s from `specs_of()`, or `None` without a context.
            at_once: Whether every layer inside the states must be built now, as in a
                Functional model. If not, some may be left to the call that follows.
                Defaults to `False`.
            shape: The shape of the sequences, for a ConvLSTM. Defaults to `None`.
        """
        raise NotImplementedError

    def __call__(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        context: Any = None,
        reset_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        if isinstance(mask, InPlaceOfMask):  # From an `InitStateBidirectional`.
            mask, reset_mask, _, context = mask
            context = context if self.takes_context else None
        context, reset_mask = self._prepare_call(
            sequences, initial_state, context, reset_mask
        )
        arguments = {
            "initial_state": initial_state,
            "mask": mask,
            "training": training,
            "context": _wrapped(context),
            "reset_mask": _wrapped(reset_mask),
        }
        arguments = {k: value for k, value in arguments.items() if value is not None}
        return super().__call__(sequences, **arguments, **kwargs)

    def _prepare_call(
        self,
        sequences: Any,
        initial_state: Any,
        context: Any,
        reset_mask: Any,
        reads_stream: bool = True,
    ) -> tuple[Any, Any]:
        """Checks the arguments of a call, and builds the layer if it is not built.

        The arguments are the arguments of `_check_call()`.

        Returns:
            The context and the reset mask, without wrappers and lists.
        """
        # A constant given while a Functional model is built arrives wrapped; unwrap it.
        context, reset_mask = lists_as_arrays(unwrapped(context)), unwrapped(reset_mask)
        if isinstance(reset_mask, (list, tuple)):
            with contextlib.suppress(ValueError):
                reset_mask = np.asarray(reset_mask)
        # Check before Keras builds or traces anything: an error must change nothing.
        self._check_call(sequences, initial_state, context, reset_mask, reads_stream)
        if not self.built or context is not None:
            # Keras would build the layer from the shapes of its arguments. But Keras
            # does not see the shape of a wrapped context, rejects `None` among the
            # states up to version 3.12, and takes no lock.
            with build_lock:
                self._build_for(sequences, context)
        return context, reset_mask

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # Only the sequences determine the output shapes, and `compute_output_shape()`
        # takes no other argument.
        return super().compute_output_spec(sequences)

    def _build_for(self, sequences: Any, context: Any) -> None:
        shape = shape_of(sequences)
        rank = len(shape or ())
        if shape and rank < 3 and self.input_spec is None:
            # With a custom cell, Keras raises only after it has built the layer.
            raise ValueError(
                "Argument `sequences` must be a tensor of shape (batch, timesteps, "
                f"...). Received: {described(sequences)}"
            )
        if rank < 3 or rank != getattr(self.input_spec, "ndim", rank):
            return  # Keras raises the error. The layer must stay unbuilt.
        specs = specs_of(context)
        leaves = keras.tree.flatten((sequences, context))
        symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in leaves)
        if not self.built and context is None:
            self.build(tuple(sequences.shape))
        # Build the owned states before the layer, whose `build()` gets only the shapes
        # of the context, and no dtypes. Do it when the layer is built too: an earlier
        # call with explicit states and no context has built no encoder.
        self._build_owned(specs, symbolic, tuple(sequences.shape))
        if not self.built:
            shapes = keras.tree.map_structure(lambda spec: tuple(spec.shape), specs)
            self.build(tuple(sequences.shape), context_shape=shapes)


def unwrapped(argument: Any) -> Any:
    """Returns a context or a reset mask without its wrapper."""
    return argument.argument if isinstance(argument, _Wrapped) else argument


def specs_of(context: Any) -> Any:
    """Returns a `KerasTensor` for each tensor of a context; `None` without one."""
    if context is None:
        return None
    return keras.tree.map_structure(
        lambda leaf: keras.KerasTensor(shape_of(leaf) or (), _dtype_of(leaf)), context
    )


def _dtype_of(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return keras.backend.standardize_dtype(dtype or type(leaf))


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class _Wrapped:
    """Wraps an argument, which Keras then passes on unchanged.

    A Functional model that was built with a constant context or reset mask saves it
    in this wrapper.
    """

    def __init__(self, argument: Any) -> None:
        self.argument = argument

    def get_config(self) -> dict[str, Any]:
        return {"argument": keras.saving.serialize_keras_object(self.argument)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(keras.saving.deserialize_keras_object(config["argument"]))

    def __repr__(self) -> str:
        return described(self.argument)


def _wrapped(argument: Any) -> Any:
    if argument is None or any(
        isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(argument)
    ):
        return argument
    return _Wrapped(argument)


def lists_as_arrays(context: Any) -> Any:
    """Converts a list of numbers to an array; returns anything else unchanged.

    Raises:
        ValueError: If a list can't be converted, like lists of different lengths.
    """
    if not isinstance(context, (list, tuple)) or any(
        hasattr(leaf, "shape") for leaf in keras.tree.flatten(context)
    ):
        return context
    with contextlib.suppress(ValueError):
        array = np.asarray(context)
        if array.dtype != object:
            return array
    raise ValueError(
        "Argument `context` must be a tensor of shape (batch, ...), or a structure of "
        f"them. Received: context={described(context)}"
    )
