"""The reset mask of a call: its checks, and a loop that resets the states."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_init_lstm._checks import (
    described,
    fits,
    shape_of,
    shape_text,
    with_shape,
)
from keras_init_lstm._keras import rnn, takes_training
from keras_init_lstm.backend import backend
from keras_init_lstm.loops.call import InPlaceOfMask


def check_reset_mask(reset_mask: Any, batch_size: Any, timesteps: Any) -> None:
    """Raises a `ValueError` if `reset_mask` is known not to fit the sequences.

    Args:
        reset_mask: Anything.
        batch_size: The batch size of the sequences, `None` if it is not known.
        timesteps: The number of timesteps, `None` if it is not known.
    """
    shape = shape_of(reset_mask) or ()
    is_boolean = False
    with contextlib.suppress(ValueError):  # An array of objects or strings.
        # Keras accepts integers as a mask; accept them as a reset mask too. An object
        # without a dtype gets the default floating-point dtype, and is rejected.
        dtype = keras.backend.standardize_dtype(getattr(reset_mask, "dtype", None))
        is_boolean = dtype.startswith(("bool", "int", "uint"))
    expected = (batch_size, timesteps)[: len(shape)]
    if not (is_boolean and shape and fits(shape, expected)):
        raise ValueError(
            f"{_expectation(batch_size, timesteps)} "
            f"Received: reset_mask={described(reset_mask)}"
        )


def _expectation(batch_size: Any, timesteps: Any) -> str:
    return (
        "Argument `reset_mask` must be a boolean tensor of shape "
        f"{shape_text((batch_size, timesteps))}, True where a new sequence begins, or "
        f"of shape {shape_text((batch_size,))}, for the timestep that is read first."
    )


def first_timestep(layer: keras.layers.RNN) -> int:
    """The index of the timestep that a layer reads first."""
    return -1 if layer.go_backwards else 0


def with_resets(
    layer: keras.layers.RNN,
    sequences: Any,
    states: Sequence[Any],
    mask: Any,
    reset_mask: Any,
    states_after_reset: Sequence[Any],
) -> tuple[list[Any], Any]:
    """Returns the states and the mask with which `layer` calls Keras's `call()`.

    Args:
        layer: A recurrent layer of this package.
        sequences: A tensor `(batch, timesteps, ...)`.
        states: The states before the first timestep, each `(batch, *shape)`.
        mask: The mask of the call, or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)` or `(batch,)`.
        states_after_reset: As in `InPlaceOfMask`.

    Raises:
        ValueError: If `reset_mask` has another shape. If the shape is only known at
            run time, the backend raises its own error.
    """
    batch_size, timesteps = ops.shape(sequences)[:2]
    reset_mask = ops.cast(ops.convert_to_tensor(reset_mask), "bool")
    reset_mask = with_shape(
        reset_mask,
        (batch_size, timesteps)[: len(reset_mask.shape)],
        _expectation(batch_size, timesteps),
    )
    if len(reset_mask.shape) == 1:
        first = first_timestep(layer)
        pairs = zip(states_after_reset, states, strict=True)
        resets = [s[:, first] if _has_time_axis(s, state) else s for s, state in pairs]
        pairs = zip(resets, states, strict=True)
        return [where_rows(reset_mask, reset, state) for reset, state in pairs], mask
    if layer.go_backwards:
        # A sequence that begins at timestep t ends there when it is read backwards, so
        # the reset belongs to timestep t - 1.
        no_reset = ops.zeros_like(reset_mask[:, :1])
        reset_mask = ops.concatenate([reset_mask[:, 1:], no_reset], axis=1)
    dtype = layer.cell.compute_dtype
    states_after_reset = [ops.cast(state, dtype) for state in states_after_reset]
    return list(states), InPlaceOfMask(mask, reset_mask, states_after_reset)


def loop_with_resets(
    layer: keras.layers.RNN,
    sequences: Any,
    initial_state: Any,
    in_place_of_mask: InPlaceOfMask,
    training: bool,
    outputs_states: bool = False,
) -> tuple[Any, Any, list[Any]]:
    """Runs Keras's loop with a reset mask, with the interface of `inner_loop()`.

    The step function applies the mask, because Keras's loop would undo a reset at a
    masked timestep. With a mask, the loop therefore carries the last unmasked output
    too, after the states.

    Args:
        layer: This and the next four as in `run_loop()`.
        sequences: As in `run_loop()`.
        initial_state: As in `run_loop()`.
        in_place_of_mask: As in `run_loop()`, with a reset mask.
        training: As in `run_loop()`.
        outputs_states: Whether the outputs are all states after each timestep, side by
            side: `(batch, timesteps, units)`. Defaults to `False`.
    """

    def output_before_first(nested: Any) -> Any:
        return side_by_side(nested) if outputs_states else _before_first(layer, nested)

    mask = next(iter(keras.tree.flatten(in_place_of_mask.mask)), None)
    states_after_reset = in_place_of_mask.states_after_reset
    states = keras.tree.flatten(initial_state)
    count = len(states)
    inputs = [sequences, in_place_of_mask.reset_mask[:, :, None]]
    if mask is not None:
        inputs.append(mask[:, :, None] if len(mask.shape) == 2 else mask)
        states.append(output_before_first(initial_state))
    pairs = zip(states_after_reset, states, strict=False)
    by_timestep = [k for k, pair in enumerate(pairs) if _has_time_axis(*pair)]
    inputs += [states_after_reset[k] for k in by_timestep]
    kwargs = {"training": training} if takes_training(layer.cell) else {}

    def step(inputs: Sequence[Any], carried: Sequence[Any]) -> tuple[Any, list[Any]]:
        x, resets, *others = inputs
        after_reset = list(states_after_reset)
        for k in reversed(by_timestep):
            after_reset[k] = others.pop()
        pairs = zip(after_reset, carried, strict=False)
        states = [where_rows(resets, reset, state) for reset, state in pairs]
        nested = keras.tree.pack_sequence_as(initial_state, states)
        output, new_states = layer.cell(x, nested, **kwargs)
        new_states = keras.tree.flatten(new_states)
        if outputs_states:
            output = side_by_side(new_states)
        if mask is None:
            return output, new_states
        unmasked = ops.cast(others[0], "bool")
        last_output = where_rows(resets, output_before_first(nested), carried[count])
        pairs = zip(new_states, states, strict=True)
        states = [where_rows(unmasked, new, old) for new, old in pairs]
        last_output = where_rows(unmasked, output, last_output)
        if layer.zero_output_for_mask and not outputs_states:
            output = where_rows(unmasked, output, ops.zeros_like(output))
        else:
            output = last_output
        return output, [*states, last_output]

    last_output, outputs, states = rnn(
        step,
        tuple(inputs),
        states,
        go_backwards=layer.go_backwards,
        unroll=layer.unroll,
        # Keras can't infer the length from several inputs. It also evaluates
        # `bool(input_length)`, which raises for a tensor in a graph; pass a list.
        input_length=sequences.shape[1] or [ops.shape(sequences)[1]],
        return_all_outputs=layer.return_sequences or outputs_states,
    )
    states = keras.tree.flatten(states)[:count]
    return last_output, outputs, keras.tree.pack_sequence_as(initial_state, states)


def side_by_side(states: Any) -> Any:
    """Returns nested states `(batch, ...)` as one tensor `(batch, units)`."""
    flat = [
        # The size of a state without the batch is known; the batch size may not be.
        ops.reshape(state, (-1, math.prod(state.shape[1:])))
        for state in keras.tree.flatten(states)
    ]
    return ops.concatenate(flat, axis=1)


def _before_first(layer: keras.layers.RNN, states: Any) -> Any:
    """Returns Keras's output at masked timesteps before the first unmasked one."""
    is_stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)
    h = keras.tree.flatten(states[-1] if is_stacked else states)[0]
    if backend.shows_initial_state and not layer.unroll:
        return h
    size = getattr(layer.cell, "output_size", None)
    shape = h.shape[1:] if size is None else (size,)
    return ops.zeros((ops.shape(h)[0], *shape), h.dtype)


def _has_time_axis(state_after_reset: Any, state: Any) -> bool:
    """Whether a state after a reset is given for each timestep."""
    return len(state_after_reset.shape) > len(state.shape)


def where_rows(rows: Any, new: Any, old: Any) -> Any:
    """Returns `new (batch, ...)` in the rows where a mask is True, else `old`.

    Args:
        rows: Boolean tensor `(batch,)` or `(batch, 1)`.
        new: A tensor `(batch, ...)`.
        old: A tensor of the same shape.
    """
    missing = len(new.shape) - len(rows.shape)
    return ops.where(rows[(..., *[None] * missing)], new, old)
