"""Replaces the layers of existing models by layers that own their initial state."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_init_lstm._checks import described, is_legacy
from keras_init_lstm._copies import copy_layer, copy_with_inner, inner_layers
from keras_init_lstm._keras import layers_within
from keras_init_lstm.layers._owns_states import InitialStateArgument
from keras_init_lstm.layers.conv_lstm import (
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
)
from keras_init_lstm.layers.gru import InitStateGRU
from keras_init_lstm.layers.lstm import InitStateLSTM
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.layers.simple_rnn import InitStateSimpleRNN

_FAMILY: tuple[type[InitStateRNN], ...] = (
    InitStateLSTM,
    InitStateGRU,
    InitStateSimpleRNN,
    InitStateRNN,
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
)
# The class that replaces a layer, by the exact class of the layer: a subclass may
# compute something else, and is not replaced.
_OF_KERAS: dict[type, type[InitStateRNN]] = {cls.keras_layer: cls for cls in _FAMILY}
_COUNTERPARTS = {**_OF_KERAS, **{cls: cls for cls in _FAMILY}}


def add_counterpart(layer: type, counterpart: type[InitStateRNN]) -> None:
    """Registers a class of this package that replaces another class of layers."""
    _OF_KERAS[layer] = _COUNTERPARTS[layer] = counterpart
    _COUNTERPARTS[counterpart] = counterpart


def counterpart_of(layer: keras.layers.RNN) -> type[InitStateRNN]:
    """Returns the class of this package that replaces a recurrent layer.

    Raises:
        ValueError: If there is none, as for a custom class.
    """
    if type(layer) not in _COUNTERPARTS:
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) is not one of "
            f"{', '.join(dict.fromkeys(cls.__name__ for cls in _COUNTERPARTS))}"
        )
    return _COUNTERPARTS[type(layer)]


def with_initial_state(
    model: keras.Model,
    initial_state: InitialStateArgument = None,
    where: str | Iterable[str] | Callable[[Any], bool] | None = None,
) -> keras.Model:
    """Returns a copy of a model whose recurrent layers own their initial state.

    It replaces each `LSTM`, `GRU`, `SimpleRNN`, `RNN` and `ConvLSTM1D` to `ConvLSTM3D`
    of Keras by the layer of this package, with its weights, in Sequential, Functional
    and nested models and in `Bidirectional` and `TimeDistributed`. While the initial
    states are zero, as `"trainable"` ones are before training, its predictions and the
    predictions of `model` are bit-identical. Further training learns the initial states
    too. The new layers have `use_fused=False`. Set `layer.use_fused = "auto"` for the
    fused loop.

    Args:
        model: A Sequential or Functional model of Keras 3. It is left unchanged.
        initial_state: The initial states of each layer, as in the constructors:
            usually `"trainable"`. Defaults to `None`, which is zeros.
        where: The layers to replace: a name or a list of names, of layers or of
            wrappers or nested models around layers; or a function that takes a
            recurrent layer and returns whether to replace it. Layers of this package
            are replaced only if `where` chooses them. Defaults to `None`, all layers
            of Keras.

    Returns:
        A model of the same name and class, which shares nothing with `model`. Frozen
        weights stay frozen. If `model` is compiled, the copy is compiled with the same
        arguments and a new optimizer, at step 0 and without momenta.

    Raises:
        ValueError: If `model` is not a model of Keras 3; if `where` chooses no layer,
            or has an unknown name; if `initial_state` does not fit a layer; or if the
            code of a custom class creates a chosen layer, as in a subclassed model.
            There, write `self.lstm = InitStateLSTM(units, initial_state="trainable")`
            in the constructor, and copy the weights layer by layer, as in the second
            example.

    Example:
    >>> model = keras.Sequential([keras.layers.LSTM(4), keras.layers.Dense(1)])
    >>> x = np.ones((2, 10, 8))
    >>> before = model.predict(x, verbose=0)
    >>> learning = keras_init_lstm.with_initial_state(model, "trainable")
    >>> bool((learning.predict(x, verbose=0) == before).all())
    True
    >>> learning.layers[0].state_names
    ('h0', 'c0')

    >>> lstm = model.layers[0]  # or `old.lstm` of a subclassed model
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> outputs = layer(x)
    >>> layer.cell.set_weights(lstm.get_weights())
    """
    if not isinstance(model, keras.Model):
        advice = (
            ". Save it as .h5 or .keras, and load it with `keras2.load_model()`"
            if is_legacy(model)
            else ""
        )
        raise ValueError(
            "Argument `model` must be a model of Keras 3. "
            f"Received: {described(model)}{advice}"
        )
    found = list(_recurrent_layers(model, (), None))
    if isinstance(where, str):
        where = [where]
    if not (where is None or callable(where)):
        try:
            where = set(where)
        except TypeError as error:
            raise ValueError(
                "Argument `where` must be None, a name, a list of names, or a function "
                f"of a layer. Received: where={described(where)}"
            ) from error
    chosen = set()
    for layer, names, holder in found:
        if where is None:
            is_chosen = type(layer) in _OF_KERAS
        else:
            is_chosen = where(layer) if callable(where) else not names.isdisjoint(where)
        if not is_chosen:
            continue
        if holder is not None:
            raise ValueError(
                f"The layer {layer.name} is made by the code of the class "
                f"{type(holder).__name__} (of {holder.name}), which cannot be "
                "rewritten. Write `InitStateLSTM(..., initial_state=...)`, or "
                "`InitStateLSTM.from_keras(lstm, initial_state=...)`, in its "
                "constructor, and copy the weights layer by layer: "
                "`new.lstm.cell.set_weights(old.lstm.get_weights())`"
            )
        chosen.add(id(layer))
    unknown = [] if where is None or callable(where) else list(where)
    unknown = [n for n in unknown if not any(n in names for _, names, _ in found)]
    if not chosen or unknown:
        layers = [f"{layer.name} ({type(layer).__name__})" for layer, _, _ in found]
        raise ValueError(
            "Argument `where` must choose from the recurrent layers of the model, "
            f"which are: {', '.join(layers) or 'none'}. "
            f"Received: where={described(where)}"
        )

    def make(layer: Any, copy_inner: Callable[[Any], Any]) -> Any:
        if id(layer) in chosen:
            return _COUNTERPARTS[type(layer)].from_keras(layer, initial_state)
        if type(layer) in _OF_KERAS.values():
            return type(layer).from_keras(layer)  # `from_keras()` copies the stream.
        return copy_with_inner(layer, copy_inner)

    return copy_layer(model, make)


def _recurrent_layers(
    layer: keras.layers.Layer,
    names: tuple[str, ...],
    holder: keras.layers.Layer | None,
) -> Iterator[tuple[Any, set[str], Any]]:
    """Yields the layers that may be replaced, a shared layer more than once.

    With each layer it yields the names by which `where` may choose it, and the custom
    layer whose code created it and which can't be rewritten, or `None`.
    """
    names = (*names, layer.name)
    if type(layer) in _COUNTERPARTS:
        yield layer, set(names), holder
        return
    inner = inner_layers(layer)
    if inner is None:
        holder = holder or layer
        inner = layers_within(layer, include_self=False, recursive=False)
    for inner_layer in inner:
        yield from _recurrent_layers(inner_layer, names, holder)
