"""Calls the layers of a model again, with their states as inputs."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_init_lstm._copies import inner_layers, inputs_and_outputs
from keras_init_lstm._keras import is_conv_lstm_cell, run_through
from keras_init_lstm.adoption import counterpart_of
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import (
    hand_over_initial_states,
    hand_over_weights,
    unbuilt,
)
from keras_init_lstm.layers._resets import where_rows
from keras_init_lstm.streams._layers import InitialStates
from keras_init_lstm.streams._sources import arguments_of_call
from keras_init_lstm.streams.stateful import check_reads_forwards
from keras_init_lstm.streams.states import path_within


class StepBuilder:
    """Calls the layers of a model on symbolic tensors, each with its states as inputs.

    What depends on sources alone is computed as in the model, and is not a part of the
    stream.

    Args:
        model: A stateless Sequential or Functional model.
        are_sources: For each input of `model`, whether it is a source. Defaults to
            `None`, no sources.

    Attributes:
        layers: The recurrent layers of the stream that have been called, in order.
    """

    def __init__(
        self,
        model: Any,
        are_sources: Sequence[bool] | None = None,
    ) -> None:
        self.model = model
        self.layers: list[keras.layers.RNN] = []
        # Inputs between the inputs of `model` and the states.
        self._other_inputs: list[Any] = []
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

    def _make_input(self, tensor: Any, is_source: bool) -> Any:
        made = self._input_like(tensor, is_source)
        inputs = self._sources if is_source else self._targets
        inputs.append(made)
        self._unique(tensor.name)
        return made

    def _input_like(self, tensor: Any, is_source: bool) -> Any:
        """Returns a new input in the place of an input of the model."""
        return keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name
        )

    def build(self) -> keras.Model:
        """Returns the model with its states as inputs and outputs."""
        outputs = self._call_model(self.model, self._inputs)
        return keras.Model(
            [*keras.tree.flatten(self._inputs), *self._other_inputs, *self._states],
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
            check_reads_forwards(operation)
            given = arguments_of_call(args[1:], kwargs)
            outputs = self._call_recurrent(operation, args[0], given)
        else:
            if isinstance(operation, keras.layers.Layer):
                check_reads_forwards(operation)
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
        if _is_dense_over_time(operation):
            # In a graph with an unknown number of timesteps, `TimeDistributed` of Keras
            # 3.15 returns as many timesteps as the batch has rows. `Dense` needs none.
            operation.layer.name = operation.name
            operation, kwargs = operation.layer, {}
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
        given = self._arguments_of_step(layer, sequences, states, given)
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
        return unbuilt(layer, return_state=True, name=self._unique(layer.name))

    def _arguments_of_step(
        self, layer: Any, sequences: Any, states: list[Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the arguments with which the copy of a recurrent layer is called.

        Args:
            layer: The layer.
            sequences: Its input sequences.
            states: The inputs for its states.
            given: The arguments with which the model calls the layer.
        """
        if "initial_state" in given or self._computes(given.get("context")):
            what = "initial state" if "initial_state" in given else "context"
            raise ValueError(
                f"The layer {layer.name} is given its {what}, which the model computes "
                "at each call: a stream needs it only once. "
                "`as_encoder_and_decoder(model)` returns two models: one computes the "
                "initial states, and one has the states as inputs and outputs"
            )
        return {**given, "initial_state": StateLayout.of(layer).pack(states)}

    def _computes(self, context: Any) -> bool:
        """Whether a context is computed by layers, in a model without sources."""
        inputs = set(map(id, keras.tree.flatten(self._inputs)))
        return not self._sources and any(
            isinstance(leaf, keras.KerasTensor) and id(leaf) not in inputs
            for leaf in keras.tree.flatten(context)
        )

    def _starts(self, layer: Any, sequences: Any, given: dict[str, Any]) -> list[Any]:
        """Returns the initial states of a layer, given or owned, from the sources."""
        layout, context = StateLayout.of(layer), given.get("context")
        states = layout.unpack(given.get("initial_state"), "initial_state")
        if any(map(self._is_stepped, keras.tree.flatten([states, context]))):
            raise ValueError(
                f"The layer {layer.name} is given an initial state or a context that "
                "is computed from a target, which is read timestep by timestep. It "
                "must be computed from the sources alone, which are "
                f"{[tensor.name for tensor in self._sources]}"
            )
        if any(state is None for state in states):
            name = self._unique(f"{layer.name}_initial_states")
            # The states of a ConvLSTM have the space of its input.
            is_conv = is_conv_lstm_cell(layer.cell)
            shape = sequences.shape if is_conv else None
            owner = InitialStates(unbuilt(layer), shape, name=name)
            arguments = {} if context is None else {"context": context}
            owned = keras.tree.flatten(owner(self._sources[0], **arguments))
            hand_over_initial_states(layer, owner.layer)
            pairs = zip(states, owned, strict=True)
            states = [own if state is None else state for state, own in pairs]
        return states

    @staticmethod
    def _without_starts(given: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a call that a step needs too."""
        # Only a reset needs the context.
        left_out = (
            {"initial_state"} if "reset_mask" in given else {"initial_state", "context"}
        )
        return {k: v for k, v in given.items() if k not in left_out}

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


class ResettableStepBuilder(StepBuilder):
    """A builder of a model whose rows may return to their initial states.

    The model has an input `(batch,)` between the inputs of the original model and the
    states, `True` for rows that start from the initial states. The recurrent layers are
    replaced by layers of this package.
    """

    def __init__(self, model: Any, are_sources: Sequence[bool] | None = None) -> None:
        super().__init__(model, are_sources)
        name = self._unique("reset_mask")
        self._reset_mask = keras.Input((), dtype="bool", name=name)
        self._other_inputs = [self._reset_mask]

    def _unbuilt(self, layer: Any, given: dict[str, Any]) -> Any:
        cls, name = counterpart_of(layer), self._unique(layer.name)
        return unbuilt(layer, cls, return_state=True, name=name)

    def _arguments_of_step(
        self, layer: Any, sequences: Any, states: list[Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        if "initial_state" not in given:
            reset_mask = given.get("reset_mask")
            reset_mask = _with_first_timestep(reset_mask, self._reset_mask)
            return {
                **given,
                "initial_state": StateLayout.of(layer).pack(states),
                "reset_mask": reset_mask,
            }
        started = [
            where_rows(self._reset_mask, start, state)
            for start, state in zip(
                self._starts(layer, sequences, given), states, strict=True
            )
        ]
        return {
            **self._without_starts(given),
            "initial_state": StateLayout.of(layer).pack(started),
        }


def _is_dense_over_time(operation: Any) -> bool:
    is_wrapper = type(operation) is keras.layers.TimeDistributed
    return is_wrapper and type(operation.layer) is keras.layers.Dense


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
