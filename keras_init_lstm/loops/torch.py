"""The loop of a recurrent layer, run by PyTorch's native kernels.

On a GPU, PyTorch calls cuDNN. On the CPU, it calls oneDNN for an LSTM in float32, and
otherwise a loop in C++. The kernels support neither masks nor resets, so the batch is
rearranged: a reset splits a row into pieces, and the unmasked timesteps of a piece move
to the left. Padding follows on the right, and its outputs are dropped.

PyTorch differentiates the kernels, and on the CPU their derivatives. cuDNN has no
second derivatives: PyTorch then raises a `RuntimeError` that says how to disable it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from keras_init_lstm.backend.base import NotFusedError
from keras_init_lstm.loops.call import Call
from keras_init_lstm.loops.pieces import Pieces, split

try:
    # The native kernels do not support most transforms of `torch.func`, and no public
    # function returns the current transforms.
    from torch._functorch.pyfunctorch import (
        retrieve_all_functorch_interpreters as transformations,
    )
except ImportError:
    transformations = None

# The layers of `torch.nn` call these functions, which are not documented. No documented
# function takes weights.
_KERNELS = {
    ("lstm", "tanh"): "lstm",
    ("gru", "tanh"): "gru",
    ("simple_rnn", "tanh"): "rnn_tanh",
    ("simple_rnn", "relu"): "rnn_relu",
}

_PLAIN_TYPES = {torch.Tensor, torch.nn.Parameter}

# For a kernel call, PyTorch reorders the weights, which takes as long as some timesteps
# of Keras's loop. Keras's loop for masks, and for a SimpleRNN, is several times slower.
_FEWEST_TIMESTEPS = 8

# The sigmoid of a sum with this number is 1, and with its negative 0, in float16 too.
_SATURATED = 1000.0


def check(call: Call) -> None:
    """Raises a `NotFusedError` with the reason if `run()` can't run the call."""
    for reason in _refusals(call):
        raise NotFusedError(reason)


def _refusals(call: Call) -> Iterator[str]:
    """Yields the reasons why `run()` can't run the call. The order matters."""
    kernel = _KERNELS.get((call.cell, call.activation), "")
    if not kernel:
        yield f"activation={call.activation}"
    if call.recurrent_activation != "sigmoid":
        yield f"recurrent_activation={call.recurrent_activation}"
    if call.recurrent_dropout > 0:
        yield "recurrent_dropout"
    if call.drops_by_gate:
        yield "dropout with implementation=1"
    # Both would unroll the native kernel, as they unroll Keras's loop. Test this first:
    # `torch.compile` can't trace the other tests.
    if torch.compiler.is_compiling():
        yield "torch.compile and torch.export"
    if not hasattr(torch, kernel):
        yield "a PyTorch without its function"
    if call.cell == "gru" and not call.reset_after:
        yield "reset_after=False"
    yield from _refusals_of_tensors(call)
    if torch.jit.is_tracing():
        # The trace would depend on the values of the masks.
        if call.mask is not None or call.reset_mask is not None:
            yield "a mask in torch.jit.trace or an export to ONNX"
    elif not call.sequences.numel():
        yield "an empty batch"


def _refusals_of_tensors(call: Call) -> Iterator[str]:
    sequences = call.sequences
    tensors = [sequences, *call.weights, *call.states, *call.states_after_reset]
    masks = [m for m in (call.mask, call.reset_mask) if m is not None]
    if not {type(tensor) for tensor in (*tensors, *masks)} <= _PLAIN_TYPES:
        yield "subclasses of tensors"
    # The native kernels don't check shapes, and would read other memory.
    features, units = call.kernel.shape[0], call.recurrent_kernel.shape[0]
    if sequences.dim() != 3 or sequences.shape[2] != features:
        yield "sequences that do not fit the kernel"
    batch, timesteps, _ = sequences.shape
    shapes = ((batch, units), (batch, timesteps, units))
    if any(state.shape != shapes[0] for state in call.states) or any(
        state.shape not in shapes for state in call.states_after_reset
    ):
        yield "states that are not (batch, units)"
    device, dtype = sequences.device.type, sequences.dtype
    if device not in ("cpu", "cuda"):
        yield f"the device {device}"
    if len({tensor.device for tensor in tensors}) > 1:
        yield "tensors on several devices"
    if not dtype.is_floating_point:
        yield f"the dtype {dtype}"
    if len({tensor.dtype for tensor in tensors}) > 1:
        yield "tensors of several dtypes"
    # Under autocast, oneDNN raises an error on a CPU without bfloat16.
    if torch.is_autocast_enabled(device):
        yield "torch.autocast"
    if transformations is None:
        yield "a PyTorch without its list of transformations"
    if any(level.key().name != "Grad" for level in transformations()):
        yield "torch.func.vmap and torch.func.jvp"
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        yield "forward-mode differentiation"


