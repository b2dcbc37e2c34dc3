"""The inputs of a backend's loop: plain tensors and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple


class InPlaceOfMask(NamedTuple):
    """A mask, a reset mask and a context, which pass through Keras as the mask.

    `Bidirectional` passes it to its two layers, and a layer to its `inner_loop()`.

    Attributes:
        mask: The mask of the call, or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a row returns to
            its initial state before that timestep is read; or `None`.
        states_after_reset: For each state, in order, the state after a reset: a tensor
            `(batch, units)`, or `(batch, timesteps, units)` if it differs between
            timesteps. Empty for a layer, which computes these states.
        context: The context of the call. `None` for an `inner_loop()`.
    """

    mask: Any
    reset_mask: Any = None
    states_after_reset: Sequence[Any] = ()
    context: Any = None

    @classmethod
    def of(cls, mask: Any) -> InPlaceOfMask:
        """Returns the mask of a layer or of an `inner_loop()`, wrapped if it is not."""
        return mask if isinstance(mask, cls) else cls(mask)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a recurrent layer, without the layer.

    All floating point tensors have one dtype. The tensors belong to the backend that
    runs the loop.

    Attributes:
        cell: The kind of the cell.
        sequences: Tensor `(batch, timesteps, features)`. Dropout is already applied,
            and with `go_backwards` everything with a time axis is already reversed.
            With `drops_by_gate`, its shape is then `(batch, timesteps, gates *
            features)`: the sequences of all gates, side by side.
        states: The states before the first timestep, each `(batch, units)`, h first.
        kernel: Tensor `(features, gates * units)`, as Keras's cell holds it: the gates
            of an LSTM are i, f, c, o; the gates of a GRU are z, r, h.
        recurrent_kernel: Tensor `(units, gates * units)`.
        bias: Tensor `(gates * units,)`, for a GRU with `reset_after` `(2, gates *
            units)`, or `None`.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is skipped:
            it keeps the states, and its output is the last h. Or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a row is reset
            before that timestep is read or skipped. Or `None`.
        states_after_reset: For each state, the state after a reset: a tensor `(batch,
            units)`, or `(batch, timesteps, units)` if it differs between timesteps.
            Empty without a `reset_mask`.
        drops_by_gate: Whether dropout draws a mask for each gate.
        recurrent_dropout: The rate at which h is dropped before its products with the
            recurrent kernel. It is 0 at inference.
        recurrent_masks: For each gate, the dropout mask `(batch, units)` of h, which is
            applied before its product with the recurrent kernel. Empty without
            recurrent dropout, and during `check()`, before the masks are drawn.
        activation: The name of the activation in `keras.activations`, or another name
            for a custom activation.
        recurrent_activation: The name of the activation of the gates, likewise. A
            SimpleRNN has no such gates.
        reset_after: For a GRU, whether the reset gate is applied after the product
            with the recurrent kernel.
        training: Whether the layer is called in training mode.
        wants_outputs: Whether the outputs of all timesteps are wanted.
        wants_states: Whether the last states are wanted.
        differentiable: Whether a gradient may be taken.
    """

    cell: Literal["lstm", "gru", "simple_rnn"]
    sequences: Any
    states: Sequence[Any]
    kernel: Any
    recurrent_kernel: Any
    bias: Any = None
    mask: Any = None
    reset_mask: Any = None
    states_after_reset: Sequence[Any] = ()
    drops_by_gate: bool = False
    recurrent_dropout: float = 0.0
    recurrent_masks: Sequence[Any] = ()
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    training: bool = False
    wants_outputs: bool = True
    wants_states: bool = True
    differentiable: bool = True

    @property
    def weights(self) -> list[Any]:
        """The kernel, the recurrent kernel and the bias, if there is one."""
        biases = [] if self.bias is None else [self.bias]
        return [self.kernel, self.recurrent_kernel, *biases]

    def replace(self, **changes: Any) -> Call:
        """Returns the call with other values of attributes."""
        return dataclasses.replace(self, **changes)

    def with_each_sequence(self, change: Callable[[Any], Any]) -> Call:
        """Returns the call with everything that has a time axis changed."""
        return self.replace(
            sequences=change(self.sequences),
            mask=None if self.mask is None else change(self.mask),
            reset_mask=None if self.reset_mask is None else change(self.reset_mask),
            states_after_reset=[
                change(s) if len(s.shape) == 3 else s for s in self.states_after_reset
            ],
        )
