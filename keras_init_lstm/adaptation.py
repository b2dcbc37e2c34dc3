"""Adapting a trained model by nothing but where it starts."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import check_layer, described, shape_of
from keras_init_lstm._copies import hand_over
from keras_init_lstm._keras import layers_within, set_trainable_of_itself
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import unbuilt
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams.states import by_paths
from keras_init_lstm.streams.step_model import check_states, make_stepping

__all__ = ["estimate_initial_state", "train_only_initial_state"]


def train_only_initial_state(model: keras.layers.Layer) -> Callable[[], None]:
    """Freezes all of a model but the initial states of its recurrent layers.

    So that a trained model adapts to a new machine, user or task by a handful of
    numbers. Compile the model afterwards, as after any change of `trainable`.

    Args:
        model: A model or layer of Keras 3, built, with layers of this package. It is
            changed in place. A frozen initial state is learned from now on, but not a
            `Fixed` one, nor a `Sampled` one with `learned=False`.

    Returns:
        A function without arguments that undoes it: all is as frozen as before.

    Raises:
        ValueError: If `model` is none, or has no initial state to learn. Nothing is
            then changed.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((None, 3)),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable"),
    ...     keras.layers.Dense(1),
    ... ])
    >>> undo = keras_init_lstm.adaptation.train_only_initial_state(model)
    >>> model.compile("adam", "mse")
    >>> history = model.fit(np.ones((8, 5, 3)), np.ones((8, 1)), verbose=0)
    >>> [v.path.split("/", 2)[2] for v in model.trainable_variables]
    ['h0/value', 'c0/value']
    >>> undo()
    >>> len(model.trainable_variables)
    7
    """
    check_layer(model, "model")
    layers, variables = layers_within(model), model.variables
    flags = [(each, each.trainable) for each in (*layers, *variables)]

    def undo() -> None:
        for each, trainable in flags:
            if isinstance(each, keras.layers.Layer):
                set_trainable_of_itself(each, trainable)
            else:
                each.trainable = trainable

    kinds = [layer for layer in layers if isinstance(layer, InitialState)]
    for kind in kinds:
        if not kind.trainable:
            kind.trainable = True
    of_kinds = {id(each) for kind in kinds for each in _within(kind)}
    for layer in layers:
        if id(layer) in of_kinds:
            continue
        if of_kinds.isdisjoint(map(id, layers_within(layer))):
            layer.trainable = False
        else:
            # Keras trains nothing inside a frozen layer.
            set_trainable_of_itself(layer, True)
    for variable in variables:
        if id(variable) not in of_kinds:
            variable.trainable = False
    if not model.trainable_variables:
        undo()
        raise ValueError(
            "Argument `model` must have an initial state to learn, such as "
            "`initial_state='trainable'`, and be built. `with_initial_state(model, "
            f"'trainable')` makes one of any model. Received: {described(model)}"
        )
    return undo


def _within(kind: InitialState) -> list[Any]:
    return [*layers_within(kind), *kind.variables]


def estimate_initial_state(
    layer_or_model: keras.layers.Layer,
    x: Any,
    y: Any,
    loss: Any = "mse",
    steps: int = 300,
    learning_rate: float = 0.05,
) -> Any:
    """Returns the initial states that best explain data under frozen weights.

    One for each sequence: the state from which a trained model best explains a series
    that it has not seen before, to continue from there after a few values of it. Adam
    searches them from the initial states that the layers own. The layers are left
    unchanged. `findstates` of MATLAB's System Identification Toolbox does the same for
    state-space models.

    Args:
        layer_or_model: A recurrent layer of this package or of Keras, built; or a
            Sequential or Functional model with such layers that read forwards.
        x: The inputs: an array `(batch, timesteps, features)`, or a list of arrays for
            a model of several inputs.
        y: The targets: what it should return for `x`.
        loss: Loss function, or the name of one. Defaults to `"mse"`.
        steps: Positive integer, the number of steps of the optimizer. Defaults to 300.
        learning_rate: Positive float, the learning rate of the first step. It falls to
            zero along half a cosine. Defaults to 0.05.

    Returns:
        For a layer, the states for `initial_state=`: a list of arrays `(batch, units)`,
        nested as the cell's `state_size`. For a model, a dictionary of such arrays for
        `set_states(as_stateful(model, batch), ...)`.

    Raises:
        ValueError: If `layer_or_model` is none of these, if `x` or `y` does not fit
            it, or if `steps` or `learning_rate` is not positive.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, return_sequences=True)
    >>> x, h, c = np.ones((2, 9, 3)), np.full((2, 4), 0.5), np.full((2, 4), -0.5)
    >>> y = layer(x, initial_state=[h, c])
    >>> states = keras_init_lstm.adaptation.estimate_initial_state(layer, x, y)
    >>> bool(np.abs(layer(x, initial_state=states) - y).max() < 0.01)
    True
    """
    for argument, value in (("steps", steps), ("learning_rate", learning_rate)):
        types = (int, np.integer) if argument == "steps" else (int, float, np.number)
        if (
            type(value) is bool
            or not isinstance(value, types)
            or not 0 < value < float("inf")
        ):
            raise ValueError(
                f"Argument `{argument}` must be positive. "
                f"Received: {argument}={described(value)}"
            )
    batch_size: Any = None
    for argument, value in (("x", x), ("y", y)):
        rows = {_rows_of(leaf) for leaf in keras.tree.flatten(value)}
        batch_size = batch_size or next(iter(rows), None)
        if not batch_size or rows != {batch_size}:
            raise ValueError(
                f"Argument `{argument}` must be an array with one row for each "
                "sequence, at least one, or a structure of them. "
                f"Received: {argument}={described(value)}"
            )
    inputs = list(map(ops.convert_to_numpy, keras.tree.flatten(x)))
    y = keras.tree.map_structure(ops.convert_to_numpy, y)
    names = None
    if not isinstance(layer_or_model, keras.layers.RNN):
        if not isinstance(layer_or_model, keras.Model):
            raise ValueError(
                "Argument `layer_or_model` must be a recurrent layer, or a Sequential "
                f"or Functional model. Received: {described(layer_or_model)}"
            )
        started, names = _of_model(layer_or_model, batch_size)
    elif layer_or_model.built:
        check_states(layer_or_model)
        started = _of_layer(layer_or_model, batch_size)
    else:
        raise ValueError(
            "Argument `layer_or_model` must be built: call it once. "
            f"Received: {described(layer_or_model)}"
        )
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    started.compile(keras.optimizers.Adam(schedule), loss)
    given = inputs if len(inputs) > 1 else inputs[0]
    with _blaming("x", x, "what the layer or model is called with"):
        outputs = started(given)
    with _blaming("y", y, "what `loss` compares with the outputs"):
        started.compute_loss(x=given, y=y, y_pred=outputs)
    for _ in range(steps):
        started.train_on_batch(given, y)
    found = [np.array(ops.convert_to_numpy(state)) for state in started.states]
    if names is None:
        return StateLayout.of(layer_or_model).pack(found)
    return dict(zip(names, found, strict=True))


def _rows_of(array: Any) -> int | None:
    return (shape_of(array) or (None,))[0]


@contextlib.contextmanager
def _blaming(argument: str, value: Any, expectation: str) -> Iterator[None]:
    """Raises a `ValueError` about an argument in place of what a first use raises."""
    try:
        yield
    except Exception as error:  # Each backend has its own.
        blamed = re.search(r"Argument `(\w+)", str(error))
        if blamed and blamed[1] != "sequences":
            raise  # It names an argument of its own.
        raise ValueError(
            f"Argument `{argument}` must be {expectation}. "
            f"Received: {argument}={described(value)}, of which it says: {error}"
        ) from error


class _Started(keras.Model):
    """A model whose only weights are what its rows start from.

    Args:
        call: Function of the inputs and the list of states.
        layers: The recurrent layers whose states these are.
        batch_size: The number of rows.
    """

    def __init__(
        self, call: Callable[[Any, Any], Any], layers: Sequence[Any], batch_size: int
    ) -> None:
        super().__init__(name="started", dtype=layers[0].variable_dtype)
        self._call_with = call
        # Keras can't see the layers, which are not to be trained.
        self.supports_jit = all(layer.supports_jit for layer in layers)
        self.states = [
            self.add_weight(name=f"state{index}", shape=state.shape, initializer=state)
            for index, state in enumerate(
                state for layer in layers for state in _starts(layer, batch_size)
            )
        ]

    def call(self, inputs: Any) -> Any:
        return self._call_with(inputs, [state.value for state in self.states])


def _starts(layer: Any, batch_size: int) -> list[Any]:
    """What estimation starts from: the owned states, and zeros for `Conditional`."""
    if not isinstance(layer, InitStateRNN):
        return keras.tree.flatten(layer.get_initial_state(batch_size))
    count = len(layer.state_names)
    previews = [layer._owned.preview(index, batch_size) for index in range(count)]
    return [ops.nan_to_num(ops.cast(p, layer.variable_dtype)) for p in previews]


def _of_layer(layer: Any, batch_size: int) -> _Started:
    frozen = unbuilt(layer, stateful=False, return_state=False)
    frozen.build_from_config(layer.get_build_config())
    hand_over(layer.cell, frozen.cell)
    layout = StateLayout.of(layer)

    def call(inputs: Any, states: Any) -> Any:
        return frozen(inputs, initial_state=layout.pack(states))

    return _Started(call, [layer], batch_size)


def _of_model(model: Any, batch_size: int) -> tuple[_Started, list[str]]:
    stepping = make_stepping(model)
    layers, copied = stepping.layers, stepping.copied
    if not layers:
        raise ValueError(
            "Argument `layer_or_model` must have a recurrent layer. "
            f"Received: {described(model)}"
        )

    def call(inputs: Any, states: Any) -> Any:
        outputs = stepping.model([*keras.tree.flatten(inputs), *states])
        return stepping.outputs_of_model(outputs)

    # In the order in which `set_states()` finds them.
    found = by_paths(copied, [each for each in layers_within(copied) if each in layers])
    paths = {id(layer): path for path, layer in found.items()}
    names = [
        f"{paths[id(layer)]}/{name}"
        for layer in layers
        for name in StateLayout.of(layer).names
    ]
    return _Started(call, layers, batch_size), names
