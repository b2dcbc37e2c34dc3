"""How a context and a reset mask pass through a Keras call."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm._checks import described, shape_of
from keras_init_lstm.loops.call import InPlaceOfMask

if TYPE_CHECKING:
    from typing_extensions import Self

# Layers are built by their first call, and that may come from several threads at once.
building = threading.RLock()


class TakesContext(keras.layers.Layer):
    """What a layer inherits from before a layer of Keras to be called with a context.

    Keras casts what a layer is called with to the layer's dtype (in bfloat16, the id
    257 becomes 256), and drops the implicit mask of the sequences if the call has a
    second tensor. A context, and likewise a reset mask, is therefore wrapped in an
    object that Keras takes for no tensor, and that `call()` unwraps by `unwrapped()`.

    A subclass implements `_check_call()` and `_build_owned()`, and a `build()` with a
    `context_shape`.
    """

    @property
    def takes_context(self) -> bool:
        """Whether an owned initial state is `Conditional`."""
        raise NotImplementedError

    def _check_call(
        self, sequences: Any, initial_state: Any, context: Any, reset_mask: Any
    ) -> None:
        """Raises a `ValueError` if the arguments of a call do not fit the layer."""
        raise NotImplementedError

    def _build_owned(self, context: Any = None, at_once: bool = False) -> None:
        """Builds what the owned states need, so far as it is not built.

        Args:
            context: What `specs_of()` returns of a context.
            at_once: Whether all of it must be built, as in a Functional model, or may
                be left to the call that follows. Defaults to `False`.
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
        # What is known when a Functional model is made is wrapped when that runs.
        context, reset_mask = lists_as_arrays(unwrapped(context)), unwrapped(reset_mask)
        if isinstance(reset_mask, (list, tuple)):
            with contextlib.suppress(ValueError):
                reset_mask = np.asarray(reset_mask)
        # Before Keras builds or traces anything, so that an error changes nothing.
        self._check_call(sequences, initial_state, context, reset_mask)
        if not self.built or context is not None:
            # Keras would build the layer from the shapes of its arguments. But it does
            # not see the shape of a wrapped context, up to version 3.12 it accepts no
            # `None` among states, and it does not keep threads apart.
            with building:
                self._build_for(sequences, context)
        arguments = {
            "initial_state": initial_state,
            "mask": mask,
            "training": training,
            "context": _wrapped(context),
            "reset_mask": _wrapped(reset_mask),
        }
        arguments = {k: value for k, value in arguments.items() if value is not None}
        return super().__call__(sequences, **arguments, **kwargs)

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # The shapes of the outputs depend on the sequences alone, and
        # `compute_output_shape()` takes no other argument.
        return super().compute_output_spec(sequences)

    def _build_for(self, sequences: Any, context: Any) -> None:
        shape = shape_of(sequences)
        rank = len(shape or ())
        if shape and rank < 3 and self.input_spec is None:
            # With any cell, Keras finds out later, when the layer is already built.
            raise ValueError(
                "Argument `sequences` must be a tensor of shape (batch, timesteps, "
                f"...). Received: {described(sequences)}"
            )
        if rank < 3 or rank != getattr(self.input_spec, "ndim", rank):
            return  # Keras refuses it, and must find the layer as it was.
        specs = specs_of(context)
        leaves = keras.tree.flatten((sequences, context))
        symbolic = any(isinstance(leaf, keras.KerasTensor) for leaf in leaves)
        if not self.built and context is None:
            self.build(tuple(sequences.shape))
        # Before the layer, whose `build()` has only the shapes of a context; and again
        # later, since a call with explicit states and no context builds no encoders.
        self._build_owned(specs, at_once=symbolic)
        if not self.built:
            shapes = keras.tree.map_structure(lambda spec: tuple(spec.shape), specs)
            self.build(tuple(sequences.shape), context_shape=shapes)


def unwrapped(argument: Any) -> Any:
    """Returns a context or reset mask as the layer was called with it."""
    return argument.argument if isinstance(argument, _Wrapped) else argument


def specs_of(context: Any) -> Any:
    """Returns symbolic tensors like the tensors of a context; `None` without one."""
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
    """An argument that Keras passes on as it is, since it is no tensor.

    It stands in files of Functional models which are made with an array.
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
    leaves = keras.tree.flatten(argument)
    if argument is None or any(isinstance(x, keras.KerasTensor) for x in leaves):
        return argument
    return _Wrapped(argument)


def lists_as_arrays(context: Any) -> Any:
    """Makes one array of a list of numbers; returns anything else as it is.

    Raises:
        ValueError: If they make no array, like lists of different lengths.
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
