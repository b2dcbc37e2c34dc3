"""Layers of this package made from other recurrent layers, with their weights."""

from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._copies import arguments_of, copy_layer, hand_over
from keras_init_lstm._keras import layers_within
from keras_init_lstm.layers._loop import bit_identical

# By these a layer computes what it does.
_COMPUTATION = {"__call__", "build", "call", "get_initial_state", "inner_loop"}


def taken_over(cls: Any, layer: Any, initial_state: Any = None, **kwargs: Any) -> Any:
    """Does what `cls.from_keras()` does, with the same arguments."""
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
    # States may be built, and have been assigned to, before their layer is.
    taken._build_owned()
    if initial_state is None:
        _hand_over_initial_states(layer, taken)
    taken._carry_on(layer.states)
    return taken


def _check_can_take_over(cls: Any, layer: Any) -> None:
    """Raises a `ValueError` if `cls.from_keras(layer)` would compute something else."""
    # An LSTM, GRU or SimpleRNN is an RNN too, but is given no cell.
    takes_cell = cls.keras_layer is keras.layers.RNN
    if not isinstance(layer, cls.keras_layer) or takes_cell != (
        "cell" in layer.get_config()
    ):
        raise ValueError(
            f"Argument `layer` must be a layer `{cls.keras_layer.__name__}` of "
            "Keras 3; each layer of this package takes over the one of Keras that "
            f"it is named after. Received: {described(layer)}"
        )
    for base in type(layer).__mro__:
        if not issubclass(cls, base) and _COMPUTATION.intersection(vars(base)):
            raise ValueError(
                f"Argument `layer` must be a layer `{cls.keras_layer.__name__}`, "
                f"and not of the subclass {base.__name__}, whose own computation "
                "would be lost. Derive that from the layer of this package. "
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
    arguments = {**bit_identical(cls), **arguments_of(layer)}
    if "cell" in arguments:
        arguments["cell"] = copy_layer(layer.cell)
    if _owns_states(layer):
        arguments["initial_state"] = layer._layout.pack(layer.initial_state)
    return cls(**{**arguments, **kwargs})


def hand_over_weights(layer: Any, ours: Any) -> None:
    """Gives `ours`, once it is built, the weights of `layer`; frozen ones stay so."""
    hand_over(layer.cell, ours.cell)
    _hand_over_initial_states(layer, ours)
    for source, target in zip(layers_within(layer), layers_within(ours), strict=True):
        target.trainable = source.trainable


def _hand_over_initial_states(layer: Any, ours: Any) -> None:
    """Gives `ours` the owned states of `layer`, if it owns any that are built."""
    if _owns_states(layer):
        for source, target in zip(layer.initial_state, ours.initial_state, strict=True):
            if source is not None and source.built:
                hand_over(source, target)


def _owns_states(layer: Any) -> bool:
    # `layers.rnn` imports this module, so its class is not known here.
    return hasattr(layer, "_owned")
