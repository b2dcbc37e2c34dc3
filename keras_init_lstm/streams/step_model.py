"""Models with states as inputs and outputs, for runtimes that keep no states."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_init_lstm._copies import inner_layers, inputs_and_outputs
from keras_init_lstm._keras import layers_within, run_through
from keras_init_lstm.adoption import counterpart_of
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import hand_over_weights, unbuilt
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams._sources import arguments_of_call
from keras_init_lstm.streams.stateful import (
    as_stateless,
    check_reads_forwards,
)
from keras_init_lstm.streams.states import by_paths, path_within


def with_states_as_inputs(
    model: keras.Model, batch_size: int = 1, context: Any = None
) -> tuple[keras.Model, list[np.ndarray]]:
    """Returns a model with its states as inputs and outputs, and the initial states.

    It is for ONNX, LiteRT and servers, which keep no states between calls. The states
    are outputs of one call, and inputs of the next.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package or of Keras, stateful or not, in nested models too. It is left
            unchanged.
        batch_size: Positive integer, the number of streams. Defaults to 1.
        context: The context from which `Conditional` states are computed, as at a
            call. Defaults to `None`.

    Returns:
        A tuple of two. First, a Functional model with the weights, the inputs and the
        outputs of `model`. After these it has an input and an output `(batch, units)`
        for each state, in the order in which the layers are called. For a layer `lstm`,
        they are named `lstm_h0` and `lstm_h0_out`. Second, the list of the initial
        states of `batch_size` streams, arrays `(batch_size, units)`.

    Raises:
        ValueError: If `model` is not as above; if a layer reads the future of a
            stream, is called twice, or is called with an initial state; if a nested
            model is called with `training`; or if `context` is missing.

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
    step_model = make_step_model(model)
    initial_states = [
        ops.convert_to_numpy(state)
        for layer in step_model.layers
        for state in keras.tree.flatten(_initial_states(layer, batch_size, context))
    ]
    return step_model.model, initial_states


class StepModel(NamedTuple):
    """A model with its states as inputs and outputs, and the model it was made from.

    Attributes:
        model: The Functional model. Its inputs and outputs are the inputs and outputs
            of the original model, then the states.
        layers: The recurrent layers of `copied`, in the order of the states.
        copied: The copy of the original model from which `model` was made.
    """

    model: keras.Model
    layers: list[keras.layers.RNN]
    copied: keras.Model

    @property
    def state_names(self) -> list[str]:
        """The names of the states in `get_states()`, such as `"lstm/h0"`, in order."""
        # `set_states()` numbers equal paths in the order of `layers_within()`.
        within = [x for x in layers_within(self.copied) if x in self.layers]
        paths = {
            id(layer): path for path, layer in by_paths(self.copied, within).items()
        }
        return [
            f"{paths[id(layer)]}/{name}"
            for layer in self.layers
            for name in StateLayout.of(layer).names
        ]

    def outputs_of_model(self, outputs: Sequence[Any]) -> Any:
        """Returns the outputs of the original model, in its structure."""
        _, structure = inputs_and_outputs(self.copied)
        count = len(self.copied.outputs)
        return keras.tree.pack_sequence_as(structure, list(outputs[:count]))


def make_step_model(model: keras.Model, has_reset_mask: bool = False) -> StepModel:
    """Makes a Functional model with states as inputs and outputs from a copy.

    Args:
        model: A Sequential or Functional model that reads forwards.
        has_reset_mask: Boolean, whether to add an input `(batch,)` after the inputs of
            `model`, `True` for rows that start from the initial states. The recurrent
            layers are then replaced by layers of this package. Defaults to `False`.

    Raises:
        ValueError: If `model` is not as above, or can't be a stream.
    """
    check_reads_forwards(model)
    builder = StepBuilder(as_stateless(model), has_reset_mask)
    return StepModel(builder.build(), builder.layers, builder.model)


