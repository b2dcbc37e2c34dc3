"""Models with states as inputs and outputs, for runtimes that keep no states."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_init_lstm._copies import inputs_and_outputs
from keras_init_lstm._keras import layers_within
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.streams._sources import Sources
from keras_init_lstm.streams._step_builder import ResettableStepBuilder, StepBuilder
from keras_init_lstm.streams.stateful import as_stateless
from keras_init_lstm.streams.states import by_paths


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
            stream, is called twice, or is called with an initial state or with a
            context that the model computes (`as_encoder_and_decoder()` splits such a
            model); if a nested model is called with `training`; or if `context` is
            missing.

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
            layers are then replaced by layers of this package, and what depends on
            sources alone is computed at each call. Defaults to `False`.

    Raises:
        ValueError: If `model` is not as above, or can't be a stream.
    """
    copied = as_stateless(model)
    builder = StepBuilder(copied)
    if has_reset_mask:
        sources = Sources(copied)
        are_sources = sources.are_sources if sources.has_targets else None
        builder = ResettableStepBuilder(copied, are_sources)
    return StepModel(builder.build(), builder.layers, copied)


def _initial_states(layer: keras.layers.RNN, batch_size: int, context: Any) -> Any:
    if not isinstance(layer, InitStateRNN):
        return layer.get_initial_state(batch_size)
    context = context if layer.takes_context else None
    return layer.get_initial_state(batch_size, context=context)
