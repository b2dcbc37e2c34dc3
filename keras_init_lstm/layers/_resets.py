"""Rows that return to their initial state within a batch, and the loop that does it."""

import contextlib
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


def check_reset_mask(reset_mask: Any, rows: tuple[Any, ...]) -> None:
    """Raises a `ValueError` if it is known not to be one for such sequences.

    Args:
        reset_mask: Anything.
        rows: Their batch size and number of timesteps, `None` for what is not known.
    """
    shape = shape_of(reset_mask) or ()
    is_boolean = False
    with contextlib.suppress(ValueError):  # An array of objects or strings.
        # Integers are accepted too, as in a mask. What has no dtype gets the default
        # floating point dtype here.
        dtype = keras.backend.standardize_dtype(getattr(reset_mask, "dtype", None))
        is_boolean = dtype.startswith(("bool", "int", "uint"))
    if not (is_boolean and shape and fits(shape, rows[: len(shape)])):
        raise ValueError(
            f"{_expectation(rows)} Received: reset_mask={described(reset_mask)}"
        )


def _expectation(rows: Sequence[Any]) -> str:
    return (
        f"Argument `reset_mask` must be a boolean tensor of shape {shape_text(rows)}, "
        f"True where a new sequence begins, or of shape {shape_text(rows[:1])}, for "
        "what is read first."
    )


def first_read(layer: keras.layers.RNN) -> int:
    """The index of the timestep that a layer reads first."""
    return -1 if layer.go_backwards else 0


def restarted(
    layer: keras.layers.RNN,
    sequences: Any,
    states: Sequence[Any],
    mask: Any,
    reset_mask: Any,
    starts: Sequence[Any],
) -> tuple[list[Any], Any]:
    """Returns the states and the mask that `layer` hands to Keras's `call()`.

    Args:
        layer: A recurrent layer of this package.
        sequences: A tensor `(batch, timesteps, ...)`.
        states: What the rows start from, each `(batch, units)`.
        mask: The mask of the call, or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)` or `(batch,)`.
        starts: As in `InPlaceOfMask`.
    """
    rows = ops.shape(sequences)[:2]
    reset_mask = ops.cast(ops.convert_to_tensor(reset_mask), "bool")
    expectation = _expectation(rows)
    reset_mask = with_shape(reset_mask, rows[: len(reset_mask.shape)], expectation)
    if len(reset_mask.shape) == 1:
        first = first_read(layer)
        starts = [s if len(s.shape) == 2 else s[:, first] for s in starts]
        pairs = zip(starts, states, strict=True)
        reset = reset_mask[:, None]
        return [ops.where(reset, start, state) for start, state in pairs], mask
    if layer.go_backwards:
        # What begins at a timestep is, read backwards, over after it: the timestep
        # before belongs to another sequence.
        none = ops.zeros_like(reset_mask[:, :1])
        reset_mask = ops.concatenate([reset_mask[:, 1:], none], axis=1)
    starts = [ops.cast(start, layer.cell.compute_dtype) for start in starts]
    return list(states), InPlaceOfMask(mask, reset_mask, starts)


def restarting_loop(
    layer: keras.layers.RNN,
    sequences: Any,
    initial_state: Any,
    restarts: InPlaceOfMask,
    training: bool,
) -> tuple[Any, Any, list[Any]]:
    """Does what the `inner_loop` of Keras does, for rows that restart.

    It is Keras's loop around a step that also masks: Keras would undo a restart at a
    masked timestep. So the output before is carried too, after the states.
    """
    mask = next(iter(keras.tree.flatten(restarts.mask)), None)
    states = keras.tree.flatten(initial_state)
    count = len(states)
    inputs = [sequences, restarts.reset_mask[:, :, None]]
    if mask is not None:
        inputs.append(mask[:, :, None] if len(mask.shape) == 2 else mask)
        states.append(_before_reading(layer, initial_state))
    differing = [k for k, start in enumerate(restarts.starts) if len(start.shape) == 3]
    inputs += [restarts.starts[k] for k in differing]
    kwargs = {"training": training} if takes_training(layer.cell) else {}

    def step(inputs: Sequence[Any], carried: Sequence[Any]) -> tuple[Any, list[Any]]:
        x, reset, *others = inputs
        starts = list(restarts.starts)
        for k in reversed(differing):
            starts[k] = others.pop()
        pairs = zip(starts, carried, strict=False)
        states = [ops.where(reset, start, state) for start, state in pairs]
        nested = keras.tree.pack_sequence_as(initial_state, states)
        output, new_states = layer.cell(x, nested, **kwargs)
        new_states = keras.tree.flatten(new_states)
        if mask is None:
            return output, new_states
        keep = ops.cast(others[0], "bool")
        before = ops.where(reset, _before_reading(layer, nested), carried[count])
        pairs = zip(new_states, states, strict=True)
        states = [ops.where(keep, new, old) for new, old in pairs]
        shown = ops.where(keep, output, before)
        if layer.zero_output_for_mask:
            output = ops.where(keep, output, ops.zeros_like(output))
        else:
            output = shown
        return output, [*states, shown]

    last_output, outputs, states = rnn(
        step,
        tuple(inputs),
        states,
        go_backwards=layer.go_backwards,
        unroll=layer.unroll,
        # With several inputs, Keras needs to be told. It also asks for the truth value,
        # which a tensor in a graph does not have, but a list does.
        input_length=sequences.shape[1] or [ops.shape(sequences)[1]],
        return_all_outputs=layer.return_sequences,
    )
    states = keras.tree.flatten(states)[:count]
    return last_output, outputs, keras.tree.pack_sequence_as(initial_state, states)


def _before_reading(layer: keras.layers.RNN, states: Any) -> Any:
    """What Keras puts out at a masked timestep before it has read any."""
    is_stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)
    h = keras.tree.flatten(states[-1] if is_stacked else states)[0]
    if backend.shows_initial_state and not layer.unroll:
        return h
    size = getattr(layer.cell, "output_size", None) or h.shape[1]
    return ops.zeros((ops.shape(h)[0], size), h.dtype)
