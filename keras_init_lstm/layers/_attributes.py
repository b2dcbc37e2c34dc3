"""Attributes of a layer that a user sets or deletes after its construction."""

from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._keras import forget_layer
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.initial_states.owned import as_argument


def replace_attribute(layer: Any, name: str, value: Any) -> bool:
    """Sets an attribute that the owned states or the stream depend on.

    Args:
        layer: A recurrent layer of this package.
        name: The name of the attribute.
        value: Its new value.

    Returns:
        `True` if the attribute was set; `False` if Keras has to set it.

    Raises:
        ValueError: If the attribute can't be set, or can't be set once the layer is
            built. The layer is then unchanged.
    """
    if name == "initial_state" or name in layer.state_names:
        _replace_initial_state(layer, name, value)
        return True
    if name == "cell":
        _replace_cell(layer, value)
        return True
    if name == "states":
        raise ValueError(
            f"The attribute `states` of {layer.name} can't be set. Call "
            "`reset_states(states=...)`, which sets the states of a stateful layer. "
            f"Received: states={described(value)}"
        )
    if name == "stateful" and value and layer.built and not layer._stream.has_begun:
        raise ValueError(
            f"The attribute `stateful` of {layer.name}, which is built, can't be "
            "set. `as_stateful(model, batch_size)` returns a stateful copy of a "
            f"model. Received: stateful={described(value)}"
        )
    return False


def check_may_be_deleted(layer: Any, name: str) -> None:
    """Raises an `AttributeError` if `name` is an owned state or `states`."""
    if hasattr(layer, "_owned") and (name == "states" or name in layer.state_names):
        raise AttributeError(
            f"The attribute `{name}` of {layer.name} can't be deleted."
            + ("" if name == "states" else " Set it to None for zeros.")
        )


def _replace_initial_state(layer: Any, name: str, value: Any) -> None:
    if _is_partly_built(layer):
        raise ValueError(
            f"The attribute `{name}` of {layer.name}, which is built, can't be set. "
            "`assign_initial_state()` overwrites the values that it owns, and "
            "`from_keras(layer, initial_state)` creates a layer with other initial "
            f"states. Received: {name}={described(value)}"
        )
    if name != "initial_state":
        kinds = list(layer.initial_state)
        kinds[layer.state_names.index(name)] = value
        value = as_argument(layer._layout, kinds)
    layer._make_owned_states(value)


def _replace_cell(layer: Any, cell: Any) -> None:
    # The constructor checks the cell and reads its `state_size`.
    rnn = keras.layers.RNN(cell, name=layer.name)
    layout, kinds, replaced = StateLayout.of(rnn), layer.initial_state, layer.cell
    initial_state = as_argument(layer._layout, kinds) if any(kinds) else None
    is_built = _is_partly_built(layer)
    if not is_built:
        # Raise before anything changes.
        layer._kinds_of(layout, initial_state)
    elif layout.state_size != layer._layout.state_size:
        raise ValueError(
            f"The attribute `cell` of {layer.name}, whose states are built, can't "
            "be set to a cell with other states. Expected: "
            f"state_size={layer._layout.state_size}. "
            f"Received: {described(cell)} with state_size={layout.state_size}"
        )
    keras.layers.Layer.__setattr__(layer, "cell", rnn.cell)
    if rnn.cell is not replaced:
        forget_layer(layer, replaced)
    layer.state_size, layer.single_state = rnn.state_size, rnn.single_state
    if not is_built:
        layer._make_owned_states(initial_state)


def _is_partly_built(layer: Any) -> bool:
    # `get_initial_state()` builds the initial states, and `reset_states()` creates the
    # stream, before the layer is built.
    any_kind = any(kind is not None and kind.built for kind in layer.initial_state)
    return layer.built or any_kind or layer._stream.has_begun
