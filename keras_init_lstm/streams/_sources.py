"""Which inputs of a model are sources, which a decoder reads as a whole."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._copies import inputs_and_outputs
from keras_init_lstm._keras import layers_within, run_through

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


class Sources:
    """Which inputs of a model are sources, and which layers read sources alone.

    An input is a source if a recurrent layer's initial state or context is computed
    from it, or the value and key of an attention layer whose query is computed from
    another input too.

    Args:
        model: A Sequential or Functional model.
        names: The names of the sources, if they are known. Defaults to `None`.

    Attributes:
        are_sources: For each input of `model`, whether it is a source.
        given: The recurrent layers that are given an initial state.

    Raises:
        ValueError: If `names` are not names of inputs of `model`.
    """

    def __init__(self, model: Any, names: Iterable[str] | None = None) -> None:
        inputs = keras.tree.flatten(inputs_and_outputs(model)[0])
        known = [tensor.name for tensor in inputs]
        if names is not None and (isinstance(names, str) or not set(names) <= {*known}):
            raise ValueError(
                "Argument `sources` must be a list of names of inputs of the model, "
                f"which are {known}. Received: sources={described(names)}"
            )
        self.given: list[Any] = []
        self._found: set[int] = set()
        self._calls: list[tuple[Any, frozenset[int]]] = []
        # Run through the model with, for each tensor, the indices of the inputs on
        # which it depends.
        self._call_model(model, [frozenset([index]) for index in range(len(inputs))])
        self.are_sources = [index in self._found for index in range(len(inputs))]
        if names is not None:
            self.are_sources = [name in set(names) for name in known]

    @property
    def has_targets(self) -> bool:
        """Whether there are a source and an input that is none."""
        return any(self.are_sources) and not all(self.are_sources)

    def layers(self) -> set[int]:
        """Returns the `id()`s of the layers that read sources alone."""
        sources = {i for i, is_source in enumerate(self.are_sources) if is_source}
        of_sources: set[int] = set()
        of_targets: set[int] = set()
        for operation, read in self._calls:
            if isinstance(operation, keras.layers.Layer):
                ids = of_sources if read <= sources else of_targets
                ids |= set(map(id, layers_within(operation)))
        return of_sources - of_targets

    def _call_model(self, model: Any, inputs: list[frozenset[int]]) -> Any:
        if isinstance(model, keras.Sequential):
            self._calls.append((model, _union(inputs)))
            return [_union(inputs)]  # No layer in it is given a state.
        return run_through(model, inputs, self._call)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(operation, (keras.Function, keras.Sequential)):
            mask = _union((args[1:], kwargs))
            inputs = [read | mask for read in keras.tree.flatten(args[0])]
            return self._call_model(operation, inputs)
        if isinstance(operation, (keras.layers.RNN, keras.layers.Bidirectional)):
            given = arguments_of_call(args[1:], kwargs)
            if "initial_state" in given:
                self.given.append(operation)
                self._found |= _union(given["initial_state"])
            if not _reads_context_over_time(operation):
                self._found |= _union(given.get("context"))
        elif isinstance(operation, _ATTENTION):
            # The inputs of `Attention` are a list.
            inputs = list(args[0] if isinstance(args[0], (list, tuple)) else args)
            named = (kwargs.get("value"), kwargs.get("key"))
            memory = _union((inputs[1:3], named))
            if _union(inputs[0]) - memory:
                self._found |= memory
        read = _union((args, kwargs))
        self._calls.append((operation, read))
        return [read] * len(keras.tree.flatten(operation.output))


def _union(structure: Any) -> frozenset[int]:
    leaves = keras.tree.flatten(structure)
    return frozenset().union(*(x for x in leaves if isinstance(x, frozenset)))


def _reads_context_over_time(layer: Any) -> bool:
    """Whether the context of a layer is read along time, as its sequences are."""
    kinds = getattr(layer, "initial_state", None) or ()
    return any(kind is not None and kind.over_time for kind in kinds)
