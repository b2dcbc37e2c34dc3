"""Adapts a trained model by its initial states alone."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import check_layer, described, shape_of
from keras_init_lstm._copies import hand_over
from keras_init_lstm._keras import layers_within, set_trainable_flag
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import unbuilt
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams._sources import Sources
from keras_init_lstm.streams.encoder_decoder import make_encoder_and_step_model
from keras_init_lstm.streams.stateful import check_model
from keras_init_lstm.streams.step_model import make_step_model

__all__ = ["estimate_initial_state", "train_only_initial_state"]


class _TrainableFlags:
    """The `trainable` attributes of layers and variables, to restore them.

    Args:
        owners: The layers and variables.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._flags = [(owner, owner.trainable) for owner in owners]

    def __call__(self) -> None:
        for owner, trainable in self._flags:
            if isinstance(owner, keras.layers.Layer):
                set_trainable_flag(owner, trainable)
            else:
                owner.trainable = trainable

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self()


def train_only_initial_state(model: keras.layers.Layer) -> _TrainableFlags:
    """Freezes a model except for the initial states of its recurrent layers.

    A trained model then adapts to a new machine, user or task with few numbers to
    learn. In a `with` statement, it is frozen only inside the block. Compile the model
    after it is frozen, and again after it is restored, as after any change of
    `trainable`.

    Args:
        model: A model or layer of Keras 3, built, with layers of this package. It is
            changed in place. A frozen initial state becomes trainable, except for a
            `Fixed` state, and for a `Sampled` state with `learned=False`.

    Returns:
        A function without arguments that restores all `trainable` attributes. It is
        also a context manager, which restores them at the end of a `with` block, also
        after an error.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3, or has no initial
            state to learn. Nothing is then changed.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((None, 3)),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable"),
    ...     keras.layers.Dense(1),
    ... ])
    >>> with keras_init_lstm.adaptation.train_only_initial_state(model):
    ...     model.compile("adam", "mse")
    ...     history = model.fit(np.ones((8, 5, 3)), np.ones((8, 1)), verbose=0)
    ...     [v.path.split("/", 2)[2] for v in model.trainable_variables]
    ['h0/value', 'c0/value']
    >>> len(model.trainable_variables)
    7

    `undo = train_only_initial_state(model)` does the same until `undo()` is called.
    """
    check_layer(model, "model")
    layers, variables = layers_within(model), model.variables
    undo = _TrainableFlags([*layers, *variables])
    kinds = [layer for layer in layers if isinstance(layer, InitialState)]
    for kind in kinds:
        if not kind.trainable:
            kind.trainable = True
    learned = {id(x) for kind in kinds for x in (*layers_within(kind), *kind.variables)}
    for layer in layers:
        if id(layer) in learned:
            continue
        if learned.isdisjoint(map(id, layers_within(layer))):
            layer.trainable = False
        else:
            # Keras trains nothing inside a frozen layer.
            set_trainable_flag(layer, True)
    for variable in variables:
        if id(variable) not in learned:
            variable.trainable = False
    if not model.trainable_variables:
        undo()
        raise ValueError(
            "Argument `model` must have an initial state to learn, such as "
            "`initial_state='trainable'`, and be built. `with_initial_state(model, "
            "'trainable')` returns such a model from any model. "
            f"Received: {described(model)}"
        )
    return undo


