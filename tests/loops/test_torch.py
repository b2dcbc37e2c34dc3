"""PyTorch's native kernels, compared with a plain loop in float64."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import BACKEND
from keras_init_lstm.backend import NotFusedError
from keras_init_lstm.loops.call import Call

if BACKEND != "torch":
    pytest.skip("of PyTorch alone", allow_module_level=True)

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from keras_init_lstm.loops import torch as native

CELLS = {"lstm": (4, 2), "gru": (3, 1), "simple_rnn": (1, 1)}  # Gates and states.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5}
TENSORS = (
    "sequences",
    "states",
    "kernel",
    "recurrent_kernel",
    "bias",
    "states_after_reset",
)


def step(call, x, states):
    """One timestep of Keras's cell, computed from its equations."""
    h = states[0]
    kernel, recurrent_kernel, bias = call.kernel, call.recurrent_kernel, call.bias
    z = x @ kernel
    if call.cell == "gru":
        inner = h @ recurrent_kernel
        if bias is not None:
            z, inner = z + bias[0], inner + bias[1]
        (z, r, new), (z_inner, r_inner, inner) = z.chunk(3, 1), inner.chunk(3, 1)
        z, r = torch.sigmoid(z + z_inner), torch.sigmoid(r + r_inner)
        return [z * h + (1 - z) * torch.tanh(new + r * inner)]
    z = z + h @ recurrent_kernel
    if bias is not None:
        z = z + bias
    if call.cell == "simple_rnn":
        return [getattr(torch, call.activation)(z)]
    i, f, new, o = z.chunk(4, 1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(new)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def plain(call):
    """The result of `run()`, computed by a Python loop."""
    states, outputs = list(call.states), []
    for t in range(call.sequences.shape[1]):
        if call.reset_mask is not None:
            states_after_reset = [
                s if s.dim() == 2 else s[:, t] for s in call.states_after_reset
            ]
            reset = call.reset_mask[:, t, None]
            pairs = zip(states_after_reset, states, strict=True)
            states = [torch.where(reset, start, state) for start, state in pairs]
        after = step(call, call.sequences[:, t], states)
        if call.mask is not None:
            read = call.mask[:, t, None]
            pairs = zip(after, states, strict=True)
            after = [torch.where(read, new, old) for new, old in pairs]
        states = after
        outputs.append(states[0])
    return (
        torch.stack(outputs, 1) if call.wants_outputs else None,
        outputs[-1],
        states,
    )


def flat(results):
    """The tensors in the results."""
    return [t for t in keras.tree.flatten(results) if t is not None]


def with_tensors(call, change):
    """The call with every floating-point tensor changed."""
    values = {name: getattr(call, name) for name in TENSORS}
    changed = keras.tree.map_structure(
        lambda value: value if value is None else change(value), values
    )
    return dataclasses.replace(call, **changed)


def tensors_of(call):
    return flat([getattr(call, name) for name in TENSORS])


def loss(results):
    """The sum of all elements, each with a different factor."""
    results = flat(results)
    return sum(
        (r**2 * torch.linspace(0.5, 1.5, r.numel(), dtype=r.dtype).view(r.shape)).sum()
        for r in results
    )


def gradients(run, call, order=1):
    """The gradients of the loss of the results of `run`, up to an order."""
    call = with_tensors(call, lambda t: t.detach().clone().requires_grad_())
    tensors, found = tensors_of(call), []
    objective = loss(run(call))
    for number in range(order):
        found = torch.autograd.grad(
            objective,
            tensors,
            create_graph=number + 1 < order,
            allow_unused=True,
            materialize_grads=True,
        )
        objective = sum((g**2).sum() for g in found)
    return found


def assert_close(got, expected, tolerance):
    got, expected = flat(got), flat(expected)
    assert [t.shape for t in got] == [t.shape for t in expected]
    for a, b in zip(got, expected, strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        difference = (a.detach().double() - b.detach().double()).abs().max()
        assert float(difference) <= tolerance * scale


def make(
    cell="lstm",
    sizes=(3, 5, 2, 4),
    *,
    dtype=torch.float32,
    seed=0,
    has_bias=True,
    mask=None,
    reset_mask=None,
    starts_over_time=False,
    **options,
):
    """A call with normal numbers in its tensors."""
    batch, timesteps, features, units = sizes
    gates, states = CELLS[cell]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    bias_shape = (2, 3 * units) if cell == "gru" else (gates * units,)
    shape = (batch, timesteps, units) if starts_over_time else (batch, units)
    return Call(
        cell=cell,
        sequences=normal(batch, timesteps, features),
        states=[normal(batch, units) for _ in range(states)],
        kernel=normal(features, gates * units),
        recurrent_kernel=normal(units, gates * units) / units**0.5,
        bias=normal(*bias_shape) if has_bias else None,
        mask=mask,
        reset_mask=reset_mask,
        states_after_reset=[]
        if reset_mask is None
        else [normal(*shape) for _ in range(states)],
        **options,
    )


@st.composite
def masks(draw, shape):
    """Boolean arrays with many, few and no `True`, in runs and alone; or `None`."""
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.9, 1.0]))
    if share is None:
        return None
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    mask = generator.random(shape) < share
    for row in mask:
        kind = draw(st.sampled_from(["as it is", "none", "all", "left", "right"]))
        if kind in ("none", "all"):
            row[:] = kind == "all"
        elif kind in ("left", "right"):
            row[:] = np.arange(len(row)) >= generator.integers(len(row) + 1)
            row[:] = row if kind == "left" else row[::-1]
    return torch.tensor(mask)


