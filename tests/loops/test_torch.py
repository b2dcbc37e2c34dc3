"""The loop of PyTorch alone: padding, transformations, compilers and refusals."""

import dataclasses
import functools

import pytest

from backends import BACKEND
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.backend import NotFusedError
from keras_init_lstm.loops.call import Call

if BACKEND != "torch":
    pytest.skip("of PyTorch alone", allow_module_level=True)

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from keras_init_lstm.loops import pieces
from keras_init_lstm.loops import torch as native
from loop_calls import (
    CELLS,
    MASKED,
    RESETS,
    assert_close,
    flat,
    gradients,
    make_call,
    plain,
    with_dtype,
)
from models import normal


@pytest.mark.parametrize("cell", CELLS)
def test_pieces_of_similar_length_run_in_one_call(cell, monkeypatch):
    # With calls for nothing: so small a batch would run in one call.
    monkeypatch.setattr(pieces, "_PER_CALL", 0.0)
    monkeypatch.setattr(pieces, "_PER_TIMESTEP", 0.0)
    resets = torch.zeros(6, 40, dtype=torch.bool)
    resets[:5] = True
    resets[4, 3:20] = False
    mask = torch.rand(resets.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    call = make_call(cell, (6, 40, 2, 3), mask=mask, reset_mask=resets)
    assert len(pieces.split(mask.numpy(), resets.numpy(), 1.0).groups) > 2
    exact = with_dtype(call, "float64")
    assert_close(native.run(call), plain(exact), 2e-5)
    found = gradients(native.run, call)
    assert_close(found, gradients(plain, exact), 4e-4)


def test_masks_within_torch_func_grad():
    """There, NumPy can't read a mask that is computed from what is differentiated."""
    call = make_call(sizes=(3, 5, 2, 4))
    call.sequences[0, 1:3] = call.sequences[2] = 0.0

    def objective(run):
        def function(sequences):
            mask = (sequences != 0).any(-1)
            changed = call.replace(sequences=sequences, mask=mask)
            if run is native.run:
                native.check(changed)
            return sum(t.square().sum() for t in flat(run(changed)))

        return torch.func.grad(function)(call.sequences)

    assert_close(objective(native.run), objective(plain), 1e-4)


def test_relu_stays_finite_through_padding_of_any_length():
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 1:] = False
    call = make_call("simple_rnn", (2, 60, 2, 4), activation="relu", mask=mask)
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
    call = make_call(sizes=(2, 300, 3, 8), mask=mask)
    call.states[1][0] = 50.0  # Far more than a timestep adds.
    exact = with_dtype(call, "float64")
    assert_close(native.run(call)[2], plain(exact)[2], 1e-6)
    assert_close(gradients(native.run, call), gradients(plain, exact), 1e-4)


CASES = pytest.mark.parametrize("options", [{}, MASKED], ids=["all read", "masked"])


def loss(results):
    return sum((result**3).sum() for result in flat(results))


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
    call = make_call(cell, **options)
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
    function, values = as_function(native.run, make_call(cell, **options))

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
    call = make_call(cell, (1, 1, 2, 4))

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
    larger = make_call(cell, (3, 7, 2, 4), seed=1)
    results = traced(larger.sequences, *larger.states)
    expected = dataclasses.replace(
        call, sequences=larger.sequences, states=larger.states
    )
    assert_close(results, plain(expected)[0], 1e-5)


def test_a_mask_in_jit_trace_raises():
    call = make_call(mask=torch.ones(3, 5, dtype=torch.bool))
    function, values = as_function(native.run, call)
    with pytest.raises(NotFusedError, match="mask in torch.jit.trace"):
        torch.jit.trace(function, values)


def test_forward_mode_raises():
    call = make_call()
    with forward_ad.dual_level():
        h = forward_ad.make_dual(call.states[0], call.states[0])
        with pytest.raises(NotFusedError, match="forward-mode"):
            native.check(dataclasses.replace(call, states=[h, call.states[1]]))
        native.check(call)


