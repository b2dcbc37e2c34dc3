"""When a fused loop runs instead of Keras's loop, its inputs and its outputs.

A backend's module gets a `Call` of plain tensors, and only runs a loop:

- `check(call)` raises a `NotFusedError` if `run()` can't run the call;
- `why_slower(call)` returns why Keras's loop is preferred, or `None`;
- `run(call)` returns all outputs (`None` if they are not wanted), the last output and
  the list of the last states (any list if they are not wanted);
- `may_be_exported(call)` returns whether the traced graph may be written to a file. The
  file must then hold Keras's loop: `substitute()` puts Keras's loop into the graph, and
  lets the fused loop run in this process.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_init_lstm._checks import shape_of
from keras_init_lstm._keras import infers_shapes
from keras_init_lstm.backend import NotFusedError, backend
from keras_init_lstm.loops.call import Call, InPlaceOfMask
from keras_init_lstm.loops.exact_cell import CELLS, why_not_exact

# The recurrent activation of a cell that has no such gates.
_NO_GATES = keras.activations.sigmoid

_MODULES = {
    "tensorflow": "keras_init_lstm.loops.tensorflow",
    "torch": "keras_init_lstm.loops.torch",
}


_name = keras.backend.backend()
_loop: Any = importlib.import_module(_MODULES[_name]) if _name in _MODULES else None


def check_runs(
    layer: Any,
    sequences: Any,
    mask: Any,
    training: bool,
    states: Sequence[Any] = (),
) -> None:
    """Raises what `inner_loop()` would raise, before anything is drawn.

    Args:
        layer: This and the next three as in `inner_loop()`.
        sequences: As in `inner_loop()`.
        mask: As in `inner_loop()`, but not `InPlaceOfMask`.
        training: As in `inner_loop()`.
        states: The states before the first timestep, as far as they are known.
    """
    _check_possible(layer)
    _check(layer, _call(layer, sequences, states, InPlaceOfMask(mask), training))


def inner_loop(
    layer: Any,
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: bool,
    plain: Callable[..., Any],
    wants_states: bool = True,
    wants_all_outputs: bool = False,
) -> tuple[Any, Any, list[Any]]:
    """Runs the loop of the backend, with the interface of Keras's `inner_loop`.

    Args:
        layer: An `InitStateLSTM`, `InitStateGRU` or `InitStateSimpleRNN`. If its
            `use_fused` is not True, the loop runs only if it is known to be faster.
        sequences: A tensor `(batch, timesteps, features)`.
        initial_state: A list of the states, each `(batch, units)`.
        mask: A tensor `(batch, timesteps)`, a list of it, `None`, or `InPlaceOfMask`.
        training: Python boolean.
        plain: Keras's own `inner_loop`, for a graph that may be exported.
        wants_states: Whether the caller uses the last states. Defaults to `True`.
        wants_all_outputs: Whether the caller uses all outputs, even if the layer has
            `return_sequences=False`. Defaults to `False`.

    Returns:
        The last output, all outputs, and the list of the last states; any list if they
        are not wanted.

    Raises:
        NotFusedError: If Keras's loop must run, or is preferred.
    """
    _check_possible(layer)
    call = _call(layer, sequences, initial_state, InPlaceOfMask.of(mask), training)
    call = call if wants_states else call.replace(wants_states=False)
    call = call.replace(wants_outputs=True) if wants_all_outputs else call
    _check(layer, call)
    if not _may_be_exported(layer, call):
        return _run(layer, call)
    if wants_all_outputs:
        raise NotFusedError("all outputs, in what may be an export")

    def fused(
        sequences: Any, states: Sequence[Any], in_place_of_mask: InPlaceOfMask
    ) -> Any:
        # This runs in another function, in which the weights are other tensors. If a
        # gradient is taken, the plain loop runs.
        call = _call(
            layer, sequences, states, in_place_of_mask, training, differentiable=False
        )
        return _run(layer, call)

    in_place_of_mask = InPlaceOfMask(
        call.mask, call.reset_mask, call.states_after_reset
    )
    return _loop.substitute(
        plain, fused, layer.cell.weights, call.sequences, call.states, in_place_of_mask
    )


def _check_possible(layer: Any) -> None:
    """Raises a `NotFusedError` if no loop can run any call of the layer."""
    if _loop is None:
        raise NotFusedError(f"the backend {_name}")
    reason = why_not_exact(layer)
    if reason:
        raise NotFusedError(reason)


def _call(
    layer: Any,
    sequences: Any,
    states: Sequence[Any],
    in_place_of_mask: InPlaceOfMask,
    training: bool,
    differentiable: bool = True,
) -> Call:
    cell, tensor = layer.cell, backend.as_tensor
    mask = in_place_of_mask.mask
    if isinstance(mask, (list, tuple)):
        mask = mask[0]
    return Call(
        cell=CELLS[layer.keras_layer].name,
        activation=_name_of(cell.activation),
        recurrent_activation=_name_of(getattr(cell, "recurrent_activation", _NO_GATES)),
        drops_by_gate=bool(training and cell.dropout and _has_mask_of_each_gate(cell)),
        recurrent_dropout=cell.recurrent_dropout if training else 0.0,
        reset_after=bool(getattr(cell, "reset_after", False)),
        sequences=tensor(sequences),
        states=list(map(tensor, states)),
        kernel=tensor(cell.kernel),
        recurrent_kernel=tensor(cell.recurrent_kernel),
        bias=tensor(cell.bias) if cell.use_bias else None,
        mask=None if mask is None else tensor(mask),
        reset_mask=in_place_of_mask.reset_mask,
        states_after_reset=in_place_of_mask.states_after_reset,
        training=bool(training),
        wants_outputs=layer.return_sequences,
        differentiable=differentiable,
    )


def _has_mask_of_each_gate(cell: Any) -> bool:
    """Whether a cell draws a mask for each gate, as with `implementation=1`."""
    return hasattr(cell, "dropout_mask_count")


def _name_of(activation: Any) -> str:
    name = getattr(activation, "__name__", type(activation).__name__)
    is_of_keras = getattr(keras.activations, name, None) is activation
    if is_of_keras:
        return name
    registered = keras.saving.get_registered_name(activation)
    return registered if registered != name else f"custom {name}"


def _check(layer: Any, call: Call) -> None:
    if layer.use_fused is not True:
        # Test these first: they are cheap, and a call with few timesteps is short.
        reason = _loop.why_slower(call)
        if reason:
            raise NotFusedError(reason)
        if infers_shapes():
            raise NotFusedError("a call for the shapes alone")
        if _draws_at_inference(layer) and _may_be_exported(layer, call):
            raise NotFusedError("draws at inference, in what may be an export")
    for reason in _refusals(layer, call):
        raise NotFusedError(reason)
    _loop.check(call)


def _refusals(layer: Any, call: Call) -> Iterator[str]:
    """Yields the reasons why no loop can run a call."""
    cell = layer.cell
    if layer.unroll:
        yield "unroll=True"
    if getattr(layer, "use_cudnn", False) is True:
        yield "use_cudnn=True"
    drops = call.training and cell.dropout
    if drops or call.recurrent_dropout:
        yield from _refusals_of_dropout(cell, call, drops)
    dtype = call.sequences.dtype
    name = keras.backend.standardize_dtype(dtype)
    if name != layer.compute_dtype:
        yield f"inputs of dtype {name}"
    if any(weight.dtype != dtype for weight in call.weights):
        yield "weights that are not cast to the dtype of the layer"
    if call.mask is not None and not _fits(shape_of(call.mask), call.sequences):
        yield "a mask that is not known to be (batch, timesteps)"


def _refusals_of_dropout(cell: Any, call: Call, drops: Any) -> Iterator[str]:
    if drops and cell.dropout >= 1:
        yield "dropout=1.0"
    if call.recurrent_dropout >= 1:
        yield "recurrent_dropout=1.0"
    draws_for_each_gate = _has_mask_of_each_gate(cell)
    # Keras creates a cell with recurrent dropout with `implementation=1`.
    if (getattr(cell, "implementation", 2) == 1) != draws_for_each_gate:
        yield "a cell whose implementation was changed"
    if call.recurrent_dropout and not (
        draws_for_each_gate or call.cell == "simple_rnn"
    ):
        yield "a cell whose recurrent_dropout was changed"


def _fits(shape: tuple[int | None, ...] | None, sequences: Any) -> bool:
    if shape is None or len(shape) != 2:
        return False
    batch_size, timesteps = sequences.shape[:2]
    # A mask with one row is broadcast.
    fits = shape[0] in (1, batch_size) or None in (shape[0], batch_size)
    return fits and shape[1] == timesteps


def _draws_at_inference(layer: Any) -> bool:
    cell = layer.cell
    return isinstance(layer, keras.layers.SimpleRNN) and (
        cell.dropout or cell.recurrent_dropout
    )


def _may_be_exported(layer: Any, call: Call) -> bool:
    return layer.use_fused is not True and _loop.may_be_exported(call)


def _run(layer: Any, call: Call) -> tuple[Any, Any, list[Any]]:
    cell, sequences, mask = layer.cell, call.sequences, call.mask
    if call.training and cell.dropout:
        masks = _listed(cell.get_dropout_mask(sequences[:, 0]))
        of_gates = [sequences * mask[:, None] for mask in masks]
        sequences = ops.concatenate(of_gates, axis=2) if masks[1:] else of_gates[0]
    elif call.cell == "simple_rnn":
        # Keras's SimpleRNN draws dropout masks at inference too; draw them here, so
        # that later random numbers agree.
        cell.get_dropout_mask(sequences[:, 0])
        cell.get_recurrent_dropout_mask(call.states[0])
    if call.recurrent_dropout:
        masks = _listed(cell.get_recurrent_dropout_mask(call.states[0]))
        call = call.replace(recurrent_masks=masks)
    if mask is not None:
        # Broadcast a mask with one row.
        mask = ops.broadcast_to(ops.cast(mask, "bool"), ops.shape(sequences)[:2])
    call = call.replace(sequences=sequences, mask=mask)
    if layer.go_backwards:
        call = call.with_each_sequence(lambda tensor: ops.flip(tensor, axis=1))
    outputs, last_output, states = _loop.run(call)
    if outputs is None:
        outputs = last_output[:, None]
    if call.mask is None:
        return last_output, outputs, states
    # At a masked timestep, Keras puts out zeros, or the last output of the row since
    # its last reset, if there is one.
    shown = call.mask
    if not layer.zero_output_for_mask:
        shown = _has_read(call.mask, call.reset_mask)
    if not call.wants_outputs:
        shown = shown[:, -1:]
    outputs = ops.where(shown[:, :, None], outputs, ops.zeros_like(outputs))
    return outputs[:, -1], outputs, states


def _listed(masks: Any) -> list[Any]:
    """Returns the dropout masks of a cell as a list: one for each gate, or for all."""
    return [*masks] if isinstance(masks, (list, tuple)) else [masks]


def _has_read(mask: Any, reset_mask: Any) -> Any:
    """Whether a row has read a timestep since its last reset, `(batch, timesteps)`."""
    mask = ops.cast(mask, "int32")
    read = ops.cumsum(mask, axis=1)
    if reset_mask is None:
        return read > 0
    # For each piece of each row, how many timesteps of the row were read before it.
    batch_size, timesteps = ops.shape(mask)
    pieces = ops.cumsum(ops.cast(reset_mask, "int32"), axis=1)
    pieces += ops.arange(batch_size, dtype="int32")[:, None] * (timesteps + 1)
    before = ops.where(reset_mask, read - mask, ops.zeros_like(read))
    read_before = ops.segment_max(
        ops.reshape(before, (-1,)),
        ops.reshape(pieces, (-1,)),
        num_segments=batch_size * (timesteps + 1),
    )
    return read > ops.take(read_before, pieces)
