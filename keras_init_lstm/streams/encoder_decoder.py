"""Encoder-decoders as two models: what is computed once, and one timestep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers._from_keras import unbuilt
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams._layers import WithMask
from keras_init_lstm.streams._sources import Sources
from keras_init_lstm.streams._step_builder import StepBuilder
from keras_init_lstm.streams._timesteps import time_axes
from keras_init_lstm.streams.stateful import as_stateless
from keras_init_lstm.streams.step_model import StepModel


def as_encoder_and_decoder(
    model: keras.Model, sources: Iterable[str] | None = None
) -> tuple[keras.Model, keras.Model]:
    """Splits a sequence-to-sequence model, to decode one timestep at a time.

    The model is trained on whole target sequences. To decode, the encoder runs once for
    a batch of sources. Then the decoder runs for each timestep, or chunk of timesteps,
    with its states as inputs and outputs. Step by step it computes the outputs that
    `model` computes for the whole target sequence.

    The inputs of the model are either sources or targets. Everything that depends only
    on sources belongs to the encoder, and may read them in any way. An input is a
    source if an initial state of a recurrent layer is computed from it, by
    `initial_state=` or as the context of a `Conditional`; or if the value of an
    attention layer is, whose query is computed from another input.

    Args:
        model: A Functional model, built, with recurrent layers of this package or of
            Keras, in nested models too. It is left unchanged.
        sources: List of the names of the inputs that are sources. Defaults to `None`,
            the sources by the rule above.

    Returns:
        A tuple of two Functional models with the weights of `model`.

        The encoder has the sources as inputs. Its outputs are a list: first the
        constants of the decoder, such as the encoder's outputs that an attention layer
        reads, and their masks. Then the initial states `(batch, units)` of all
        recurrent layers of the decoder, in the order in which they are called. (As
        Keras does, a model with a single output returns it without a list.)

        The decoder has as inputs the targets, with any number of timesteps, and then
        the outputs of the encoder. Its outputs are the outputs of `model`, and then the
        new states. For a layer `lstm`, they are named `lstm_h0` and `lstm_h0_out`. If
        the first timestep of a chunk is masked, a layer outputs zeros for it, as a
        layer of Keras does, and not the outputs of the timestep before.

        A layer that `model` calls with sources and with targets, such as an embedding,
        is shared by the two models.

    Raises:
        ValueError: If `model` is not as above; if it has no source or no target, or
            `sources` are not names of its inputs; or if the decoder can't read the
            targets timestep by timestep. It can't with `Bidirectional`,
            `go_backwards=True`, a layer that is called twice, an initial state that is
            computed from a target, and a layer that computes a timestep from others,
            such as `Conv1D` or attention between the outputs of the decoder.

    Example:
    >>> source, target = keras.Input((None, 3)), keras.Input((None, 2))
    >>> _, h, c = keras.layers.LSTM(4, return_state=True)(source)
    >>> lstm = keras.layers.LSTM(4, return_sequences=True)
    >>> outputs = keras.layers.Dense(2)(lstm(target, initial_state=[h, c]))
    >>> model = keras.Model([source, target], outputs)
    >>> encoder, decoder = keras_init_lstm.streams.as_encoder_and_decoder(model)
    >>> x, y = np.ones((1, 7, 3)), np.ones((1, 5, 2))
    >>> states = encoder.predict(x, verbose=0)
    >>> for t in range(5):
    ...     inputs = [y[:, t : t + 1], *states]
    ...     prediction, *states = decoder.predict(inputs, verbose=0)
    >>> bool(np.allclose(prediction, model([x, y])[:, -1:], atol=1e-6))
    True
    """
    encoder, step_model = make_encoder_and_step_model(model, sources)
    return encoder, step_model.model


def make_encoder_and_step_model(
    model: keras.Model,
    sources: Iterable[str] | None = None,
    by_timestep: bool = True,
) -> tuple[keras.Model, StepModel]:
    """Returns the models of `as_encoder_and_decoder()`, the second with its origin.

    Args:
        model: As in `as_encoder_and_decoder()`.
        sources: As in `as_encoder_and_decoder()`.
        by_timestep: Boolean, whether the decoder must read the targets timestep by
            timestep. If not, it reads whole targets, of the lengths of `model`.
            Defaults to `True`.
    """
    copied = as_stateless(model)
    found = Sources(copied, sources)
    are_sources = found.are_sources
    if not found.has_targets:
        names = [tensor.name for tensor in model.inputs]
        hint = "; for a model without sources use `with_states_as_inputs()`"
        raise ValueError(
            "Argument `model` must have a source, from which an initial state is "
            "computed, and a target, which is no source. `sources` names the sources "
            f"if they are not found{'' if any(are_sources) else hint}. Received: the "
            f"inputs {names}: {'all' if all(are_sources) else 'none'} are sources"
        )
    splitter = _Splitter(copied, are_sources, by_timestep)
    encoder, decoder = splitter.split()
    return encoder, StepModel(decoder, splitter.layers, copied)


class _Splitter(StepBuilder):
    """Builds a model of what depends on sources alone, and a model of the rest."""

    def __init__(self, model: Any, are_sources: list[bool], by_timestep: bool) -> None:
        self._by_timestep = by_timestep
        # The input that stands for a tensor of the encoder in the decoder, by the
        # `id()` of the tensor.
        self._constants: dict[int, Any] = {}
        self._constant_inputs: list[Any] = []
        self._encoded: list[Any] = []
        self._initial_states: list[Any] = []
        # The time axis of a tensor, by its `id()`.
        self._axes: dict[int, int] = {}
        self._origins: dict[int, str] = {}
        super().__init__(model, are_sources)

    def _input_like(self, tensor: Any, is_source: bool) -> Any:
        if is_source or not self._by_timestep or len(tensor.shape) < 2:
            made = super()._input_like(tensor, is_source)
            if is_source:
                self._origins[id(made)] = made.name
            return made
        batch_size, _, *sizes = tensor.shape
        shape = (batch_size, None, *sizes)
        made = keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)
        self._axes[id(made)] = 1
        return made

    def split(self) -> tuple[keras.Model, keras.Model]:
        """Returns the encoder and the decoder."""
        outputs = self._call_model(self.model, self._inputs)
        outputs = list(map(self._in_step, keras.tree.flatten(outputs)))
        encoder = keras.Model(
            self._sources[0] if len(self._sources) == 1 else self._sources,
            [*self._encoded, *self._initial_states],
            name=f"{self.model.name}_encoder",
        )
        decoder = keras.Model(
            [*self._targets, *self._constant_inputs, *self._states],
            [*outputs, *self._new_states],
            name=f"{self.model.name}_decoder",
        )
        return encoder, decoder

    def _call_once(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = super()._call_once(operation, *args, **kwargs)
        for tensor in keras.tree.flatten(outputs):
            self._origins[id(tensor)] = operation.name
        return outputs

    def _call_stepwise(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        axes: list[int] = []
        if self._by_timestep:
            axes = time_axes(operation, args, kwargs, self._axis_of)
        outputs = super()._call_stepwise(operation, *args, **kwargs)
        pairs = zip(keras.tree.flatten(outputs), axes, strict=False)
        self._axes |= {id(tensor): axis for tensor, axis in pairs}
        return outputs

    def _call_recurrent(self, layer: Any, sequences: Any, given: dict[str, Any]) -> Any:
        if self._by_timestep and self._axis_of(sequences) != 1:
            raise ValueError(
                f"The layer {layer.name} (of class {type(layer).__name__}) can't read "
                "the targets timestep by timestep, because its input sequences don't "
                "have their timesteps on axis 1"
            )
        outputs = super()._call_recurrent(layer, sequences, given)
        if layer.return_sequences:
            self._axes[id(keras.tree.flatten(outputs)[0])] = 1
        return outputs

    def _unbuilt(self, layer: Any, given: dict[str, Any]) -> Any:
        # The number of timesteps is unknown.
        arguments: dict[str, Any] = {"unroll": False}
        if isinstance(layer, InitStateRNN) and "reset_mask" not in given:
            # The encoder has the owned states.
            arguments["initial_state"] = None
        name = self._unique(layer.name)
        return unbuilt(layer, return_state=True, name=name, **arguments)

    def _arguments_of_step(
        self, layer: Any, sequences: Any, states: list[Any], given: dict[str, Any]
    ) -> dict[str, Any]:
        for state, tensor in zip(
            states, self._starts(layer, sequences, given), strict=True
        ):
            self._initial_states.append(_named(tensor, state.name))
        arguments = self._without_starts(given)
        arguments = keras.tree.map_structure(self._in_step, arguments)
        return {**arguments, "initial_state": StateLayout.of(layer).pack(states)}

    def _axis_of(self, tensor: Any) -> int | None:
        return self._axes.get(id(tensor))

    def _in_step(self, argument: Any) -> Any:
        tensor = argument
        if not isinstance(tensor, keras.KerasTensor) or self._is_stepped(tensor):
            return tensor
        if id(tensor) not in self._constants:
            name = self._origins[id(tensor)]
            constant = self._constant(tensor, f"{name}_output")
            mask = self._mask_of(tensor)
            if mask is not None:
                mask = self._constant(mask, f"{name}_mask")
                layer = WithMask(name=self._unique(f"{name}_with_mask"))
                constant = layer([constant, mask])
                self._masks[id(constant)] = constant, mask
            self._constants[id(tensor)] = constant
            # The new tensors belong to the decoder already.
            self._constants |= {id(x): x for x in (constant, mask) if x is not None}
        return self._constants[id(tensor)]

    def _constant(self, tensor: Any, name: str) -> Any:
        """Adds an output of the encoder, and returns the input of the decoder."""
        name = self._unique(name)
        self._encoded.append(_named(tensor, name))
        self._constant_inputs.append(
            keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        )
        return self._constant_inputs[-1]


def _named(tensor: Any, name: str) -> Any:
    dtype = tensor.dtype if keras.backend.is_float_dtype(tensor.dtype) else None
    return keras.layers.Identity(name=name, dtype=dtype)(tensor)
