"""Where a stream ends: starting every stateful layer of a model afresh."""

from typing import Any

import keras

from keras_init_lstm.initial_states import received


def reset_states(model: keras.layers.Layer) -> None:
    """Resets every stateful layer of a model, as Keras 2's `Model.reset_states()` did.

    Layers of nested models and of wrappers such as `Bidirectional` are found too.
    An `InitStateLSTM` returns to the initial state it owns, a layer of Keras to
    zeros.

    Args:
        model: A Keras model or layer.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=0.5, stateful=True)
    >>> model = keras.Sequential([keras.Input((3, 1), batch_size=1), layer])
    >>> outputs = model(np.ones((1, 3, 1)))
    >>> keras_init_lstm.reset_states(model)
    >>> layer.states[0].numpy().tolist()
    [[0.5, 0.5]]
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "Argument `model` must be a model or layer of Keras 3. "
            f"Received: {received(model)}"
        )
    # Keras has no public way to reach the layers inside any layer.
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()


class ResetStates(keras.callbacks.Callback):
    """Resets every stateful layer at the start of each epoch and each evaluation.

    Each epoch of `fit()` then reads its stream from the start, each run of
    `evaluate()`, the validation in `fit()` included, reads its own, and so does
    each `predict()` that is given the callback.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3, 1), batch_size=2),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable", stateful=True),
    ... ])
    >>> model.compile(loss="mse")
    >>> x, y = np.ones((8, 3, 1)), np.ones((8, 4))
    >>> history = model.fit(
    ...     x, y, batch_size=2, shuffle=False, verbose=0,
    ...     callbacks=[keras_init_lstm.ResetStates()],
    ... )
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        reset_states(self.model)

    def on_test_begin(self, logs: Any = None) -> None:
        reset_states(self.model)

    def on_predict_begin(self, logs: Any = None) -> None:
        reset_states(self.model)
