"""The loop of a recurrent layer, run by PyTorch's native kernels.

On a GPU, PyTorch calls cuDNN. On the CPU, it calls oneDNN for an LSTM in float32, and
otherwise a loop in C++. The kernels support neither masks nor resets, so the batch is
rearranged: a reset splits a row into pieces, and the unmasked timesteps of a piece move
to the left. Padding follows on the right, and its outputs are dropped.

PyTorch differentiates the kernels, and on the CPU their derivatives. cuDNN has no
second derivatives: PyTorch then raises a `RuntimeError` that says how to disable it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from keras_init_lstm.backend.base import NotFusedError
from keras_init_lstm.loops.call import Call

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

# The sigmoid of a sum with this number is 1, and with its negative 0, in float16 too.
_SATURATED = 1000.0

# The factor by which the timesteps of a batch may grow if all its pieces are padded to
# the longest piece.
_MOST_PADDING = 2


def check(call: Call) -> None:
    """Raises a `NotFusedError` with the reason if `run()` can't run the call."""
    for reason, applies in _refusals(call):
        if applies:
            raise NotFusedError(reason)


def _refusals(call: Call) -> Iterator[tuple[str, bool]]:
    """Yields each reason and whether it applies. The order matters."""
    kernel = _KERNELS.get((call.cell, call.activation), "")
    yield f"activation={call.activation}", not kernel
    recurrent_activation = call.recurrent_activation
    yield (
        f"recurrent_activation={recurrent_activation}",
        (recurrent_activation != "sigmoid"),
    )
    yield "recurrent_dropout", call.recurrent_dropout > 0
    yield "dropout with implementation=1", call.drops_by_gate
    # Both would unroll the native kernel, as they unroll Keras's loop. Test this first:
    # `torch.compile` can't trace the other tests.
    yield "torch.compile and torch.export", torch.compiler.is_compiling()
    yield "a PyTorch without its function", not hasattr(torch, kernel)
    yield "reset_after=False", call.cell == "gru" and not call.reset_after
    sequences = call.sequences
    tensors = [sequences, *call.weights, *call.states, *call.states_after_reset]
    plain_types = (torch.Tensor, torch.nn.Parameter)
    yield "subclasses of tensors", any(type(t) not in plain_types for t in tensors)
    # The native kernels don't check shapes, and would read other memory.
    features, units = call.kernel.shape[0], call.recurrent_kernel.shape[0]
    fit = sequences.dim() == 3 and sequences.shape[2] == features
    yield "sequences that do not fit the kernel", not fit
    state_shape = (sequences.shape[0], units)
    shapes = (state_shape, (*sequences.shape[:2], units))
    fit = all(state.shape in shapes for state in call.states_after_reset)
    fit = fit and all(state.shape == state_shape for state in call.states)
    yield "states that are not (batch, units)", not fit
    device = sequences.device.type
    yield f"the device {device}", device not in ("cpu", "cuda")
    dtype = sequences.dtype
    yield f"the dtype {dtype}", not dtype.is_floating_point
    yield "tensors of several dtypes", any(t.dtype != dtype for t in tensors)
    # Under autocast, oneDNN raises an error on a CPU without bfloat16.
    yield "torch.autocast", torch.is_autocast_enabled(device)
    yield "a PyTorch without its list of transformations", transformations is None
    others = any(level.key().name != "Grad" for level in transformations())
    yield "torch.func.vmap and torch.func.jvp", others
    has_tangents = any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    yield "forward-mode differentiation", has_tangents
    if torch.jit.is_tracing():
        # The trace would depend on the values of the masks.
        has_masks = call.mask is not None or call.reset_mask is not None
        yield "a mask in torch.jit.trace or an export to ONNX", has_masks
    else:
        yield "an empty batch", not sequences.numel()


def why_slower(call: Call) -> str | None:
    """Returns why Keras's loop is preferred, or `None`."""
    if call.sequences.device.type != "cpu":
        # Nobody has run it there yet. Keras runs cuDNN itself where there is no mask.
        return "a GPU"
    if call.sequences.dtype not in (torch.float32, torch.float64):
        # Keras's loop rounds to the dtype of the layer after each operation.
        return "16-bit floating point"
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
    mask, reset_mask = call.mask, call.reset_mask
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
    pieces = _rows(mask) if reset_mask is None else _pieces(mask, reset_mask)
    states = _before_pieces(call, pieces, reset_mask)
    # The last h is an output, but the kernel returns c after the padding. The h of relu
    # may become infinite there, and the gradients of weights NaN.
    holds_c = call.cell == "lstm"
    shows_padding = holds_c or call.activation == "relu"
    weights = _weights(call, shows_padding)
    x = _timesteps(call.sequences, shows_padding).index_select(0, pieces.sources)
    sizes = [longest * len(numbers) for numbers, longest in pieces.groups]
    shown, last = [], []
    for (numbers, longest), rows in zip(pieces.groups, x.split(sizes), strict=True):
        in_group = states
        if len(pieces.groups) > 1:
            in_group = [state.index_select(0, numbers) for state in states]
        rows = rows.view(longest, len(numbers), -1)
        outputs, after = _native(call, rows, in_group, weights, False)
        shown += [in_group[0], outputs.flatten(0, 1)]
        last.append(after[-1])
    places = pieces.places.view(batch, timesteps)
    shown = torch.cat(shown)
    if call.wants_outputs:
        outputs = shown.index_select(0, pieces.places).view(batch, timesteps, -1)
        last_output = outputs[:, -1]
    else:
        outputs, last_output = None, shown.index_select(0, places[:, -1])
    if not holds_c:
        return outputs, last_output, [last_output]
    last_c = torch.cat(last).index_select(0, pieces.last)
    return outputs, last_output, [last_output, last_c]


