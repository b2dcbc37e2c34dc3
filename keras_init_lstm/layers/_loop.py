"""Which loop runs a layer: a fused loop, cuDNN, or Keras's loop."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_init_lstm import loops
from keras_init_lstm._checks import one_of
from keras_init_lstm._copies import left_out_of_config
from keras_init_lstm._keras import DECIDES_TO_FUSE_DIRECTIONS
from keras_init_lstm.backend import NotFusedError, backend
from keras_init_lstm.layers._resets import loop_with_resets
from keras_init_lstm.loops.call import InPlaceOfMask
from keras_init_lstm.loops.exact_cell import why_not_exact

_avoids_cudnn = contextvars.ContextVar("_avoids_cudnn", default=False)


class UseFusedAttribute:
    """The attribute `use_fused` of a layer. It is checked when it is set."""

    def __get__(self, layer: Any, cls: type | None = None) -> bool | Literal["auto"]:
        if layer is None:
            return self  # type: ignore[return-value]
        return layer._use_fused

    def __set__(self, layer: Any, value: Any) -> None:
        one_of(value, "use_fused", ("auto", True, False))
        layer._use_fused = value


class UseCudnnAttribute:
    """The attribute `use_cudnn` of a layer.

    On JAX and PyTorch, `keras.layers.Bidirectional` runs two layers whose `use_cudnn`
    is True or "auto" in one cuDNN call, which starts from zeros and would lose an
    owned state. A layer with an owned state therefore returns False when
    `Bidirectional` reads the attribute. Each direction may still run cuDNN.
    """

    def __get__(self, layer: Any, cls: type | None = None) -> bool | Literal["auto"]:
        if layer is None:
            return self  # type: ignore[return-value]
        if _avoids_cudnn.get():
            return False
        # Test the caller first: while Keras's constructor runs, the layer has no
        # `initial_state` yet.
        if backend.is_called_by(DECIDES_TO_FUSE_DIRECTIONS) and any(
            layer.initial_state
        ):
            return False
        return layer._use_cudnn

    def __set__(self, layer: Any, value: Any) -> None:
        layer._use_cudnn = value


def arguments_of_loop(layer: Any) -> dict[str, Any]:
    """Returns the constructor arguments that choose the loop. Keras saves none."""
    use_fused = {"use_fused": layer.use_fused} if hasattr(layer, "use_fused") else {}
    return {**use_fused, **left_out_of_config(layer)}


def bit_identical_arguments(cls: type) -> dict[str, Any]:
    """Returns the arguments that make outputs bit-identical to the Keras layer's."""
    return {"use_fused": False} if hasattr(cls, "use_fused") else {}


def check_loop(
    layer: Any, sequences: Any, mask: Any, training: bool, keras_loop: Any
) -> None:
    """Raises a `ValueError` if `use_fused=True` and no fused loop can run.

    `run_loop()` raises the same error, but only after Keras has drawn dropout masks.

    Args:
        layer: This and the next four as in `run_loop()`.
        sequences: As in `run_loop()`.
        mask: As in `run_loop()`, but not `InPlaceOfMask`.
        training: As in `run_loop()`.
        keras_loop: As in `run_loop()`.
    """
    if getattr(layer, "use_fused", False) is True:
        try:
            _check_inner_loop(layer, keras_loop)
            loops.check_runs(layer, sequences, mask, training)
        except NotFusedError as reason:
            raise _not_fused(reason) from reason


def run_call(
    layer: Any,
    sequences: Any,
    states: Sequence[Any],
    mask: Any,
    training: bool,
    keras_call: Callable[..., Any],
    keras_loop: Callable[..., Any],
    inner_loop: Callable[..., Any],
) -> Any:
    """Runs the fused loop, or Keras's `call()`, whose interface it has.

    Before and after the loop, Keras's `call()` converts and casts each tensor again,
    which takes as long as a kernel for a small batch. Keras's `call()` must run if it
    does more: it draws dropout masks, and hands the last states to a stream.

    Args:
        layer: A recurrent layer of this package.
        sequences: As in the `call()` of Keras.
        states: The `initial_state` of the `call()` of Keras.
        mask: As in the `call()` of Keras; or `InPlaceOfMask`.
        training: As in the `call()` of Keras.
        keras_call: The `call()` of the layer's base class.
        keras_loop: The `inner_loop()` of the layer's base class.
        inner_loop: The function that calls `run_loop()`. A subclass may override it.
    """
    if _may_skip_keras_call(layer, keras_call, inner_loop):
        dtype = sequences.dtype
        in_dtype = [
            state if state.dtype == dtype else ops.cast(state, layer.compute_dtype)
            for state in states
        ]
        # If no fused loop can run, Keras's `call()` calls `run_loop()`.
        with contextlib.suppress(NotFusedError):
            last_output, outputs, last_states = run_fused(
                layer,
                sequences,
                in_dtype,
                mask,
                training,
                keras_loop,
                wants_states=layer.return_state,
            )
            output = outputs if layer.return_sequences else last_output
            return (output, *last_states) if layer.return_state else output
    return keras_call(sequences, initial_state=states, mask=mask, training=training)