class StepBuilder:
    """Calls the layers of a model on symbolic tensors, each with its states as inputs.

    What depends on sources alone is computed as in the model, and is not a part of the
    stream.

    Args:
        model: A stateless Sequential or Functional model.
        has_reset_mask: As in `make_step_model()`. Defaults to `False`.
        are_sources: For each input of `model`, whether it is a source. Defaults to
            `None`, no sources.

    Attributes:
        layers: The recurrent layers of the stream that have been called, in order.
    """

    def __init__(
        self,
        model: Any,
        has_reset_mask: bool = False,
        are_sources: Sequence[bool] | None = None,
    ) -> None:
        self.model = model
        self.layers: list[keras.layers.RNN] = []
        self._states: list[Any] = []
        self._new_states: list[Any] = []
        self._names: dict[str, Any] = {}
        # Keras does not keep the masks of symbolic tensors when layers are called
        # again; keep them here by the `id()` of the tensor. Keep the tensor too: Python
        # may give the `id()` of a deleted tensor to another one.
        self._masks: dict[int, tuple[Any, Any]] = {}
        given, _ = inputs_and_outputs(model)
        self._sources: list[Any] = []
        self._targets: list[Any] = []
        leaves = keras.tree.flatten(given)
        made = [
            self._make_input(tensor, is_source)
            for tensor, is_source in zip(
                leaves, are_sources or [False] * len(leaves), strict=True
            )
        ]
        self._inputs = keras.tree.pack_sequence_as(given, made)
        # The tensors that depend on targets, by their `id()`.
        self._stepped = {id(tensor): tensor for tensor in self._targets}
        self._reset_mask = None
        if has_reset_mask:
            name = self._unique("reset_mask")
            self._reset_mask = keras.Input((), dtype="bool", name=name)

    def _make_input(self, tensor: Any, is_source: bool) -> Any:
        inputs = self._sources if is_source else self._targets
        inputs.append(_like(tensor))
        self._unique(tensor.name)
        return inputs[-1]

    def build(self) -> keras.Model:
        """Returns the model with its states as inputs and outputs."""
        outputs = self._call_model(self.model, self._inputs)
        reset_masks = [] if self._reset_mask is None else [self._reset_mask]
        return keras.Model(
            [*keras.tree.flatten(self._inputs), *reset_masks, *self._states],
            [*keras.tree.flatten(outputs), *self._new_states],
            name=self.model.name,
        )

    def _call_model(
        self, model: Any, inputs: Any, mask: Any = None, training: Any = None
    ) -> Any:
        if training is not None:
            raise ValueError(
                f"The nested model {model.name} is called with training={training}: a "
                "model with this call can't be a stream. Leave `training` out"
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
        is_stepped = any(map(self._is_stepped, keras.tree.flatten((args, kwargs))))
        if not is_stepped:
            outputs = self._call_once(operation, *args, **kwargs)
        elif isinstance(operation, keras.layers.RNN):
            given = arguments_of_call(args[1:], kwargs)
            outputs = self._call_recurrent(operation, args[0], given)
        else:
            args, kwargs = keras.tree.map_structure(self._in_step, (args, kwargs))
            outputs = self._call_stepwise(operation, *args, **kwargs)
        if is_stepped:
            self._stepped |= {id(x): x for x in keras.tree.flatten(outputs)}
        if getattr(operation, "supports_masking", False):
            self._pass_masks_on(operation, args[0], outputs)
        return outputs

    def _is_stepped(self, tensor: Any) -> bool:
        return id(tensor) in self._stepped

    def _in_step(self, argument: Any) -> Any:
        """Returns what an operation of the stream is called with for an argument."""
        return argument

    def _call_once(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls an operation that depends on sources alone."""
        # The layers of nested models become layers of one model, and need different
        # names.
        operation.name = self._unique(operation.name, operation)
        return operation(*args, **kwargs)

    def _call_stepwise(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls an operation of the stream that has no states."""
        return self._call_once(operation, *args, **kwargs)

    def _call_recurrent(self, layer: Any, sequences: Any, given: dict[str, Any]) -> Any:
        """Calls a copy of a recurrent layer with states as inputs.

        Args:
            layer: The layer.
            sequences: Its input sequences.
            given: The other arguments of its call.
        """
        if layer in self.layers:
            raise ValueError(
                f"The layer {layer.name} is called twice, and can't carry its last "
                "states to the next call: a model with it can't be a stream"
            )
        # Create a new layer: Keras fixes the number of a layer's outputs at its first
        # call, and this one returns its states.
        new_layer = self._unbuilt(layer, given)
        layout = StateLayout.of(layer)
        _, *specs = keras.tree.flatten(new_layer.compute_output_spec(sequences))
        path = path_within(self.model, layer).replace("/", "_")
        names = [self._unique(f"{path}_{name}") for name in layout.names]
        states = [
            keras.Input(batch_shape=spec.shape, dtype=spec.dtype, name=name)
            for spec, name in zip(specs, names, strict=True)
        ]
        # Keras passes an implicit mask only to a layer called with a single tensor.
        mask = self._mask_of(sequences)
        if mask is not None and "initial_state" not in given:
            given = {"mask": mask, **given}
        given = self._arguments_of_step(layer, states, given)
        outputs, *new_states = keras.tree.flatten(new_layer(sequences, **given))
        hand_over_weights(layer, new_layer)
        self.layers.append(layer)
        self._states += states
        self._new_states += [
            keras.layers.Identity(name=self._unique(f"{name}_out"))(state)
            for state, name in zip(new_states, names, strict=True)
        ]
        return [outputs, *new_states] if layer.return_state else outputs

    def _unbuilt(self, layer: Any, given: dict[str, Any]) -> Any:
        cls = None if self._reset_mask is None else counterpart_of(layer)
        return unbuilt(layer, cls, return_state=True, name=self._unique(layer.name))

    def _arguments_of_step(
        self, layer: Any, states: list[Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the arguments with which the copy of a recurrent layer is called.

        Args:
            layer: The layer.
            states: The inputs for its states.
            given: The arguments with which the model calls the layer.
        """
        if "initial_state" in given:
            raise ValueError(
                f"The layer {layer.name} is given its initial state, and can't carry "
                "its last states to the next call: a model with it can't be a stream. "
                "`as_encoder_and_decoder(model)` returns two models: one computes the "
                "initial state, and one has the states as inputs and outputs"
            )
        arguments = {**given, "initial_state": StateLayout.of(layer).pack(states)}
        if self._reset_mask is not None:
            reset_mask = given.get("reset_mask")
            reset_mask = _with_first_timestep(reset_mask, self._reset_mask)
            arguments["reset_mask"] = reset_mask
        return arguments

    def _pass_masks_on(self, layer: Any, inputs: Any, outputs: Any) -> None:
        masks = keras.tree.map_structure(self._mask_of, inputs)
        computed = keras.tree.flatten(layer.compute_mask(inputs, masks))
        for tensor, mask in zip(keras.tree.flatten(outputs), computed, strict=False):
            if mask is not None:
                self._masks[id(tensor)] = tensor, mask
                if self._is_stepped(tensor):
                    self._stepped[id(mask)] = mask

    def _mask_of(self, tensor: Any) -> Any:
        _, mask = self._masks.get(id(tensor), (None, None))
        return mask

    def _unique(self, name: str, owner: Any = None) -> str:
        """Returns the name, with a number if another owner has it."""
        owner = owner or object()
        numbered = (f"{name}_{k}" if k else name for k in itertools.count())
        return next(n for n in numbered if self._names.setdefault(n, owner) is owner)


def _with_first_timestep(reset_mask: Any, rows: Any) -> Any:
    """Returns a reset mask that is also True at the first timestep of `rows`.

    Args:
        reset_mask: Boolean tensor `(batch, timesteps)` or `(batch,)`, or `None`.
        rows: Boolean tensor `(batch,)`.
    """
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