@st.composite
def calls(draw):
    sizes = tuple(draw(st.integers(1, most)) for most in (5, 9, 3, 4))
    cell = draw(st.sampled_from(sorted(CELLS)))
    activations = ["tanh", "relu"] if cell == "simple_rnn" else ["tanh"]
    return make(
        cell,
        sizes,
        activation=draw(st.sampled_from(activations)),
        dtype=draw(st.sampled_from(sorted(TOLERANCES, key=str))),
        seed=draw(st.integers(0, 2**31)),
        has_bias=draw(st.booleans()),
        mask=draw(masks(sizes[:2])),
        reset_mask=draw(masks(sizes[:2])),
        starts_over_time=draw(st.booleans()),
        training=draw(st.booleans()),
        wants_outputs=draw(st.booleans()),
    )


def with_nan_at_masked_timesteps(call):
    """The call with NaN in all values that must not be read."""
    nan = torch.full((), torch.nan, dtype=call.sequences.dtype)
    sequences, states_after_reset = call.sequences, call.states_after_reset
    if call.mask is not None:
        sequences = torch.where(call.mask[:, :, None], sequences, nan)
    if call.reset_mask is not None:
        resets = call.reset_mask[:, :, None]
        states_after_reset = [
            s if s.dim() == 2 else torch.where(resets, s, nan)
            for s in states_after_reset
        ]
    return dataclasses.replace(
        call, sequences=sequences, states_after_reset=states_after_reset
    )


