"""All states of a recurrent layer after each timestep."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_init_lstm._checks import described, shape_text, with_shape
from keras_init_lstm._keras import dropout_masks, mask_of
from keras_init_lstm.backend import NotFusedError
from keras_init_lstm.layers._loop import has_dropout, run_fused
from keras_init_lstm.layers._resets import loop_with_resets, with_resets
from keras_init_lstm.loops.call import InPlaceOfMask


class _Run(keras.layers.Layer):
    """Runs a function as a call of a layer: Keras casts its arguments to a dtype.

    Args:
        function: Function that takes sequences, initial states and `training`.
        **kwargs: Base layer arguments.
    """

    def __init__(self, function: Callable[[Any, Any, bool], Any], **kwargs: Any):
        super().__init__(**kwargs)
        self._function = function
        self.built = True  # There is nothing to build.
        # Keras warns of a layer without it that is called with a masked tensor.
        self.supports_masking = True

    def call(
        self, sequences: Any, initial_state: Any = None, training: bool = False
    ) -> Any:
        return self._function(sequences, initial_state, bool(training))

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None


def states_over_time(
    layer: Any,
    sequences: Any,
    mask: Any,
    initial_state: Any,
    context: Any,
    reset_mask: Any,
    training: bool,
    keras_loop: Callable[..., Any],
) -> list[Any]:
    """Returns all states after each timestep, nested as the states of the layer's cell.

    Args:
        layer: A recurrent layer of this package.
        sequences: This and the next five as in `InitStateRNN.states_over_time()`.
        mask: As there.
        initial_state: As there.
        context: As there.
        reset_mask: As there.
        training: As there.
        keras_loop: The `inner_loop()` of the layer's base class.
    """
    leaves = keras.tree.flatten((sequences, mask, initial_state, context, reset_mask))
    if any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        raise ValueError(
            "`states_over_time()` takes no symbolic tensors of Keras. In a Functional "
            "model, call it in the `call()` of a layer. Received: "
            f"sequences={described(sequences)}"
        )
    if mask is None:
        mask = mask_of(sequences)
    context, reset_mask = layer._prepare_call(
        sequences, initial_state, context, reset_mask, reads_stream=False
    )

    def run(sequences: Any, explicit: Any, training: bool) -> list[Any]:
        states, after_reset = layer._states_of_call(
            sequences, explicit, training, context, reset_mask
        )
        given = _checked_mask(mask, sequences)
        if reset_mask is not None:
            states, given = with_resets(
                layer, sequences, states, given, reset_mask, after_reset
            )
        states = [ops.cast(state, layer.cell.compute_dtype) for state in states]
        in_place_of_mask = InPlaceOfMask.of(given)
        if in_place_of_mask.mask is None and _may_be_fused(layer):
            with contextlib.suppress(NotFusedError):
                _, outputs, _ = run_fused(
                    layer,
                    sequences,
                    states,
                    given,
                    training,
                    keras_loop,
                    wants_states=False,
                    wants_all_outputs=True,
                )
                return [outputs]
        if in_place_of_mask.reset_mask is None:
            no_reset = ops.zeros(ops.shape(sequences)[:2], "bool")
            in_place_of_mask = InPlaceOfMask(given, no_reset, states)
        nested = layer._layout.pack(states)
        with dropout_masks(layer, sequences, nested):
            _, outputs, _ = loop_with_resets(
                layer,
                sequences,
                nested,
                in_place_of_mask,
                training,
                outputs_states=True,
            )
        return _apart(layer, ops.cast(outputs, layer.compute_dtype))

    call = _Run(run, name=layer.name, dtype=layer.dtype_policy)
    call.input_spec = layer.input_spec
    return layer._layout.pack(call(sequences, initial_state, training=training))


def _may_be_fused(layer: Any) -> bool:
    """Whether a fused loop, if one runs, returns all states.

    It does if the only state is the output, as in a GRU and in a SimpleRNN. With
    dropout it would draw other masks than the loop below.
    """
    has_one = len(layer.state_names) == 1
    return bool(
        getattr(layer, "use_fused", False) and has_one and not has_dropout(layer.cell)
    )


def _checked_mask(mask: Any, sequences: Any) -> Any:
    if mask is None:
        return None
    shape = ops.shape(sequences)[:2]
    return with_shape(
        ops.cast(ops.convert_to_tensor(mask), "bool"),
        shape,
        f"Argument `mask` must be a boolean tensor of shape {shape_text(shape)}.",
    )


def _apart(layer: Any, outputs: Any) -> list[Any]:
    """Splits the states that `side_by_side()` joined, `(batch, timesteps, units)`."""
    states, begin = [], 0
    for state in layer._layout.states:
        end = begin + math.prod(state.shape)
        shape = (*ops.shape(outputs)[:2], *state.shape)
        states.append(ops.reshape(outputs[:, :, begin:end], shape))
        begin = end
    return states