def why_slower(call: Call) -> str | None:
    """Returns why Keras's loop is preferred, or `None`."""
    if call.sequences.device.type != "cpu":
        # Nobody has run it there yet. Keras runs cuDNN itself where there is no mask.
        return "a GPU"
    if call.sequences.dtype not in (torch.float32, torch.float64):
        # Keras's loop rounds to the dtype of the layer after each operation.
        return "16-bit floating point"
    if call.sequences.shape[1] < _FEWEST_TIMESTEPS and not (
        call.cell == "simple_rnn"
        or call.mask is not None
        or call.reset_mask is not None
        # A trace of Keras's loop would be for this number of timesteps alone.
        or torch.jit.is_tracing()
    ):
        return "few timesteps"
    return None


def may_be_exported(call: Call) -> bool:  # noqa: ARG001
    """Whether a trace must hold Keras's loop. It need not: kernels can be exported."""
    return False


@torch.compiler.disable  # Dynamo would compile functions called after a graph break.
def run(call: Call) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """Runs the loop of a call for which `check()` raises nothing.

    Returns:
        The outputs `(batch, timesteps, units)` or `None`, the last output `(batch,
        units)`, and the list of the last states, each `(batch, units)`.
    """
    mask, reset_mask = _array(call.mask), _array(call.reset_mask)
    if mask is not None and mask.all():
        mask = None
    if reset_mask is not None and not reset_mask.any():
        reset_mask = None
    if mask is not None or reset_mask is not None:
        return _run_pieces(call, mask, reset_mask)
    weights = _weights(call)
    outputs, states = _native(call, call.sequences, call.states, weights, True)
    return (outputs if call.wants_outputs else None), states[0], states


def _run_pieces(
    call: Call, mask: Any, reset_mask: Any
) -> tuple[Any, torch.Tensor, list[torch.Tensor]]:
    """Runs the loop of a call with a mask or resets."""
    batch, timesteps, _ = call.sequences.shape
    pieces = split(
        mask, reset_mask, call.kernel.numel() + call.recurrent_kernel.numel()
    )
    states = _before_pieces(call, pieces)
    # The last h is an output, but the kernel returns c after the padding. The h of relu
    # may become infinite there, and the gradients of weights NaN.
    holds_c = call.cell == "lstm" and call.wants_states
    shows_padding = holds_c or call.activation == "relu"
    weights = _weights(call, shows_padding)
    x = _timesteps(call.sequences, shows_padding)
    x = x.index_select(0, _index(pieces.sources, call))
    sizes = [size for size, _ in pieces.groups]
    states_of_groups = zip(*(state.split(sizes) for state in states), strict=True)
    x_of_groups = x.split([size * longest for size, longest in pieces.groups])
    outputs, last = [], []
    for (size, longest), x, before in zip(
        pieces.groups, x_of_groups, states_of_groups, strict=True
    ):
        x = x.view(longest, size, -1)
        output, after = _native(call, x, before, weights, False)
        outputs.append(output.flatten(0, 1))
        last.append(after[-1])
    if not pieces.reads_first:
        outputs.append(states[0])
    places = pieces.places.reshape(batch, timesteps)
    if not call.wants_outputs:
        places = places[:, -1:]
    outputs = _joined(outputs).index_select(0, _index(places.ravel(), call))
    outputs = outputs.view(*places.shape, -1)
    last_output = outputs[:, -1]
    last_states = [last_output]
    if holds_c:
        last_c = _joined(last).index_select(0, _index(pieces.last, call))
        last_states.append(last_c)
    return (outputs if call.wants_outputs else None), last_output, last_states