class _Pieces(NamedTuple):
    """The positions of the timesteps of a batch in groups of padded pieces.

    A piece is the part of a row between two resets. The pieces of a group run together,
    time first, as `(longest, pieces, features)`. All groups are concatenated, and the
    batch is flattened to `batch * timesteps` timesteps.

    Attributes:
        begins: For each piece, the index of its first timestep in the batch.
        groups: For each group, the numbers of its pieces, and the number of timesteps
            to which they are padded.
        sources: For each timestep of all groups, the index of the timestep of the batch
            that is read, or `batch * timesteps` for padding.
        places: For each timestep of the batch, the index of its output in the outputs
            of all groups, if the states before the pieces of a group precede its
            outputs.
        last: For each row, the index of its last piece among the pieces of all groups.
    """

    begins: torch.Tensor
    groups: Sequence[tuple[torch.Tensor, int]]
    sources: torch.Tensor
    places: torch.Tensor
    last: torch.Tensor


def _rows(mask: torch.Tensor) -> _Pieces:
    """Returns the pieces of a batch without resets, in which each row is a piece.

    `_pieces()` returns the same with three times as many operations, which would take
    as long as the kernel for a small batch.
    """
    batch, timesteps = mask.shape
    rows = torch.arange(batch, device=mask.device)
    read = mask.cumsum(1)
    longest = max(1, int(read[:, -1].max()))
    places = (read * batch + rows[:, None]).flatten()
    sources = rows.new_full((longest * batch,), mask.numel())
    is_read = mask.flatten().nonzero()[:, 0]
    sources[places[is_read] - batch] = is_read
    return _Pieces(rows * timesteps, [(rows, longest)], sources, places, rows)


def _pieces(mask: Any, reset_mask: torch.Tensor) -> _Pieces:
    batch, timesteps = reset_mask.shape
    count = batch * timesteps
    begins = reset_mask.clone()
    begins[:, 0] = True
    begins = begins.flatten()
    piece = begins.cumsum(0) - 1
    begins = begins.nonzero()[:, 0]
    if mask is None:
        mask = torch.ones_like(piece, dtype=torch.bool)
    mask = mask.flatten()
    # For each timestep, count the read timesteps of its piece up to and including it.
    read = mask.cumsum(0)
    read = read - (read - mask.long())[begins][piece]
    ends = torch.cat([begins[1:], begins.new_tensor([count])]) - 1
    lengths = read[ends]
    numbers = torch.arange(len(begins), device=begins.device)
    groups = _groups(numbers, lengths, count)
    # For each piece, the first index and the number of pieces of its group, and its
    # column in the group.
    offset, stride, column = (torch.empty_like(numbers) for _ in range(3))
    place = source = 0
    earlier = torch.empty_like(numbers)
    for in_group, longest in groups:
        size = len(in_group)
        offset[in_group], stride[in_group] = place, size
        column[in_group] = numbers[:size]
        place += (longest + 1) * size
        source += longest * size
        # `places` counts the rows of states before each group, `sources` does not.
        earlier[in_group] = place - source
    places = (offset + column)[piece] + read * stride[piece]
    sources = numbers.new_full((source,), count)
    is_read = mask.nonzero()[:, 0]
    sources[(places - earlier[piece])[is_read]] = is_read
    position = torch.empty_like(numbers)
    position[torch.cat([in_group for in_group, _ in groups])] = numbers
    last = position[piece.view(batch, timesteps)[:, -1]]
    return _Pieces(begins, groups, sources, places, last)


def _groups(
    numbers: torch.Tensor, lengths: torch.Tensor, count: int
) -> list[tuple[torch.Tensor, int]]:
    """Groups the pieces that are padded to the same length.

    One long piece among many short ones would make a batch far larger than the original
    batch. In this case, the lengths in a group differ by a factor of at most two.
    """
    longest = max(1, int(lengths.max()))
    if len(lengths) * longest <= _MOST_PADDING * count:
        return [(numbers, longest)]
    groups = []
    shorter = 0
    while shorter < longest:
        length = max(1, 2 * shorter)
        chosen = lengths <= length
        if shorter:
            chosen &= lengths > shorter
        in_group = numbers[chosen]
        if len(in_group):
            groups.append((in_group, max(1, int(lengths[chosen].max()))))
        shorter = length
    return groups


def _before_pieces(call: Call, pieces: _Pieces, reset_mask: Any) -> list[torch.Tensor]:
    """Returns the states before each piece, each `(pieces, units)`."""
    if reset_mask is None:
        return list(call.states)
    row = pieces.begins // call.sequences.shape[1]
    resets = reset_mask.flatten()[pieces.begins][:, None]
    states = []
    for state, reset_state in zip(call.states, call.states_after_reset, strict=True):
        if reset_state.dim() == 2:
            reset_state = reset_state.index_select(0, row)
        else:
            reset_state = reset_state.flatten(0, 1).index_select(0, pieces.begins)
        states.append(torch.where(resets, reset_state, state.index_select(0, row)))
    return states


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