def test_compilers_run_keras_loop():
    call = make_call("gru")

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
            native.check(make_call())
        with torch.autocast("cpu", enabled=False):
            native.check(make_call())


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
        ({"kernel": torch.ones(2, 16, device="meta")}, "several devices"),
        ({"mask": torch.ones(3, 5).as_subclass(Subclass)}, "subclasses"),
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
    call = make_call()
    native.check(call)
    with pytest.raises(NotFusedError, match=reason):
        native.check(dataclasses.replace(call, **changes))


def test_a_pytorch_without_the_function_raises(monkeypatch):
    monkeypatch.delattr(torch, "lstm")
    with pytest.raises(NotFusedError, match="a PyTorch without"):
        native.check(make_call())
    native.check(make_call("gru"))
    monkeypatch.setattr(native, "transformations", None)
    with pytest.raises(NotFusedError, match="a PyTorch without"):
        native.check(make_call("gru"))


def test_weights_in_one_buffer_keep_their_values():
    weights = native._weights(make_call("gru"))
    moved = native._in_one_buffer(weights)
    end = moved[0].untyped_storage().data_ptr()
    for weight, same in zip(weights, moved, strict=True):
        assert same.equal(weight) and same.is_contiguous()
        assert same.data_ptr() == end
        end += same.numel() * same.element_size()


@pytest.mark.parametrize("cell", CELLS)
def test_tensors_that_do_not_fit_raise(cell):
    """The native kernels would read other memory."""
    call = make_call(cell)
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


def objective_of(layer, **masks):
    """The sum of squares of a layer's outputs, as a function of weights and inputs."""
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def objective(weights, x):
        outputs, _ = layer.stateless_call(weights, fixed, x, training=True, **masks)
        return outputs.square().sum()

    return objective


def in_bfloat16(function):
    def objective(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return function(*arguments)

    return objective


def checkpointed(function):
    def gradients(weights, x):
        leaves = [tensor.clone().requires_grad_() for tensor in (*weights, x)]
        objective = checkpoint(function, leaves[:-1], leaves[-1], use_reentrant=False)
        return torch.autograd.grad(objective, leaves)

    return gradients


grad, vmap = functools.partial(torch.func.grad, argnums=(0, 1)), torch.func.vmap
# What users do with a function of the weights and the inputs.
TRANSFORMATIONS = {
    "grad": grad,
    "per example": lambda function: vmap(grad(function)),
    "jvp": lambda function: lambda *a: torch.func.jvp(function, a, a),
    "vmap": vmap,
    "second derivatives": lambda function: grad(
        lambda *a: sum(g.square().sum() for g in flat(grad(function)(*a)))
    ),
    "checkpoint": checkpointed,
    "autocast": lambda function: grad(in_bfloat16(function)),
}
MASKS = {
    "all read": {},
    "mask": {"mask": torch.tensor(MASKED["mask"])},
    "resets": {"reset_mask": torch.tensor(RESETS)},
}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("make", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
def test_transformed_layers_equal_keras_loop(make, name, masks):
    layer = make(4, initial_state="trainable", return_sequences=True)
    x = torch.tensor(normal(3, 5, 2))
    layer.build(x.shape)
    keras_loop = make.from_config({**layer.get_config(), "use_fused": False})
    keras_loop.build(x.shape)
    weights = [torch.tensor(normal(*v.shape)) for v in layer.trainable_variables]
    arguments = weights, x
    if name in ("vmap", "per example"):
        arguments = [torch.stack([w, 2 * w]) for w in weights], torch.stack([x, 2 * x])
    transform = TRANSFORMATIONS[name]
    got, want = (
        transform(objective_of(each, **MASKS[masks]))(*arguments)
        for each in (layer, keras_loop)
    )
    assert_close(got, want, 1e-4)


def test_compiled_layers():
    layer = InitStateLSTM(4, initial_state="trainable", return_sequences=True)
    x = torch.tensor(normal(3, 2, 2))
    expected = layer(x)
    weights = [variable.value for variable in layer.trainable_variables]
    want = torch.autograd.grad(expected.square().sum(), weights)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    outputs = compiled(x, training=True)
    got = torch.autograd.grad(outputs.square().sum(), weights)
    assert_close([outputs, *got], [expected, *want], 1e-5)
    with torch.no_grad():
        assert_close(compiled(x), expected, 1e-5)