@given(calls())
def test_results_and_gradients_equal_the_plain_loop(call):
    tolerance = TOLERANCES[call.sequences.dtype]
    exact = with_tensors(call, torch.Tensor.double)
    call = with_nan_at_masked_timesteps(call)
    native.check(call)
    outputs, *_ = results = native.run(call)
    assert (outputs is not None) == call.wants_outputs
    assert all(t.dtype == call.sequences.dtype for t in flat(results))
    assert_close(results, plain(exact), tolerance)
    found = gradients(native.run, call)
    assert_close(found, gradients(plain, exact), 20 * tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_the_plain_loop_equals_keras(cell):
    call = make(cell, mask=torch.tensor([[1, 1, 0, 1, 1], [0] * 5, [1] * 5]).bool())
    layer_class = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}[cell]
    layer = getattr(keras.layers, layer_class)(4, return_state=True)
    layer.build(call.sequences.shape)
    layer.set_weights([call.kernel, call.recurrent_kernel, call.bias])
    # Not the outputs: Keras has zeros where no timestep was read.
    _, *states = layer(call.sequences, mask=call.mask, initial_state=call.states)
    assert_close(plain(call)[2], states, 1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_short_pieces_are_not_padded_to_a_long_one(cell):
    resets = torch.zeros(6, 40, dtype=torch.bool)
    resets[:5] = True
    resets[4, 3:20] = False
    mask = torch.rand(resets.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    call = make(cell, (6, 40, 2, 3), mask=mask, reset_mask=resets)
    pieces = native._pieces(mask, resets)
    assert len(pieces.groups) > 2
    assert len(pieces.sources) <= native._MOST_PADDING * resets.numel()
    exact = with_tensors(call, torch.Tensor.double)
    assert_close(native.run(call), plain(exact), 2e-5)
    found = gradients(native.run, call)
    assert_close(found, gradients(plain, exact), 4e-4)


def test_relu_stays_finite_through_padding_of_any_length():
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 1:] = False
    call = make("simple_rnn", (2, 60, 2, 4), activation="relu", mask=mask)
    # What is read stays 0; the padding would grow eightfold at each timestep.
    kernel, sequences = torch.zeros(2, 4), torch.zeros(2, 60, 2)
    kernel[0], sequences[0, :, 0] = -100.0, 1.0
    weights = {"kernel": kernel, "recurrent_kernel": 8 * torch.eye(4)}
    weights |= {"bias": torch.ones(4), "states": [torch.zeros(2, 4)]}
    call = call.replace(sequences=sequences, **weights)
    assert_close(native.run(call), plain(call), 1e-6)
    got, want = (gradients(run, call, order=2) for run in (native.run, plain))
    assert_close(got, want, 1e-5)
    assert all(tensor.isfinite().all() for tensor in got)


def test_padding_of_any_length_keeps_the_last_c():
    mask = torch.zeros(2, 300, dtype=torch.bool)
    mask[0, 7] = True
    mask[1] = True
    call = make(sizes=(2, 300, 3, 8), mask=mask)
    call.states[1][0] = 50.0  # Far more than a timestep adds.
    exact = with_tensors(call, torch.Tensor.double)
    assert_close(native.run(call)[2], plain(exact)[2], 1e-6)
    assert_close(gradients(native.run, call), gradients(plain, exact), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_16_bits(cell, dtype):
    mask = torch.tensor([[1, 0, 1, 1, 0], [0] * 5, [1] * 5]).bool()
    call = make(cell, dtype=dtype, mask=mask)
    native.check(call)
    exact = with_tensors(call, torch.Tensor.double)
    results = native.run(call)
    assert all(t.dtype == dtype for t in flat(results))
    assert_close(results, plain(exact), 0.03)
    assert_close(gradients(native.run, call), gradients(plain, exact), 0.1)


# With everything that costs a line of its own.
RESETS = torch.tensor([[0, 1, 0, 0, 1], [0] * 5, [1, 1, 0, 0, 0]]).bool()
MASKED = {
    "mask": torch.tensor([[1, 0, 1, 1, 0], [0] * 5, [1] * 5]).bool(),
    "reset_mask": RESETS,
    "starts_over_time": True,
}
CASES = pytest.mark.parametrize("options", [{}, MASKED], ids=["all read", "masked"])


@CASES
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell, dtype, options):
    call = make(cell, dtype=dtype, **options)
    exact = with_tensors(call, torch.Tensor.double)
    found = gradients(native.run, call, order=2)
    tolerance = 20 * TOLERANCES[dtype]
    assert_close(found, gradients(plain, exact, order=2), tolerance)


def as_function(run, call):
    """A function of the sequences and the recurrent kernel, and their values."""

    def function(sequences, recurrent_kernel):
        changed = dataclasses.replace(
            call, sequences=sequences, recurrent_kernel=recurrent_kernel
        )
        if run is native.run:
            native.check(changed)
        return tuple(flat(run(changed)))

    return function, (call.sequences, call.recurrent_kernel)


@CASES
@pytest.mark.parametrize("cell", CELLS)
def test_torch_func(cell, options):
    call = make(cell, **options)
    native_run, values = as_function(native.run, call)
    plain_run, _ = as_function(plain, call)

    def grad(run):
        return torch.func.grad(lambda *a: loss(run(*a)), (0, 1))(*values)

    assert_close(grad(native_run), grad(plain_run), 1e-4)

    def jacobian(run):
        return torch.func.jacrev(lambda *a: run(*a)[0], (0, 1))(*values)

    assert_close(jacobian(native_run), jacobian(plain_run), 1e-4)

    def forward(run):
        return torch.func.jvp(run, values, values)

    def per_example(run):
        tiled = [torch.stack([value, 2 * value]) for value in values]
        return torch.func.vmap(lambda *a: run(*a)[0])(*tiled)

    def per_example_grad(run):
        tiled = [torch.stack([value, 2 * value]) for value in values]
        return torch.func.vmap(torch.func.grad(lambda *a: loss(run(*a))))(*tiled)

    for transformed in (forward, per_example, per_example_grad):
        transformed(plain_run)
        with pytest.raises(NotFusedError, match="torch.func"):
            transformed(native_run)


@CASES
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(cell, options, use_reentrant):
    function, values = as_function(native.run, make(cell, **options))

    def gradients_of(call):
        leaves = [value.clone().requires_grad_() for value in values]
        loss(call(*leaves)).backward()
        return [leaf.grad for leaf in leaves]

    recomputed = gradients_of(
        lambda *leaves: checkpoint(function, *leaves, use_reentrant=use_reentrant)
    )
    assert_close(recomputed, gradients_of(function), 1e-6)


@pytest.mark.parametrize("wants_gradients", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_jit_trace_takes_any_size(cell, wants_gradients):
    call = make(cell, (1, 1, 2, 4))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = torch.nn.Parameter(call.kernel, wants_gradients)

        def forward(self, x, *states):
            changed = dataclasses.replace(
                call, sequences=x, states=states, kernel=self.kernel
            )
            native.check(changed)
            return native.run(changed)[0]

    traced = torch.jit.trace(Module(), (call.sequences, *call.states))
    larger = make(cell, (3, 7, 2, 4), seed=1)
    results = traced(larger.sequences, *larger.states)
    expected = dataclasses.replace(
        call, sequences=larger.sequences, states=larger.states
    )
    assert_close(results, plain(expected)[0], 1e-5)


def test_a_mask_in_jit_trace_raises():
    call = make(mask=torch.ones(3, 5, dtype=torch.bool))
    function, values = as_function(native.run, call)
    with pytest.raises(NotFusedError, match="mask in torch.jit.trace"):
        torch.jit.trace(function, values)


def test_forward_mode_raises():
    call = make()
    with forward_ad.dual_level():
        h = forward_ad.make_dual(call.states[0], call.states[0])
        with pytest.raises(NotFusedError, match="forward-mode"):
            native.check(dataclasses.replace(call, states=[h, call.states[1]]))
        native.check(call)


def test_compilers_run_keras_loop():
    call = make("gru")

    def function(sequences, recurrent_kernel):
        changed = dataclasses.replace(
            call, sequences=sequences, recurrent_kernel=recurrent_kernel
        )
        try:
            native.check(changed)
        except NotFusedError:
            return sequences
        return native.run(changed)[0]

    values = call.sequences, call.recurrent_kernel
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(*values).equal(call.sequences)
    assert function(*values).shape != call.sequences.shape


def test_autocast_raises():
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(NotFusedError, match="autocast"):
            native.check(make())
        with torch.autocast("cpu", enabled=False):
            native.check(make())


class Subclass(torch.Tensor):
    """A subclass of tensors, such as libraries for distributed tensors have."""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cell": "gru", "reset_after": False}, "reset_after=False"),
        ({"sequences": torch.ones(3, 5, 2).as_subclass(Subclass)}, "subclasses"),
        ({"sequences": torch.ones(3, 5, 2, device="meta")}, "the device meta"),
        ({"sequences": torch.ones(3, 5, 2, dtype=torch.int64)}, "dtype torch.int64"),
        ({"kernel": torch.ones(2, 16, dtype=torch.float64)}, "several dtypes"),
        ({"sequences": torch.ones(3, 0, 2)}, "an empty batch"),
        ({"activation": "relu"}, "activation=relu"),
        ({"recurrent_activation": "tanh"}, "recurrent_activation=tanh"),
        ({"recurrent_dropout": 0.5}, "recurrent_dropout"),
        ({"drops_by_gate": True}, "dropout with implementation=1"),
        (
            {"sequences": torch.ones(0, 5, 2), "states": [torch.ones(0, 4)] * 2},
            "an empty batch",
        ),
    ],
)
def test_unsupported_calls_raise(changes, reason):
    call = make()
    native.check(call)
    with pytest.raises(NotFusedError, match=reason):
        native.check(dataclasses.replace(call, **changes))


