"""Resets, reads and restores the streams of all layers of a model."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import array_of_shape, check_layer, described, shape_of
from keras_init_lstm._files import as_written
from keras_init_lstm._keras import layers_within
from keras_init_lstm._types import Shape
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._stream import CarriedState, rows_as_mask
from keras_init_lstm.layers.rnn import InitStateRNN


def reset_states(model: keras.layers.Layer, rows: Any = None) -> None:
    """Resets every stateful layer of a model, as Keras 2's `Model.reset_states()` did.

    Layers of nested models and of wrappers such as `Bidirectional` are reset too.
    An `InitStateLSTM` returns to the initial state that it owns, a layer of Keras to
    zeros.

    Args:
        model: A Keras model or layer.
        rows: The rows of the batch to reset: different integers, or booleans
            `(batch,)`. The other rows continue. Defaults to `None`, all.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3. With `rows`, also if
            they are not rows of the batch of every stream, if a stateful layer is not
            built, or if a stateful layer is not recurrent. All streams are then
            unchanged.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=0.5, stateful=True)
    >>> model = keras.Sequential([keras.Input((3, 1), batch_size=2), layer])
    >>> outputs = model(np.ones((2, 3, 1)))
    >>> keras_init_lstm.streams.reset_states(model, rows=[1])
    >>> layer.states[0].numpy()[1].tolist()
    [0.5, 0.5]
    >>> keras_init_lstm.streams.reset_states(model)
    >>> layer.states[0].numpy().tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    check_layer(model, "model")
    backend.write_back(model)
    layers = [
        layer
        for layer in layers_within(model)
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state")
    ]
    if rows is None:
        for layer in layers:
            if type(layer).reset_state is not keras.layers.RNN.reset_state:
                layer.reset_state()
            elif layer.states is not None:
                # Keras's own method fails if states are nested, as with stacked cells.
                for state in keras.tree.flatten(layer.states):
                    state.assign(ops.zeros_like(state.value))
        return
    recurrent = _recurrent_layers(model).values()
    for layer in layers:
        if not isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional)):
            raise ValueError(
                f"Argument `rows` is for recurrent layers, and {layer.name} (of class "
                f"{type(layer).__name__}) can only be reset as a whole. "
                f"Received: rows={described(rows)}"
            )
    # Check all layers before one is changed.
    masks = [rows_as_mask(rows, _states_of(layer)[0].shape[0]) for layer in recurrent]
    for layer, mask in zip(recurrent, masks, strict=True):
        if isinstance(layer, InitStateRNN):
            layer.reset_states(rows=mask)
            continue
        for state in _states_of(layer):
            array = np.array(ops.convert_to_numpy(state))
            array[mask] = 0
            state.assign(array)


def get_states(model: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Returns the states that a model carries, to save and to restore them.

    Args:
        model: A Keras model or layer whose stateful layers are built, of this package
            or of Keras.

    Returns:
        A dictionary with an array `(batch, units)` for each state. Its key is the path
        of the layer within the model and the name of the state, such as `"lstm/h0"`. A
        row is NaN if the next call starts it from the owned initial state.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3, or if a stateful
            layer is not built.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, stateful=True, name="lstm")
    >>> model = keras.Sequential([keras.Input((3, 1), batch_size=2), layer])
    >>> outputs = model(np.ones((2, 3, 1)))
    >>> states = keras_init_lstm.streams.get_states(model)
    >>> {name: array.shape for name, array in states.items()}
    {'lstm/h0': (2, 4), 'lstm/c0': (2, 4)}
    >>> keras_init_lstm.streams.reset_states(model)
    >>> keras_init_lstm.streams.set_states(model, states)

    `np.savez("stream.npz", **states)` saves them, and `np.load("stream.npz")` loads
    them.
    """
    check_layer(model, "model")
    backend.write_back(model)
    return {
        name: _carried(state)
        for path, layer in _recurrent_layers(model).items()
        for name, state in _named_states(path, layer)
    }


def set_states(model: keras.layers.Layer, states: Mapping[str, Any]) -> None:
    """Restores the states that `get_states()` returned.

    Args:
        model: The model, or a model with the same layers.
        states: A dictionary of arrays `(batch, units)`, as from `get_states()`, or the
            `.npz` file that `numpy.load()` returns. A row of NaN is reset to the owned
            initial state.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3, if a stateful layer
            is not built, if the keys are not the names of the model's states, or if an
            array does not have the shape of its state, or is not finite. All streams
            are then unchanged.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(2, stateful=True, name="lstm")
    >>> model = keras.Sequential([keras.Input((3, 1), batch_size=1), layer])
    >>> states = {"lstm/h0": [[0.5, 0.25]], "lstm/c0": np.full((1, 2), np.nan)}
    >>> keras_init_lstm.streams.set_states(model, states)
    >>> [state.numpy().tolist() for state in layer.states]
    [[[0.5, 0.25]], [[0.0, 0.0]]]
    """
    check_layer(model, "model")
    backend.write_back(model)
    layers = _recurrent_layers(model)
    states_of_layers = [_named_states(path, layer) for path, layer in layers.items()]
    names = {name for named in states_of_layers for name, _ in named}
    check_names(states, names)
    arrays = [
        [
            checked_state(states[name], name, tuple(state.shape), _dtype_of(state))
            for name, state in named
        ]
        for named in states_of_layers
    ]
    for layer, values in zip(layers.values(), arrays, strict=True):
        if isinstance(layer, InitStateRNN):
            layer._stream_of(len(values[0])).carry(values)
            continue
        for state, value in zip(_states_of(layer), values, strict=True):
            state.assign(np.nan_to_num(value))


class ResetStates(keras.callbacks.Callback):
    """Resets every stateful layer before each epoch, evaluation and prediction.

    Each epoch of `fit()` and each validation in `fit()` then starts from the initial
    states. So does each `evaluate()` or `predict()` that gets the callback.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3, 1), batch_size=2),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable", stateful=True),
    ... ])
    >>> model.compile(loss="mse")
    >>> x, y = np.ones((8, 3, 1)), np.ones((8, 4))
    >>> history = model.fit(
    ...     x, y, batch_size=2, shuffle=False, verbose=0,
    ...     callbacks=[keras_init_lstm.streams.ResetStates()],
    ... )
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        reset_states(self.model)

    def on_test_begin(self, logs: Any = None) -> None:
        reset_states(self.model)

    def on_predict_begin(self, logs: Any = None) -> None:
        reset_states(self.model)