def estimate_initial_state(
    layer_or_model: keras.layers.Layer,
    x: Any,
    y: Any,
    loss: Any = "mse",
    steps: int = 300,
    learning_rate: float = 0.05,
) -> dict[str, np.ndarray]:
    """Returns the initial state of each sequence that best explains its data.

    The weights stay frozen. A trained model can then continue a new series from its
    first values. Adam minimises the loss over the initial states, from the initial
    states that the layers own or are given. The layers are left unchanged. `findstates`
    of MATLAB's System Identification Toolbox does the same for state-space models.

    Args:
        layer_or_model: A recurrent layer of this package or of Keras, built; or a
            Sequential or Functional model with such layers that read forwards.
        x: The inputs: an array `(batch, timesteps, features)`, or a list of arrays for
            a model with several inputs.
        y: The targets of the outputs for `x`.
        loss: Loss function, or its name. Defaults to `"mse"`.
        steps: Positive integer, the number of steps of the optimizer. Defaults to 300.
        learning_rate: Positive float, the learning rate of the first step. It falls to
            zero along half a cosine. Defaults to 0.05.

    Returns:
        A dictionary with an array `(batch, units)` for each state. Its keys are the
        keys of `get_states()`, such as `"lstm/h0"`. `set_states(as_stateful(model,
        batch), states)` takes it, and so does `store[ids] = states` of a
        `StreamStore(model)`. For a layer of this package, so do `layer(x,
        initial_state=states)` and `assign_initial_state(states, reduction="mean")`. A
        layer of Keras takes `list(states.values())`.

    Raises:
        ValueError: If `layer_or_model` is none of these, is not built, or can't be a
            stream (see `with_states_as_inputs()` and `as_encoder_and_decoder()`); if
            `x`, `y` or `loss` does not fit it; or if `steps` or `learning_rate` is not
            positive.

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
        batch_sizes = {_batch_size_of(leaf) for leaf in keras.tree.flatten(value)}
        batch_size = batch_size or next(iter(batch_sizes), None)
        if not batch_size or batch_sizes != {batch_size}:
            raise ValueError(
                f"Argument `{argument}` must be an array with one row for each "
                "sequence, at least one, or a structure of arrays. "
                f"Received: {argument}={described(value)}"
            )
    inputs = list(map(ops.convert_to_numpy, keras.tree.flatten(x)))
    y = keras.tree.map_structure(ops.convert_to_numpy, y)
    if not isinstance(layer_or_model, keras.layers.RNN):
        if not isinstance(layer_or_model, keras.Model):
            raise ValueError(
                "Argument `layer_or_model` must be a recurrent layer, or a Sequential "
                f"or Functional model. Received: {described(layer_or_model)}"
            )
        estimator, names = _estimator_of_model(layer_or_model, inputs, batch_size)
    elif layer_or_model.built:
        estimator, names = _estimator_of_layer(layer_or_model, batch_size)
    else:
        raise ValueError(
            "Argument `layer_or_model` must be built: call it once. "
            f"Received: {described(layer_or_model)}"
        )
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    estimator.compile(keras.optimizers.Adam(schedule), loss)
    given = inputs if len(inputs) > 1 else inputs[0]
    with _as_error_of("x", x, "fit the inputs of the layer or model"):
        outputs = estimator(given)
    with _as_error_of("y", y, "fit the outputs and `loss`"):
        estimator.compute_loss(x=given, y=y, y_pred=outputs)
    for _ in range(steps):
        estimator.train_on_batch(given, y)
    estimates = [np.array(ops.convert_to_numpy(state)) for state in estimator.states]
    return dict(zip(names, estimates, strict=True))


def _batch_size_of(array: Any) -> int | None:
    return (shape_of(array) or (None,))[0]


@contextlib.contextmanager
def _as_error_of(argument: str, value: Any, expectation: str) -> Iterator[None]:
    """Raises any error as a `ValueError` that names the argument."""
    try:
        yield
    except Exception as error:  # Each backend raises its own class of errors.
        named = re.search(r"Argument `(\w+)", str(error))
        if named and named[1] != "sequences":
            raise  # The error names another argument.
        raise ValueError(
            f"Argument `{argument}` must {expectation}. "
            f"Received: {argument}={described(value)}, which raises: {error}"
        ) from error


class _Estimator(keras.Model):
    """A model whose only weights are the initial states of the rows of one batch.

    Args:
        call: Function that takes the inputs and the list of initial states.
        layers: The recurrent layers whose initial states are estimated.
        batch_size: The number of rows.
        starts: The first estimates, in order. Defaults to `None`: the initial states
            that the layers own.
    """

    def __init__(
        self,
        call: Callable[[Any, Any], Any],
        layers: Sequence[Any],
        batch_size: int,
        starts: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(name="estimator", dtype=layers[0].variable_dtype)
        self._call_with = call
        # Keras does not see the layers, which are not trained.
        self.supports_jit = all(layer.supports_jit for layer in layers)
        if starts is None:
            starts = [
                x for layer in layers for x in _first_estimates(layer, batch_size)
            ]
        self.states = [
            self.add_weight(
                name=f"state{index}",
                shape=state.shape,
                initializer=ops.convert_to_tensor(state),
            )
            for index, state in enumerate(starts)
        ]

    def call(self, inputs: Any) -> Any:
        return self._call_with(inputs, [state.value for state in self.states])


def _first_estimates(layer: Any, batch_size: int) -> list[Any]:
    """Returns the owned initial states, and zeros for `Conditional`."""
    if not isinstance(layer, InitStateRNN):
        return keras.tree.flatten(layer.get_initial_state(batch_size))
    count = len(layer.state_names)
    previews = [layer._owned.preview(index, batch_size) for index in range(count)]
    return [ops.nan_to_num(ops.cast(p, layer.variable_dtype)) for p in previews]


def _estimator_of_layer(layer: Any, batch_size: int) -> tuple[_Estimator, list[str]]:
    frozen = unbuilt(layer, stateful=False, return_state=False)
    frozen.build_from_config(layer.get_build_config())
    hand_over(layer.cell, frozen.cell)
    layout = StateLayout.of(layer)

    def call(inputs: Any, states: Any) -> Any:
        return frozen(inputs, initial_state=layout.pack(states))

    names = [f"{layer.name}/{name}" for name in layout.names]
    return _Estimator(call, [layer], batch_size), names


def _estimator_of_model(
    model: Any, inputs: Sequence[Any], batch_size: int
) -> tuple[_Estimator, list[str]]:
    check_model(model)
    sources = Sources(model)
    # Without a target or a source, all inputs are inputs of a stream.
    are_sources = [
        is_source and sources.has_targets for is_source in sources.are_sources
    ]
    are_targets = [not is_source for is_source in are_sources]
    constants, starts = [], None
    if any(are_sources):
        encoder, step_model = make_encoder_and_step_model(model, by_timestep=False)
        with _as_error_of("x", inputs, "fit the inputs of the layer or model"):
            read = _some_of(inputs, are_sources)
            encoded = encoder.predict_on_batch(read if len(read) > 1 else read[0])
        encoded = keras.tree.flatten(encoded)
        count = len(encoded) - len(step_model.state_names)
        constants = list(map(ops.convert_to_tensor, encoded[:count]))
        starts = encoded[count:]
    else:
        step_model = make_step_model(model)
    if not step_model.layers:
        raise ValueError(
            "Argument `layer_or_model` must have a recurrent layer. "
            f"Received: {described(model)}"
        )

    def call(inputs: Any, states: Any) -> Any:
        read = _some_of(keras.tree.flatten(inputs), are_targets)
        outputs = step_model.model([*read, *constants, *states])
        return step_model.outputs_of_model(outputs)

    names = step_model.state_names
    return _Estimator(call, step_model.layers, batch_size, starts), names


def _some_of(inputs: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    """Returns the chosen inputs. Unlike `itertools.compress()`, it checks their number.

    Raises:
        ValueError: If there is not one input for each entry of `chosen`.
    """
    return [x for x, is_chosen in zip(inputs, chosen, strict=True) if is_chosen]