def test_a_pytorch_without_the_function_raises(monkeypatch):
    monkeypatch.delattr(torch, "lstm")
    with pytest.raises(NotFusedError, match="a PyTorch without"):
        native.check(make())
    native.check(make("gru"))
    monkeypatch.setattr(native, "transformations", None)
    with pytest.raises(NotFusedError, match="a PyTorch without"):
        native.check(make("gru"))


def test_weights_in_one_buffer_keep_their_values():
    weights = native._weights(make("gru"))
    moved = native._in_one_buffer(weights)
    end = moved[0].untyped_storage().data_ptr()
    for weight, same in zip(weights, moved, strict=True):
        assert same.equal(weight) and same.is_contiguous()
        assert same.data_ptr() == end
        end += same.numel() * same.element_size()


@pytest.mark.parametrize("cell", CELLS)
def test_tensors_that_do_not_fit_raise(cell):
    """The native kernels would read other memory."""
    call = make(cell)
    for changed in (
        call.replace(sequences=call.sequences[..., 1:]),
        call.replace(sequences=call.sequences[0]),
        call.replace(states=[state[:1] for state in call.states]),
        call.replace(states=[state[:, 1:] for state in call.states]),
    ):
        with pytest.raises(NotFusedError, match="do not fit|are not"):
            native.check(changed)


def test_is_not_compiled_after_a_graph_break():
    graphs = []

    def compiler(graph, _):
        graphs.append(graph)
        return graph.forward

    weights = torch.ones(3, 4), torch.ones(1, 4), torch.ones(4)
    states = [torch.zeros(2, 1), torch.zeros(2, 1)]
    call = Call("lstm", torch.ones(2, 5, 3), states, *weights)

    @functools.partial(torch.compile, backend=compiler)
    def broken(call):
        torch._dynamo.graph_break()
        return native.run(call)

    assert torch.equal(broken(call)[1], native.run(call)[1])
    assert not graphs