def _may_skip_keras_call(layer: Any, keras_call: Any, inner_loop: Any) -> bool:
    return (
        getattr(layer, "use_fused", False)
        and not layer.stateful
        and not has_dropout(layer.cell)
        and keras_call.__func__ is layer.keras_layer.call
        and getattr(layer.inner_loop, "__func__", None) is inner_loop
    )


def has_dropout(cell: Any) -> bool:
    """Whether a cell has dropout. A custom cell may have no such attributes."""
    return bool(getattr(cell, "dropout", 0) or getattr(cell, "recurrent_dropout", 0))


def run_loop(
    layer: Any,
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: bool,
    keras_loop: Callable[..., Any],
) -> Any:
    """Runs the loop that the layer chooses, with the interface of Keras's loop.

    Args:
        layer: A recurrent layer of this package.
        sequences: This and the next three as in the `inner_loop()` of Keras.
        initial_state: As in the `inner_loop()` of Keras.
        mask: As in the `inner_loop()` of Keras; or `InPlaceOfMask`.
        training: As in the `inner_loop()` of Keras.
        keras_loop: The `inner_loop()` of the layer's base class.

    Returns:
        The last output, the outputs, and the last states.

    Raises:
        ValueError: If `use_fused=True` and no fused loop can run, or if
            `use_cudnn=True` and cuDNN would not compute the cell.
    """
    use_fused = getattr(layer, "use_fused", False)
    if use_fused:
        try:
            return run_fused(
                layer, sequences, initial_state, mask, training, keras_loop
            )
        except NotFusedError as reason:
            if use_fused is True:
                raise _not_fused(reason) from reason
    return _run_plain(layer, keras_loop, sequences, initial_state, mask, training)


def run_fused(
    layer: Any,
    sequences: Any,
    states: Sequence[Any],
    mask: Any,
    training: bool,
    keras_loop: Callable[..., Any],
    **wants: bool,
) -> tuple[Any, Any, list[Any]]:
    """Runs the fused loop, with the interface of Keras's loop.

    Args:
        layer: This and the next five as in `run_loop()`.
        sequences: As in `run_loop()`.
        states: As in `run_loop()`.
        mask: As in `run_loop()`.
        training: As in `run_loop()`.
        keras_loop: As in `run_loop()`.
        **wants: `wants_states` and `wants_all_outputs` of `loops.inner_loop()`.

    Raises:
        NotFusedError: If it does not run.
    """
    _check_inner_loop(layer, keras_loop)
    plain = functools.partial(_run_plain, layer, keras_loop)
    return loops.inner_loop(layer, sequences, states, mask, training, plain, **wants)


def _run_plain(
    layer: Any,
    keras_loop: Callable[..., Any],
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: bool = False,
) -> Any:
    backend.check_length_is_traced(layer.name)
    given = InPlaceOfMask.of(mask)
    if given.reset_mask is not None:
        return loop_with_resets(layer, sequences, initial_state, given, training)
    must_call_cell = _must_call_cell(layer)
    token = _avoids_cudnn.set(must_call_cell or _cell_is_faster(layer, training))
    try:
        return keras_loop(sequences, initial_state, given.mask, training=training)
    finally:
        _avoids_cudnn.reset(token)


def _must_call_cell(layer: Any) -> bool:
    """Whether cuDNN, which gets only the weights, would not compute the layer's cell.

    Raises:
        ValueError: If it would not, and `use_cudnn=True`.
    """
    use_cudnn = getattr(layer, "_use_cudnn", False)
    reason = why_not_exact(layer) if use_cudnn else None
    if reason and use_cudnn is True:
        raise ValueError(
            f"cuDNN does not support {reason}. Pass `use_cudnn='auto'`. Received: "
            "use_cudnn=True"
        )
    return reason is not None


def _cell_is_faster(layer: Any, training: bool) -> bool:
    """Whether Keras's loop that calls the cell is preferred to its loop for the GRU.

    `make bench` measures both.
    """
    is_gru = layer.keras_layer is keras.layers.GRU
    return is_gru and layer.use_fused and backend.cell_of_gru_is_faster(training)


def _check_inner_loop(layer: Any, keras_loop: Any) -> None:
    """Raises a `NotFusedError` if another base class overrides `inner_loop()`."""
    if keras_loop.__func__ is not layer.keras_layer.inner_loop:
        raise NotFusedError("an `inner_loop()` that is not Keras's")


def _not_fused(reason: NotFusedError) -> ValueError:
    return ValueError(
        f"The fused loop does not support {reason}. Pass `use_fused='auto'` to run "
        "Keras's own loop. Received: use_fused=True"
    )
