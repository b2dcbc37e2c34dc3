"""Stateful and stateless copies of a model, for other batch sizes."""

from collections.abc import Callable, Set
from typing import Any

import keras

from keras_init_lstm._checks import check_positive_integer, described
from keras_init_lstm._copies import (
    copy_layer,
    copy_with_inner,
    inner_layers,
)
from keras_init_lstm._keras import layers_within
from keras_init_lstm.layers._from_keras import hand_over_weights, unbuilt
from keras_init_lstm.streams._sources import Sources


def as_stateful(model: keras.Model, batch_size: int) -> keras.Model:
    """Returns a copy of a model whose recurrent layers are stateful.

    A model that was trained on batches of whole sequences then reads `batch_size`
    streams in chunks, for example one stream timestep by timestep.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package or of Keras, in nested models too. It is left unchanged. For chunks
            of any length, its inputs must have an unknown number of timesteps.
        batch_size: Positive integer, the number of streams.

    Returns:
        A model of the same class and name, with the weights of `model`, which shares
        nothing with it. If `model` is compiled, the copy is compiled with the same
        arguments and a new optimizer. All streams start from the initial states. A
        layer inside a `TimeDistributed` reads a whole sequence at each timestep, and
        stays as it is; a layer that reads only sources (see `as_encoder_and_decoder()`)
        does too, such as an encoder of the context. A layer that reads several
        timesteps and carries no state, such as `Conv1D`, sees only the present chunk.

    Raises:
        ValueError: If `model` or `batch_size` is not as above; if a layer reads the
            future of a stream, as a `Bidirectional` layer or a layer with
            `go_backwards=True` does; if a layer is given its initial state; or if the
            code of a custom layer creates a recurrent layer that is not stateful.

    Example:
    >>> lstm = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> model = keras.Sequential([keras.Input((None, 3)), lstm, keras.layers.Dense(1)])
    >>> online = keras_init_lstm.streams.as_stateful(model, batch_size=1)
    >>> x = np.ones((1, 5, 3))
    >>> for t in range(5):
    ...     prediction = online(x[:, t : t + 1])
    >>> bool(np.allclose(prediction, model(x), atol=1e-6))
    True
    """
    check_positive_integer(batch_size, "batch_size")
    return _copied(model, int(batch_size), stateful=True)


def as_stateless(model: keras.Model) -> keras.Model:
    """Returns a copy of a model that carries no state, for batches of any size.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package or of Keras, in nested models and in `Bidirectional` too. It is
            left unchanged.

    Returns:
        A model of the same class and name, with the weights of `model`, which shares
        nothing with it. If `model` is compiled, the copy is compiled with the same
        arguments and a new optimizer.

    Raises:
        ValueError: If `model` is not as above, or if the code of a custom layer
            creates a stateful recurrent layer.

    Example:
    >>> lstm = keras_init_lstm.InitStateLSTM(4, stateful=True)
    >>> stream = keras.Sequential([keras.Input((None, 3), batch_size=1), lstm])
    >>> model = keras_init_lstm.streams.as_stateless(stream)
    >>> model.predict(np.ones((32, 5, 3)), verbose=0).shape
    (32, 4)
    """
    return _copied(model, None, stateful=False)


def check_reads_forwards(layer: Any) -> None:
    """Raises a `ValueError` if a layer, or one inside it, reads the future."""
    _check(layer, stateful=True)


def _copied(
    model: Any,
    batch_size: int | None,
    stateful: bool,
) -> keras.Model:
    check_model(model)
    sources = Sources(model)
    of_sources = sources.layers() if stateful and sources.has_targets else set()
    given = [layer for layer in sources.given if id(layer) not in of_sources]
    if stateful and given:
        raise ValueError(
            f"The layer {given[0].name} is given its initial state at each call, and a "
            "stateful copy would not continue from its last states. "
            "`as_encoder_and_decoder(model)` returns a model with the states as inputs "
            "and outputs, and `StreamStore(model)` carries them"
        )
    unchanged = of_sources | _check(model, stateful, of_sources)

    def with_batch_size(tensor: Any) -> Any:
        shape = (batch_size, *tensor.shape[1:])
        return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)

    def make(layer: Any, copy_inner: Callable[[Any], Any]) -> Any:
        if isinstance(layer, keras.layers.RNN) and id(layer) not in unchanged:
            return unbuilt(layer, stateful=stateful)
        return copy_with_inner(layer, copy_inner, with_batch_size)

    copied = copy_layer(model, make)
    # The copied model has built its layers for the new batch size.
    for layer, new_layer in zip(_recurrent(model), _recurrent(copied), strict=True):
        hand_over_weights(layer, new_layer)
    return copied


def check_model(model: Any) -> None:
    """Raises a `ValueError` if `model` can't be copied with other layers."""
    if not (isinstance(model, keras.Model) and inner_layers(model) is not None):
        raise ValueError(
            "Argument `model` must be a Sequential or Functional model of Keras 3. "
            f"Received: {described(model)}"
        )
    if not model.built:
        raise ValueError(
            "Argument `model` must be built: give it an `Input`, or call it once. "
            f"Received: {described(model)}"
        )


def _check(layer: Any, stateful: bool, of_sources: Set[int] = frozenset()) -> set[int]:
    """Raises a `ValueError` if a layer, or one inside it, can't be made (un)stateful.

    Args:
        layer: Any layer or model.
        stateful: Boolean.
        of_sources: The `id()`s of layers that are not checked.

    Returns:
        The `id()`s of the layers that must stay as they are.
    """
    if id(layer) in of_sources:
        return set()
    if isinstance(layer, keras.layers.RNN):
        if stateful and layer.go_backwards:
            raise _reads_the_future(layer)
        return set()
    if stateful and isinstance(layer, keras.layers.Bidirectional):
        raise _reads_the_future(layer)
    if stateful and isinstance(layer, keras.layers.TimeDistributed):
        return set(map(id, layers_within(layer)))
    inner = inner_layers(layer)
    if inner is not None:
        return {i for x in inner for i in _check(x, stateful, of_sources)}
    for recurrent in _recurrent(layer):
        if recurrent.stateful != stateful:
            raise ValueError(
                f"The layer {recurrent.name} is made by the code of the class "
                f"{type(layer).__name__} (of {layer.name}), which cannot be rewritten. "
                f"Write `stateful={stateful}` in its constructor"
            )
    return set()


def _reads_the_future(layer: keras.layers.Layer) -> ValueError:
    return ValueError(
        f"The layer {layer.name} (of class {type(layer).__name__}) reads sequences "
        "from their ends, which are the future of a stream: a model with it can't be "
        "stateful. Leave it out, or read whole sequences"
    )


def _recurrent(layer: Any) -> list[Any]:
    return [x for x in layers_within(layer) if isinstance(x, keras.layers.RNN)]
