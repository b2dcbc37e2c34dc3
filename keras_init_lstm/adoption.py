"""Adopting what exists: models that get layers which own their initial state."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from keras_init_lstm._checks import described, is_legacy
from keras_init_lstm._copies import copy_layer, inner_layers, make_anew
from keras_init_lstm._keras import layers_within
from keras_init_lstm.layers.gru import InitStateGRU
from keras_init_lstm.layers.lstm import InitStateLSTM
from keras_init_lstm.layers.rnn import InitialStateArgument, InitStateRNN
from keras_init_lstm.layers.simple_rnn import InitStateSimpleRNN

_FAMILY: tuple[type[InitStateRNN], ...] = (
    InitStateLSTM,
    InitStateGRU,
    InitStateSimpleRNN,
    InitStateRNN,
)
# What takes the place of a layer, by its exact class: a subclass may compute something
# else, and is left alone.
_OF_KERAS: dict[type, type[InitStateRNN]] = {cls.keras_layer: cls for cls in _FAMILY}
_REPLACED = {**_OF_KERAS, **{cls: cls for cls in _FAMILY}}


def add_counterpart(layer: type, ours: type[InitStateRNN]) -> None:
    """Lets a class of this package take the place of a further class of layers."""
    _OF_KERAS[layer] = _REPLACED[layer] = _REPLACED[ours] = ours


def counterpart_of(layer: keras.layers.RNN) -> type[InitStateRNN]:
    """The class of this package that takes the place of a recurrent layer.

    Raises:
        ValueError: If there is none, as for a custom class.
    """
    if type(layer) not in _REPLACED:
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) is not one of "
            f"{', '.join(dict.fromkeys(cls.__name__ for cls in _REPLACED))}"
        )
    return _REPLACED[type(layer)]


def with_initial_state(
    model: keras.Model,
    initial_state: InitialStateArgument = None,
    where: str | Iterable[str] | Callable[[Any], bool] | None = None,
) -> keras.Model:
    """Returns a model whose recurrent layers own their initial state.

    Each `LSTM`, `GRU`, `SimpleRNN` and `RNN` of Keras is replaced by the layer of this
    package, with its weights, in Sequential, Functional and nested models and in
    `Bidirectional` and `TimeDistributed`. While the states are zero, as `"trainable"`
    ones are at first, its predictions are bit-identical with the predictions of
    `model`; further training then learns the states too. For that, the fused loop is
    off; set `use_fused = "auto"` on a layer to switch it on.

    Args:
        model: A Sequential or Functional model of Keras 3. It is left as it is.
        initial_state: The initial states of each layer, as in the constructors:
            usually `"trainable"`. Defaults to `None`, which is zeros.
        where: Which layers to replace: a name or a list of names, of layers or of
            wrappers or nested models around layers; or a function that takes a
            recurrent layer and returns whether to replace it. Layers of this package
            are replaced only if they are chosen by `where`. Defaults to `None`, all.

    Returns:
        A model of the same name and class that shares nothing with `model`. What is
        frozen is frozen. A compiled model is compiled likewise, but its optimizer
        starts anew, at step 0 and without momenta.

    Raises:
        ValueError: If `model` is not a model of Keras 3, or not one that can be
            rewritten; if nothing is chosen by `where`, or there is nothing to choose.
            A subclassed model cannot be rewritten: in its constructor, write
            `self.lstm = InitStateLSTM(units, initial_state="trainable")`, and hand
            over the weights, layer by layer, as in the second example.

    Example:
    >>> model = keras.Sequential([keras.layers.LSTM(4), keras.layers.Dense(1)])
    >>> x = np.ones((2, 10, 8))
    >>> before = model.predict(x, verbose=0)
    >>> learning = keras_init_lstm.with_initial_state(model, "trainable")
    >>> bool((learning.predict(x, verbose=0) == before).all())
    True
    >>> learning.layers[0].state_names
    ('h0', 'c0')

    >>> lstm = model.layers[0]  # or `old.lstm`, of a subclassed model
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
                "Argument `where` must be None, a name, names, or a function of a "
                f"layer. Received: where={described(where)}"
            ) from error
    chosen = set()
    for layer, names, holder in found:
        if where is None:
            wanted = type(layer) in _OF_KERAS
        else:
            wanted = where(layer) if callable(where) else not names.isdisjoint(where)
        if not wanted:
            continue
        if holder is not None:
            raise ValueError(
                f"The layer {layer.name} is made by the code of the class "
                f"{type(holder).__name__} (of {holder.name}), which cannot be "
                "rewritten. Write `InitStateLSTM(..., initial_state=...)`, or "
                "`InitStateLSTM.from_keras(lstm, initial_state=...)`, in its "
                "constructor, and hand the weights over layer by layer: "
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
            return _REPLACED[type(layer)].from_keras(layer, initial_state)
        if type(layer) in _OF_KERAS.values():
            return type(layer).from_keras(layer)  # It continues its stream.
        return make_anew(layer, copy_inner)

    return copy_layer(model, make)


def _recurrent_layers(
    layer: keras.layers.Layer,
    names: tuple[str, ...],
    holder: keras.layers.Layer | None,
) -> Iterator[tuple[Any, set[str], Any]]:
    """Yields each layer that may be replaced, once for each place where it stands.

    With it the names by which `where` may choose it, and the layer, if any, whose own
    code made it, so that nothing can take its place.
    """
    names = (*names, layer.name)
    if type(layer) in _REPLACED:
        yield layer, set(names), holder
        return
    inner = inner_layers(layer)
    if inner is None:
        holder = holder or layer
        inner = layers_within(layer, include_self=False, recursive=False)
    for each in inner:
        yield from _recurrent_layers(each, names, holder)
