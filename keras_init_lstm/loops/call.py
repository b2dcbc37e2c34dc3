"""What a backend's loop is given: plain tensors, and what is wanted of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple


class InPlaceOfMask(NamedTuple):
    """A mask, and what Keras has no argument for, handed through Keras as the mask.

    `Bidirectional` hands it to both of its layers, and a layer to its `inner_loop()`.

    Attributes:
        mask: The mask of the call, or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a row is to return
            to its initial state before that timestep is read; or `None`.
        starts: For each state in order what that is: a tensor `(batch, units)`, or
            `(batch, timesteps, units)` where it differs from timestep to timestep.
            Empty for a layer, which computes them.
        context: The context of the call. `None` for an `inner_loop()`.
    """

    mask: Any
    reset_mask: Any = None
    starts: Sequence[Any] = ()
    context: Any = None

    @classmethod
    def of(cls, mask: Any) -> InPlaceOfMask:
        """Returns what a layer or an `inner_loop()` was given as its mask."""
        return mask if isinstance(mask, cls) else cls(mask)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a recurrent layer, without the layer.

    All floating point tensors have one dtype. The tensors belong to the backend that
    runs the loop.

    Attributes:
        cell: Which of Keras's cells it is.
        sequences: Tensor `(batch, timesteps, features)`. Dropout is already applied,
            and with `go_backwards` everything with a time axis is already reversed.
            With `drops_by_gate` it is `(batch, timesteps, gates * features)` from then
            on: the sequences of each gate, side by side.
        states: The states before the first timestep, each `(batch, units)`, h first.
        kernel: Tensor `(features, gates * units)`, as Keras's cell holds it: the gates
            of an LSTM are i, f, c, o; the gates of a GRU are z, r, h.
        recurrent_kernel: Tensor `(units, gates * units)`.
        bias: Tensor `(gates * units,)`, for a GRU with `reset_after` `(2, gates *
            units)`, or `None`.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is left out:
            the states stay, and the output is h before it. Or `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a row returns to
            `starts` before that timestep is read, or left out. Or `None`.
        starts: For each state what the rows return to: a tensor `(batch, units)`, or
            `(batch, timesteps, units)` where it differs between timesteps. Empty
            without a `reset_mask`.
        drops_by_gate: Whether dropout draws a mask for each gate.
        recurrent_dropout: The rate at which h is dropped before its products with the
            recurrent kernel. It is 0 at inference.
        recurrent_masks: For each gate what h is multiplied with before its product
            with the recurrent kernel, `(batch, units)`. Empty without recurrent
            dropout, and until the masks are drawn, which is after `check()`.
        activation: The name of the activation in `keras.activations`, or another name
            if it is none of these.
        recurrent_activation: Likewise, of the activation of the gates. A SimpleRNN has
            no such gates.
        reset_after: For a GRU, whether the reset gate is applied after the product
            with the recurrent kernel.
        training: Whether the layer is called in training mode.
        wants_outputs: Whether the outputs of all timesteps are wanted.
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
    starts: Sequence[Any] = ()
    drops_by_gate: bool = False
    recurrent_dropout: float = 0.0
    recurrent_masks: Sequence[Any] = ()
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    reset_after: bool = True
    training: bool = False
    wants_outputs: bool = True
    differentiable: bool = True

    @property
    def weights(self) -> list[Any]:
        """The kernel, the recurrent kernel and the bias, if there is one."""
        biases = [] if self.bias is None else [self.bias]
        return [self.kernel, self.recurrent_kernel, *biases]

    def replace(self, **changes: Any) -> Call:
        """Returns the call with other values of these attributes."""
        return dataclasses.replace(self, **changes)

    def with_each_sequence(self, change: Callable[[Any], Any]) -> Call:
        """Returns the call with everything that has a time axis changed."""
        return self.replace(
            sequences=change(self.sequences),
            mask=None if self.mask is None else change(self.mask),
            reset_mask=None if self.reset_mask is None else change(self.reset_mask),
            starts=[change(s) if len(s.shape) == 3 else s for s in self.starts],
        )
