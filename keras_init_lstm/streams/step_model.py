"""Models whose states go in and come out, for runtimes that keep none."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_init_lstm._copies import inner_layers, inputs_and_outputs
from keras_init_lstm._keras import run_through
from keras_init_lstm.adoption import counterpart_of
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import hand_over_weights, unbuilt
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams.stateful import (
    as_stateless,
    check_reads_forwards,
)
from keras_init_lstm.streams.states import path_within


def with_states_as_inputs(
    model: keras.Model, batch_size: int = 1, context: Any = None
) -> tuple[keras.Model, list[np.ndarray]]:
    """Returns a model that streams where nothing is kept, and what it starts from.

    For ONNX, LiteRT and servers: what a stateful layer would carry is an output of one
    call, and an input of the next.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package or of Keras, stateful or not, in nested models too. It is left as
            it is.
        batch_size: Positive integer, the number of rows of the initial states.
            Defaults to 1.
        context: What `Conditional` states are computed from, as at a call, if there
            are any. Defaults to `None`.

    Returns:
        A Functional model with the weights, the inputs and the outputs of `model`,
        followed by an input and an output `(batch, units)` for each state, in the order
        in which the layers are called; the input of a state of a layer `lstm` is named
        `lstm_h0`, its output `lstm_h0_out`. And the list of the initial states, arrays
        `(batch_size, units)`, with which a stream begins.

    Raises:
        ValueError: If `model` is not such a model; if a layer reads the future, is
            called twice, or is given its initial state at the call; or if `context`
            is missing.

    Example:
    >>> lstm = keras_init_lstm.InitStateLSTM(4, initial_state=0.5, name="lstm")
    >>> model = keras.Sequential([keras.Input((None, 3)), lstm, keras.layers.Dense(1)])
    >>> stream, states = keras_init_lstm.streams.with_states_as_inputs(model)
    >>> [tensor.name for tensor in stream.inputs[1:]]
    ['lstm_h0', 'lstm_c0']
    >>> x = np.ones((1, 5, 3), "float32")
    >>> for t in range(5):
    ...     inputs = [x[:, t : t + 1], *states]
    ...     prediction, *states = stream.predict(inputs, verbose=0)
    >>> bool(np.allclose(prediction, model(x), atol=1e-6))
    True
    """
    stepping = make_stepping(model)
    initial_states = [
        ops.convert_to_numpy(state)
        for layer in stepping.layers
        for state in keras.tree.flatten(_initial_states(layer, batch_size, context))
    ]
    return stepping.model, initial_states


class Stepping(NamedTuple):
    """A model whose states go in and come out, and what it was made of.

    Attributes:
        model: The Functional model: its inputs and outputs are the inputs and outputs
            of the original model, then the states.
        layers: The recurrent layers of `copied`, in the order of the states.
        copied: The copy that it was made of.
    """

    model: keras.Model
    layers: list[keras.layers.RNN]
    copied: keras.Model

    def outputs_of_model(self, outputs: Sequence[Any]) -> Any:
        """What the model it was made of returns, among all outputs."""
        _, structure = inputs_and_outputs(self.copied)
        count = len(self.copied.outputs)
        return keras.tree.pack_sequence_as(structure, list(outputs[:count]))


def make_stepping(model: keras.Model, restarts: bool = False) -> Stepping:
    """Makes a Functional model of a copy of another, with the states as inputs.

    Args:
        model: A Sequential or Functional model that reads forwards.
        restarts: Boolean, whether there is an input `(batch,)` too, after the inputs of
            `model`, `True` for rows that are to start from the initial states. The
            recurrent layers are then replaced by layers of this package. Defaults to
            `False`.

    Raises:
        ValueError: If `model` is not such a model, or can't be a stream.
    """
    check_reads_forwards(model)
    builder = _StepBuilder(as_stateless(model), restarts)
    return Stepping(builder.build(), builder.layers, builder.model)


class _StepBuilder:
    """Calls the layers of a model on symbolic tensors, each with its states as inputs.

    Args:
        model: A stateless Sequential or Functional model.
        restarts: As in `make_stepping()`.

    Attributes:
        layers: The recurrent layers that have been called, in order.
    """

    def __init__(self, model: Any, restarts: bool) -> None:
        self.model = model
        self.layers: list[keras.layers.RNN] = []
        self._states: list[Any] = []
        self._new_states: list[Any] = []
        self._names: dict[str, Any] = {}
        # Keras keeps no mask with a symbolic tensor of a model that is called again, so
        # the masks are computed here, for each tensor by its identity. The tensors are
        # kept too: the identity of one that is gone may be given to another.
        self._masks: dict[int, tuple[Any, Any]] = {}
        given, _ = inputs_and_outputs(model)
        self._inputs = keras.tree.map_structure(_like, given)
        for tensor in keras.tree.flatten(self._inputs):
            self._unique(tensor.name)
        name = self._unique("restarts")
        self._restarts = keras.Input((), dtype="bool", name=name) if restarts else None

    def build(self) -> keras.Model:
        """Returns the model, whose states are inputs and outputs."""
        outputs = self._call_model(self.model, self._inputs)
        restarts = [] if self._restarts is None else [self._restarts]
        return keras.Model(
            [*keras.tree.flatten(self._inputs), *restarts, *self._states],
            [*keras.tree.flatten(outputs), *self._new_states],
            name=self.model.name,
        )

    def _call_model(
        self, model: Any, inputs: Any, mask: Any = None, training: Any = None
    ) -> Any:
        if training is not None:
            raise ValueError(
                f"The model {model.name} is called with training={training} by one "
                "that it is nested in: such a model can't be a stream"
            )
        if mask is not None:
            pairs = zip(*map(keras.tree.flatten, (inputs, mask)), strict=True)
            for tensor, given in pairs:
                self._masks[id(tensor)] = tensor, given
        if not isinstance(model, keras.Sequential):
            return run_through(model, inputs, self._call)
        for layer in model.layers:
            inputs = self._call(layer, inputs)
        return inputs

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if inner_layers(operation) is not None and isinstance(operation, keras.Model):
            return self._call_model(operation, args[0], **kwargs)
        if isinstance(operation, keras.layers.RNN):
            outputs = self._call_recurrent(operation, *args, **kwargs)
        else:
            # The layers of nested models become layers of one model, in which no two
            # may have the same name.
            operation.name = self._unique(operation.name, operation)
            outputs = operation(*args, **kwargs)
        if getattr(operation, "supports_masking", False):
            self._pass_masks_on(operation, args[0], outputs)
        return outputs

    def _call_recurrent(
        self, layer: Any, sequences: Any, *args: Any, **kwargs: Any
    ) -> Any:
        called_twice = layer in self.layers
        if called_twice or args or kwargs.get("initial_state") is not None:
            reason = "called twice" if called_twice else "given its initial state"
            raise ValueError(
                f"The layer {layer.name} is {reason}, so that what it carries from "
                "call to call is not its own: a model with it can't be a stream"
            )
        check_states(layer)
        self.layers.append(layer)
        # A new layer, since Keras counts the outputs of one by its first call.
        cls = None if self._restarts is None else counterpart_of(layer)
        ours = unbuilt(layer, cls, return_state=True, name=self._unique(layer.name))
        layout = StateLayout.of(layer)
        _, *specs = keras.tree.flatten(ours.compute_output_spec(sequences))
        path = path_within(self.model, layer).replace("/", "_")
        names = [self._unique(f"{path}_{name}") for name in layout.names]
        states = [
            keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=name)
            for spec, name in zip(specs, names, strict=True)
        ]
        # Keras hands an implicit mask only to a layer called with a single tensor.
        if kwargs.get("mask") is None:
            kwargs["mask"] = self._mask_of(sequences)
        if self._restarts is not None:
            reset_mask = kwargs.get("reset_mask")
            kwargs["reset_mask"] = _also_first(reset_mask, self._restarts)
        outputs, *new_states = keras.tree.flatten(
            ours(sequences, initial_state=layout.pack(states), **kwargs)
        )
        hand_over_weights(layer, ours)
        self._states += states
        self._new_states += [
            keras.layers.Identity(name=self._unique(f"{name}_out"))(state)
            for state, name in zip(new_states, names, strict=True)
        ]
        return [outputs, *new_states] if layer.return_state else outputs

    def _pass_masks_on(self, layer: Any, inputs: Any, outputs: Any) -> None:
        masks = keras.tree.map_structure(self._mask_of, inputs)
        computed = keras.tree.flatten(layer.compute_mask(inputs, masks))
        for tensor, mask in zip(keras.tree.flatten(outputs), computed, strict=False):
            if mask is not None:
                self._masks[id(tensor)] = tensor, mask

    def _mask_of(self, tensor: Any) -> Any:
        _, mask = self._masks.get(id(tensor), (None, None))
        return mask

    def _unique(self, name: str, owner: Any = None) -> str:
        """The name, numbered if another owner has it."""
        owner = owner or object()
        numbered = (f"{name}_{k}" if k else name for k in itertools.count())
        return next(n for n in numbered if self._names.setdefault(n, owner) is owner)


def check_states(layer: keras.layers.RNN) -> None:
    """Raises a `ValueError` if the states of a layer are not `(batch, units)`."""
    if any(state.units < 1 for state in StateLayout.of(layer).states):
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) does not tell "
            "the shapes of its states, which must be (batch, units)"
        )


def _also_first(reset_mask: Any, rows: Any) -> Any:
    """A reset mask that also marks what these rows, booleans `(batch,)`, read first."""
    if reset_mask is None:
        return rows
    reset_mask = ops.cast(reset_mask, "bool")
    if len(reset_mask.shape) == 1:
        return ops.logical_or(reset_mask, rows)
    first = ops.logical_or(reset_mask[:, :1], rows[:, None])
    return ops.concatenate([first, reset_mask[:, 1:]], axis=1)


def _like(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _initial_states(layer: keras.layers.RNN, batch_size: int, context: Any) -> Any:
    if not isinstance(layer, InitStateRNN):
        return layer.get_initial_state(batch_size)
    context = context if layer.takes_context else None
    return layer.get_initial_state(batch_size, context=context)
