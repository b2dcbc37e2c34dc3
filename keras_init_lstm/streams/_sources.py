"""Which inputs of a model are sources, which a decoder reads as a whole."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._copies import inputs_and_outputs
from keras_init_lstm._keras import run_through

# Layers that are called with a query, a value and a key.
_ATTENTION = (
    keras.layers.AdditiveAttention,
    keras.layers.Attention,
    keras.layers.GroupQueryAttention,
    keras.layers.MultiHeadAttention,
)


def arguments_of_call(args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments after the sequences, of a call of a recurrent layer."""
    names = ("initial_state", "mask", "training", "context", "reset_mask")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: value for name, value in given.items() if value is not None}


def sources_of(model: Any, names: Iterable[str] | None = None) -> list[bool]:
    """Returns for each input of a model whether it is a source.

    An input is a source if a recurrent layer's initial state or context is computed
    from it, or the value and key of an attention layer whose query is computed from
    another input too.

    Args:
        model: A Sequential or Functional model.
        names: The names of the sources, if they are known. Defaults to `None`.

    Raises:
        ValueError: If `names` are not names of inputs of `model`.
    """
    inputs = keras.tree.flatten(inputs_and_outputs(model)[0])
    if names is None:
        found = _Finder()
        found.call_model(model, [frozenset([index]) for index in range(len(inputs))])
        return [index in found.sources for index in range(len(inputs))]
    known = [tensor.name for tensor in inputs]
    if isinstance(names, str) or not set(names) <= set(known):
        raise ValueError(
            "Argument `sources` must be a list of names of inputs of the model, which "
            f"are {known}. Received: sources={described(names)}"
        )
    return [name in set(names) for name in known]


class _Finder:
    """Runs through a model with, for each tensor, the set of inputs it depends on.

    Attributes:
        sources: The indices of the inputs that are sources.
    """

    def __init__(self) -> None:
        self.sources: set[int] = set()

    def call_model(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        if isinstance(model, keras.Sequential):
            return [_union((inputs, kwargs))]  # No layer in it is given a state.
        return run_through(model, inputs, self._call)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(operation, (keras.Function, keras.Sequential)):
            return self.call_model(operation, *args, **kwargs)
        if isinstance(operation, (keras.layers.RNN, keras.layers.Bidirectional)):
            given = arguments_of_call(args[1:], kwargs)
            self.sources |= _union(given.get("initial_state"))
            if not _reads_context_over_time(operation):
                self.sources |= _union(given.get("context"))
        elif isinstance(operation, _ATTENTION):
            # The inputs of `Attention` are a list.
            inputs = args[0] if isinstance(args[0], (list, tuple)) else args
            named = (kwargs.get("value"), kwargs.get("key"))
            memory = _union((inputs[1:3], named))
            if _union(inputs[0]) - memory:
                self.sources |= memory
        count = len(keras.tree.flatten(operation.output))
        return [_union((args, kwargs))] * count


def _union(structure: Any) -> frozenset[int]:
    leaves = keras.tree.flatten(structure)
    return frozenset().union(*(x for x in leaves if isinstance(x, frozenset)))


def _reads_context_over_time(layer: Any) -> bool:
    """Whether the context of a layer is read along time, as its sequences are."""
    kinds = getattr(layer, "initial_state", None) or ()
    return any(kind is not None and kind.over_time for kind in kinds)