def _recurrent_layers(model: keras.layers.Layer) -> dict[str, keras.layers.RNN]:
    """Returns the stateful recurrent layers of a model by their paths within it."""
    return by_paths(
        model,
        [
            layer
            for layer in layers_within(model)
            if isinstance(layer, keras.layers.RNN) and layer.stateful
        ],
    )


def by_paths(
    model: keras.layers.Layer, layers: Iterable[keras.layers.RNN]
) -> dict[str, keras.layers.RNN]:
    """Returns layers of a model by their paths within it."""
    paths: dict[str, keras.layers.RNN] = {}
    for layer in layers:
        path = path_within(model, layer)
        # In nested or custom models, two layers may have the same name.
        duplicates = sum(other.split("#")[0] == path for other in paths)
        paths[f"{path}#{duplicates}" if duplicates else path] = layer
    return paths


def path_within(model: keras.layers.Layer, layer: keras.layers.Layer) -> str:
    """Returns the path of a layer without the name of the model, which may change."""
    if layer is model:
        return str(layer.name)
    path: str = layer.path or layer.name
    return path.removeprefix(f"{model.name}/")


def _states_of(layer: keras.layers.RNN) -> list[Any]:
    states = keras.tree.flatten(layer.states)
    if any(state is None for state in states):
        raise ValueError(
            f"The stateful layer {layer.name} has no states before it is built: call "
            "the model, or give it an Input with a `batch_size`"
        )
    return states


def _named_states(path: str, layer: keras.layers.RNN) -> list[tuple[str, Any]]:
    pairs = zip(StateLayout.of(layer).names, _states_of(layer), strict=True)
    return [(f"{path}/{name}", state) for name, state in pairs]


def _carried(state: Any) -> np.ndarray:
    return as_written(state.carried() if isinstance(state, CarriedState) else state)


def check_names(states: Any, names: Collection[str]) -> None:
    """Raises a `ValueError` unless `states` is a dictionary with these names."""
    if not isinstance(states, Mapping) or set(states) != set(names):
        given = sorted(states) if isinstance(states, Mapping) else described(states)
        raise ValueError(
            "Argument `states` must be a dictionary with an array for each of "
            f"{sorted(names)}. Received: {given}"
        )


def _dtype_of(state: Any) -> str:
    return keras.backend.standardize_dtype(state.dtype)


def checked_state(value: Any, name: str, shape: Shape, dtype: str) -> np.ndarray:
    """Returns a given state as an array, with NaN in the rows to reset.

    Args:
        value: Anything.
        name: The name of the state, for errors.
        shape: The shape `(batch, ...)` of the state.
        dtype: The dtype in which the other rows must be finite.

    Raises:
        ValueError: If `value` has another shape, or is not finite.
    """
    array, fresh = value, None
    if shape_of(value) == shape and np.asarray(value).dtype.kind == "f":
        array = np.array(value)
        fresh = np.isnan(array).all(axis=tuple(range(1, len(shape))))
        array[fresh] = 0
    array = array_of_shape(array, f"states[{name!r}]", dtype, shape)
    if fresh is not None:
        array[fresh] = np.nan
    return array
