"""Creates layers of this package from other recurrent layers, with their weights."""

from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._copies import arguments_of, copy_layer, hand_over
from keras_init_lstm.initial_states.owned import as_argument
from keras_init_lstm.layers._loop import bit_identical_arguments

# The methods that determine the outputs of a layer.
_COMPUTATION = {"__call__", "build", "call", "get_initial_state", "inner_loop"}


def taken_over(cls: Any, layer: Any, initial_state: Any = None, **kwargs: Any) -> Any:
    """Returns the result of `cls.from_keras()` for the same arguments."""
    _check_can_take_over(cls, layer)
    arguments = dict(kwargs)
    if initial_state is not None:
        arguments["initial_state"] = initial_state
    taken = unbuilt(layer, cls, **arguments)
    taken.supports_masking = layer.supports_masking
    if type(taken.cell) is not type(layer.cell):
        raise ValueError(
            f"Argument `layer` must have a cell {type(taken.cell).__name__}, as "
            f"`{cls.keras_layer.__name__}` makes it. `InitStateRNN(cell)` takes "
            f"any. Received: {described(layer)} with {described(layer.cell)}"
        )
    if layer.built:
        taken.build_from_config(layer.get_build_config())
        taken.built = True
        hand_over(layer.cell, taken.cell)
        taken.cell.trainable = kwargs.get("trainable", layer.cell.trainable)
    # The initial states of an unbuilt `layer` may be built and assigned to.
    taken._build_owned()
    if initial_state is None:
        hand_over_initial_states(layer, taken)
    taken._continue_from(layer.states)
    return taken


def _check_can_take_over(cls: Any, layer: Any) -> None:
    """Raises a `ValueError` if `cls.from_keras(layer)` would have other outputs."""
    # `LSTM`, `GRU` and `SimpleRNN` are subclasses of `RNN`, but take no cell.
    takes_cell = cls.keras_layer is keras.layers.RNN
    if not isinstance(layer, cls.keras_layer) or takes_cell != (
        "cell" in layer.get_config()
    ):
        raise ValueError(
            f"Argument `layer` must be a layer `{cls.keras_layer.__name__}` of "
            "Keras 3, because each layer of this package takes over the Keras layer "
            f"in its name. Received: {described(layer)}"
        )
    for base in type(layer).__mro__:
        if not issubclass(cls, base) and _COMPUTATION.intersection(vars(base)):
            raise ValueError(
                f"Argument `layer` must be a layer `{cls.keras_layer.__name__}`, "
                f"and not of the subclass {base.__name__}, whose custom computation "
                "would be lost. Derive the subclass from the layer of this package. "
                f"Received: {described(layer)}"
            )


def unbuilt(layer: Any, cls: Any = None, **kwargs: Any) -> Any:
    """Returns a recurrent layer with the arguments of `layer`, except for `kwargs`.

    Args:
        layer: A recurrent layer of Keras or of this package.
        cls: The class of the new layer. Defaults to the class of `layer`.
        **kwargs: Arguments of the constructor.
    """
    cls = cls or type(layer)
    arguments = {**bit_identical_arguments(cls), **arguments_of(layer)}
    if "cell" in arguments:
        arguments["cell"] = copy_layer(layer.cell)
    if _owns_states(layer):
        arguments["initial_state"] = as_argument(layer._layout, layer.initial_state)
    return cls(**{**arguments, **kwargs})


def hand_over_weights(source: Any, target: Any) -> None:
    """Copies the weights and the `trainable` flags to a built recurrent layer."""
    hand_over(source.cell, target.cell)
    hand_over_initial_states(source, target)


def hand_over_initial_states(source: Any, target: Any) -> None:
    """Copies the owned states that are built, and that both layers own."""
    if _owns_states(source):
        for old, new in zip(source.initial_state, target.initial_state, strict=True):
            if old is not None and old.built and new is not None:
                hand_over(old, new)


def _owns_states(layer: Any) -> bool:
    # `layers.rnn` imports this module, so `isinstance` can't be used.
    return hasattr(layer, "_owned")
