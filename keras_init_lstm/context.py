"""How a context passes through a Keras call, to the kinds that are computed from it."""

from typing import Any

import keras
import numpy as np

from keras_init_lstm.validation import shape_of


class TakesContext(keras.layers.Layer):
    """What a layer inherits from before a layer of Keras to be called with a context.

    Keras casts every argument of a call to the dtype of the layer, and does not hand
    over the mask of the sequences if there is a second tensor. A context is therefore
    hidden from it, and shown again by `shown()` in `call()`.

    A subclass implements `_check_call()` and `_build_owned()`, and a `build()` with a
    `context_shape`.
    """

    def _check_call(self, sequences: Any, initial_state: Any, context: Any) -> None:
        """Raises a `ValueError` if the arguments of a call do not fit the layer."""
        raise NotImplementedError

    def _build_owned(self, context_shape: Any) -> None:
        """Builds what the owned states need, so far as it is not built."""
        raise NotImplementedError

    def __call__(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        context: Any = None,
        **kwargs: Any,
    ) -> Any:
        context = as_tensors(context)
        # Here, before anything is built, traced or carried.
        self._check_call(sequences, initial_state, context)
        if context is not None or initial_state is not None:
            # Keras knows no shape of what is hidden from it, and in version 3.12 and
            # before builds no layer that is given None among tensors.
            self._build_for(sequences, context)
        if context is not None and not _is_symbolic(context):
            context = _Hidden(context)
        given = {
            "initial_state": initial_state,
            "mask": mask,
            "training": training,
            "context": context,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return super().__call__(sequences, **given, **kwargs)

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # The outputs have the same shapes from whatever state they start.
        return super().compute_output_spec(sequences)

    def _build_for(self, sequences: Any, context: Any) -> None:
        rank = len(shape_of(sequences) or ())
        if rank < 3 or rank != getattr(self.input_spec, "ndim", rank):
            return  # Keras refuses it, and must find the layer as it was.
        if self.built:
            # Without a context, as with explicit states, an encoder is not built yet.
            self._build_owned(shapes_of(context))
        else:
            self.build(tuple(sequences.shape), context_shape=shapes_of(context))


def shown(context: Any) -> Any:
    """Returns a context as it was given."""
    return context.context if isinstance(context, _Hidden) else context


def shapes_of(context: Any) -> Any:
    """Returns the shapes of a context, in its structure; `None` if there is none."""
    if context is None:
        return None
    return keras.tree.map_structure(lambda leaf: shape_of(leaf) or (), context)


class _Hidden:
    """Anything but a tensor, to Keras."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def __repr__(self) -> str:
        return repr(self.context)


def _is_symbolic(context: Any) -> bool:
    return any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(context))


def as_tensors(context: Any) -> Any:
    """A list of numbers is one array, and no structure of tensors without shape."""
    if isinstance(context, (list, tuple)) and not any(
        hasattr(leaf, "shape") for leaf in keras.tree.flatten(context)
    ):
        return np.asarray(context)
    return context