def _before_pieces(call: Call, pieces: Pieces) -> list[torch.Tensor]:
    """Returns the states before each piece, each `(pieces, units)`."""
    if call.reset_mask is None and len(pieces.groups) == 1:
        return list(call.states)
    rows = _index(pieces.rows, call)
    states = [state.index_select(0, rows) for state in call.states]
    if call.reset_mask is None:
        return states
    begins = _index(pieces.resets.clip(0), call)
    is_reset = _index(pieces.resets >= 0, call)[:, None]
    for k, reset_state in enumerate(call.states_after_reset):
        if reset_state is call.states[k]:
            continue
        by_timestep = reset_state.dim() == 3
        reset_state = reset_state.flatten(0, 1) if by_timestep else reset_state
        reset_state = reset_state.index_select(0, begins if by_timestep else rows)
        states[k] = torch.where(is_reset, reset_state, states[k])
    return states


def _array(mask: Any) -> Any:
    """Returns a mask as an array of NumPy, or `None`."""
    if mask is None:
        return None
    # Within `torch.func.grad`, a tensor has no memory that NumPy could read.
    return np.array(mask.tolist()) if transformations() else mask.cpu().numpy()


def _index(array: Any, call: Call) -> torch.Tensor:
    return torch.from_numpy(array).to(call.sequences.device)


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def _timesteps(sequences: torch.Tensor, shows_padding: bool) -> torch.Tensor:
    """Returns all timesteps of a batch one after another, then a timestep of padding.

    Padding is zero: a NaN at a masked timestep must not reach a gradient. With
    `shows_padding`, one more feature is 1 for padding and 0 for timesteps.
    """
    padding = sequences.new_zeros((1, sequences.shape[2]))
    timesteps = torch.cat([sequences.flatten(0, 1), padding])
    if not shows_padding:
        return timesteps
    is_padding = timesteps.new_zeros((len(timesteps), 1))
    is_padding[-1] = 1
    return torch.cat([timesteps, is_padding], 1)


def _weights(call: Call, shows_padding: bool = False) -> list[torch.Tensor]:
    """Returns the weights for PyTorch's kernels, such as `(gates * units, features)`.

    With `shows_padding`, there is one more feature, which is 1 for padding. In an LSTM
    it closes the gate i and opens the gate f, so that padding leaves c as it is. A relu
    is 0 with it.
    """
    kernel, recurrent_kernel = call.kernel, call.recurrent_kernel
    biases = []
    if call.bias is not None:
        bias = call.bias
        # PyTorch adds two biases. They have different effects only in a GRU.
        biases = (
            list(bias.unbind()) if bias.dim() == 2 else [bias, torch.zeros_like(bias)]
        )
    if call.cell == "gru":
        kernel, recurrent_kernel = map(_with_r_first, (kernel, recurrent_kernel))
        biases = list(map(_with_r_first, biases))
    if shows_padding and call.cell == "lstm":
        row = kernel.new_zeros((1, 4, kernel.shape[1] // 4))
        row[:, 0], row[:, 1] = -_SATURATED, _SATURATED
        kernel = torch.cat([kernel, row.flatten(1)])
    elif shows_padding:
        lowest = torch.finfo(kernel.dtype).min / 2
        kernel = torch.cat([kernel, kernel.new_full((1, kernel.shape[1]), lowest)])
    return [kernel.t(), recurrent_kernel.t(), *biases]


def _with_r_first(weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight of a GRU with PyTorch's order of the gates: r, z, h."""
    z, r, h = weight.chunk(3, -1)
    return torch.cat([r, z, h], -1)


def _native(
    call: Call,
    sequences: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: list[torch.Tensor],
    batch_first: bool,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Calls the kernel, and returns the outputs and the last states."""
    train = call.training
    if not torch.jit.is_tracing():
        # cuDNN keeps the tensors for gradients only if `train` is true.
        train = torch.is_grad_enabled() and any(
            t.requires_grad for t in (sequences, *states, *weights)
        )
    if sequences.is_cuda:
        weights = _in_one_buffer(weights)
    # cuDNN does not accept states that are broadcast views.
    hidden = [state.contiguous()[None] for state in states]
    kernel = getattr(torch, _KERNELS[call.cell, call.activation])
    outputs, *states = kernel(
        sequences,
        hidden if call.cell == "lstm" else hidden[0],
        weights,
        len(weights) > 2,  # Whether there are biases.
        1,  # Layers.
        0.0,  # Dropout between layers.
        train,
        False,  # Both directions.
        batch_first,
    )
    return outputs, [state[0] for state in states]


def _in_one_buffer(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the weights one after another in one buffer, as cuDNN needs them.

    Otherwise, PyTorch copies them at each call and warns.
    """
    buffer = torch.cat([weight.flatten() for weight in weights])
    parts = buffer.split([weight.numel() for weight in weights])
    return [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]
