"""Stateful and sampled layers in traces, compilers, exports and checkpointing."""

import functools
import importlib.util

import keras
import numpy as np
import pytest

from backends import BACKEND, RELEASE, tf
from exports import on_onnx, on_openvino
from keras_init_lstm import InitStateLSTM, Sampled
from keras_init_lstm.streams import get_states, reset_states, set_states
from models import BATCH, SHAPE, UNITS, X, normal
from oracles import (
    assert_same,
    flat,
    reference_of,
    to_numpy,
)

if BACKEND == "torch":
    import torch
if BACKEND == "jax":
    import jax

of_jax = pytest.mark.skipif(BACKEND != "jax", reason="of JAX alone")
of_torch = pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch alone")
NOT_CARRIED = "traced, and not run, so its stream is not carried"
SIGNATURE = [keras.InputSpec(shape=SHAPE, dtype="float32")]


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


def stream(initial_state=0.5):
    """A model that carries states, except for one fresh row, and its layer."""
    layer = InitStateLSTM(UNITS, initial_state=initial_state, stateful=True)
    model = keras.Sequential([keras.Input(SHAPE[1:], batch_size=BATCH), layer])
    model(X)
    layer.reset_states(rows=[1])
    return model, layer


def onnx_file(model, folder, **kwargs):
    path = folder / "model.onnx"
    model.export(path, format="onnx", verbose=False, **kwargs)
    run = on_onnx(path)
    return lambda _: run(X)[0]


signed = {"input_signature": SIGNATURE}


def jit(model, _):
    return jax.jit(lambda x: model(x))


def jax_export(model, _):
    shape = jax.ShapeDtypeStruct(SHAPE, "float32")
    return jax.export.export(jit(model, _))(shape).call


def jit_trace(model, _):
    return torch.jit.trace(model, torch.from_numpy(X))


def torch_export(model, _):
    return torch.export.export(model, (torch.from_numpy(X),), strict=False).module()


def torch_file(model, folder):
    model.export(folder / "model.pt2", format="torch", verbose=False, **signed)
    return torch.export.load(folder / "model.pt2").module()


def onnx_by_torchscript(model, folder):
    path = folder / "model.onnx"
    torch.onnx.export(model, (torch.from_numpy(X),), path, dynamo=False)
    run = on_onnx(path)
    return lambda _: run(X)[0]


def make_fx(model, _):
    return torch.fx.experimental.proxy_tensor.make_fx(model)(torch.from_numpy(X))


def signed_onnx(model, folder):
    return onnx_file(model, folder, **signed)


def openvino_file(model, folder):
    path = str(folder / "model.xml")
    model.export(path, format="openvino", verbose=False, **signed)
    run = on_openvino(path)
    return lambda _: run(X)[0]


# Functions that trace a model, and return a function that can't carry its stream.
TRACES = {
    "tensorflow": {},
    "jax": {"jit": jit, "export": jax_export},
    "torch": {
        "jit.trace": jit_trace,
        "export": torch_file if RELEASE >= (3, 15) else torch_export,
        "make_fx": make_fx,
    },
}[BACKEND]
if BACKEND == "torch" and installed("onnx", "onnxscript", "onnxruntime"):
    TRACES |= {"onnx": signed_onnx, "onnx by TorchScript": onnx_by_torchscript}

if BACKEND == "torch" and installed("openvino", "scipy"):
    TRACES["openvino"] = openvino_file
if BACKEND == "jax" and installed("jax2onnx", "onnxruntime"):
    TRACES["onnx"] = signed_onnx

# Uses of a model that return no function.
LOOKS = {
    "output spec": lambda model: model.compute_output_spec(keras.KerasTensor(SHAPE)),
    "functional model": lambda model: keras.Model(
        x := keras.Input(SHAPE[1:], batch_size=BATCH), model(x)
    ),
    "stateless scope": lambda model: stateless(model),
}
LOOKS |= {
    "tensorflow": {
        "concrete function": lambda model: tf.function(model).get_concrete_function(X),
    },
    "jax": {
        "make_jaxpr": lambda model: jax.make_jaxpr(lambda x: model(x))(X),
        "eval_shape": lambda model: jax.eval_shape(lambda x: model(x), X),
        "vmap": lambda model: jax.vmap(model)(X[None]),
        "grad": lambda model: jax.grad(lambda x: model(x).sum())(X),
    },
    "torch": {
        "vmap": lambda model: torch.func.vmap(model)(torch.from_numpy(X[None])),
        "grad": lambda model: torch.func.grad(lambda x: model(x).sum())(
            torch.from_numpy(X)
        ),
        "fake tensors": lambda model: on_fake_tensors(model),
    },
}[BACKEND]


def stateless(model):
    with keras.StatelessScope():
        model(X)


def on_fake_tensors(model):
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.zeros(SHAPE))


def twice(call):
    x = keras.ops.convert_to_tensor(X)
    return call, [call(x), call(x)]


def outputs_of_stream(layer, count):
    """The outputs of Keras's layer at `count` calls from the carried states."""
    reference = reference_of(layer, return_state=True)
    states, outputs = flat(layer.states), []
    for _ in range(count):
        output, *states = flat(reference(X, initial_state=states))
        outputs.append(output)
    return outputs


class TestStreamInATrace:
    @pytest.mark.parametrize("look", LOOKS)
    @pytest.mark.filterwarnings("ignore")
    def test_is_not_changed_by(self, look):
        model, layer = stream()
        before, want = get_states(model), outputs_of_stream(layer, 2)
        LOOKS[look](model)
        assert_same(list(get_states(model).values()), list(before.values()))
        assert_same([model(X), model(X)], want, 1e-6)

    @pytest.mark.parametrize("trace", TRACES)
    @pytest.mark.filterwarnings("ignore")
    def test_a_traced_function_starts_from_the_present_states(self, trace, tmp_path):
        """Every call does, even after later calls of the model."""
        model, layer = stream()
        before, want = get_states(model), outputs_of_stream(layer, 2)
        with pytest.warns(UserWarning, match=NOT_CARRIED):
            traced, got = twice(TRACES[trace](model, tmp_path))
        assert_same(list(get_states(model).values()), list(before.values()))
        assert_same(got, [want[0], want[0]], 1e-5)
        assert_same([model(X), model(X)], want, 1e-6)
        assert_same(traced(keras.ops.convert_to_tensor(X)), want[0], 1e-5)

    @pytest.mark.tensorflow
    def test_continues_in_a_saved_model(self, tmp_path):
        model, layer = stream()
        before, want = get_states(model), outputs_of_stream(layer, 2)
        model.export(tmp_path / "model", verbose=False)
        assert_same(list(get_states(model).values()), list(before.values()))
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        assert_same([loaded.serve(X), loaded.serve(X)], want, 1e-6)
        assert_same([model(X), model(X)], want, 1e-6)

    @pytest.mark.tensorflow
    def test_an_onnx_file_of_tensorflow_starts_from_the_present_states(self, tmp_path):
        pytest.importorskip("tf2onnx")
        model, layer = stream()
        before, want = get_states(model), outputs_of_stream(layer, 2)
        # TensorFlow needs no signature with the batch size.
        run = onnx_file(model, tmp_path)
        assert_same(list(get_states(model).values()), list(before.values()))
        assert_same([run(X), run(X)], [want[0], want[0]], 1e-5)
        assert_same([model(X), model(X)], want, 1e-6)


@pytest.mark.skipif("onnx" not in TRACES, reason="it has no exporter for ONNX")
def test_an_export_without_a_signature_says_what_to_pass(tmp_path):
    model, _ = stream()
    message = rf"batch size of {BATCH}, .*To export a model, pass an `input_signature`"
    with pytest.raises(ValueError, match=message):
        onnx_file(model, tmp_path)


GIVEN = [np.full((BATCH, UNITS), 0.5)] * 2
RESETS = {
    "reset_state": lambda model: model.layers[0].reset_state(),
    "reset_states": lambda model: model.layers[0].reset_states(),
    "reset_states of given": lambda model: model.layers[0].reset_states(GIVEN),
    "reset_states of a model": reset_states,
    "set_states": lambda model: set_states(
        model, {f"{model.layers[0].name}/{name}": GIVEN[0] for name in ("h0", "c0")}
    ),
}


@of_jax
class TestResetsOnJax:
    @pytest.mark.parametrize("reset", RESETS)
    def test_replace_values_that_a_trace_has_left(self, reset):
        model, layer = stream()
        reset_states(model)
        want = to_numpy(model(X))

        def leak(x):
            for state in layer.states:
                for variable in state.variables:
                    value = variable._value
                    variable._value = jax.numpy.where(x[:, 0, :1] > 0, value, value)
            return x

        jax.eval_shape(leak, X)
        with pytest.raises(jax.errors.UnexpectedTracerError):
            model(X)
        RESETS[reset](model)
        assert_same(model(X), want, 1e-6)

    def test_after_a_failed_predict(self):
        model, layer = stream()
        reset_states(model)
        want = to_numpy(model(X))
        with pytest.raises(ValueError, match="as in the stream so far"):
            model.predict(np.concatenate([X, X[1:]]), batch_size=BATCH, verbose=0)
        message = r"`predict\(\)` that failed. Call `reset_states\(model\)`"
        with pytest.raises(ValueError, match=message):
            layer.reset_state()
        reset_states(model)
        assert_same(model.predict(X, verbose=0), want, 1e-6)

    def test_after_a_predict_that_fails_in_the_first_batch(self):
        for make in (InitStateLSTM, keras.layers.LSTM):
            layer = make(UNITS, stateful=True)
            model = keras.Sequential([keras.Input(SHAPE[1:], batch_size=BATCH), layer])
            with pytest.raises(ValueError, match="batch size"):
                model.predict(X[1:], verbose=0)
            # Keras has lost the weights, with layers of Keras too.
            with pytest.raises(TypeError, match="not callable"):
                model(X)
        model, layer = stream()
        with pytest.raises(ValueError, match="batch size"):
            model.predict(X[1:], verbose=0)
        with pytest.raises(ValueError, match="its weights too: load the model again"):
            reset_states(model)

    def test_after_an_interrupted_fit(self):
        class Interrupts(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        model, layer = stream()
        reset_states(model)
        want = to_numpy(model(X))
        model.compile(keras.optimizers.SGD(0.0), "mse")
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, np.zeros((BATCH, UNITS)), BATCH, callbacks=[Interrupts()])
        layer.reset_state()
        assert_same(model(X), want, 1e-6)


def checkpointed(**options):
    """Returns the backend's function for activation checkpointing."""
    if BACKEND == "tensorflow":
        return tf.recompute_grad
    if BACKEND == "jax":
        return jax.checkpoint

    def checkpoint(call):
        from torch.utils.checkpoint import checkpoint

        return lambda x: checkpoint(call, x, **options)

    return checkpoint


WAYS = (
    [{"use_reentrant": False}, {"use_reentrant": True}] if BACKEND == "torch" else [{}]
)


def gradients_of(layer, call):
    variables = layer.trainable_variables
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(tf.constant(X)) ** 2)
        return flat(tape.gradient(loss, [v.value for v in variables]))
    if BACKEND == "torch":
        x = torch.tensor(X, requires_grad=True)
        loss = (call(x) ** 2).sum()
        loss.backward()
        gradients = [to_numpy(v.value.grad) for v in variables]
        for variable in variables:
            variable.value.grad = None
        return gradients

    def loss_of(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return (call(X) ** 2).sum()

    return flat(jax.grad(loss_of)([v.value for v in variables]))


@pytest.mark.parametrize("way", WAYS, ids=str)
class TestActivationCheckpointing:
    def test_has_the_gradients_of_a_stateless_layer(self, way):
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        layer(X)
        layer.assign_initial_state(
            [normal(units, seed=index) for index, units in enumerate(layer.state_units)]
        )
        want = gradients_of(layer, lambda x: layer(x, training=True))
        call = checkpointed(**way)(lambda x: layer(x, training=True))
        assert_same(gradients_of(layer, call), want, 1e-6)

    def test_of_a_stateful_layer_raises(self, way):
        layer = InitStateLSTM(UNITS, initial_state="trainable", stateful=True)
        layer(X)
        call = checkpointed(**way)(lambda x: layer(x, training=True))
        with pytest.raises(ValueError, match="stateful layer .* activation checkpoint"):
            gradients_of(layer, call)

    def test_of_a_sampled_state_raises(self, way):
        layer = InitStateLSTM(UNITS, initial_state=Sampled())
        layer(X)
        call = checkpointed(**way)(lambda x: layer(x, training=True))
        with pytest.raises(ValueError, match="sampled .* activation checkpointing"):
            gradients_of(layer, call)
        call = checkpointed(**way)(lambda x: layer(x))
        assert_same(gradients_of(layer, call), gradients_of(layer, layer), 1e-6)


class TestRematScope:
    """The table of the backends has these results of `keras.RematScope("full")`."""

    def model(self, layer=InitStateLSTM, **kwargs):
        with keras.RematScope("full"):
            rnn = layer(UNITS, **kwargs)
        model = keras.Sequential([keras.Input(SHAPE[1:], batch_size=BATCH), rnn])
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=BACKEND != "jax")
        return model

    def fit(self, model):
        model.fit(X, np.zeros((BATCH, UNITS)), BATCH, epochs=2, verbose=0)

    @pytest.mark.skipif(BACKEND == "jax", reason="of Keras, see below")
    def test_trains_a_stateless_layer(self):
        model = self.model(initial_state="trainable")
        want = InitStateLSTM.from_config(model.layers[0].get_config())
        want = keras.Sequential([keras.Input(SHAPE[1:], batch_size=BATCH), want])
        want.set_weights(model.get_weights())
        want.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        self.fit(model)
        self.fit(want)
        assert_same(model.get_weights(), want.get_weights(), 1e-6)

    @pytest.mark.skipif(BACKEND == "jax", reason="of Keras, see below")
    @pytest.mark.parametrize(
        "kwargs", [{"stateful": True}, {"initial_state": Sampled()}], ids=str
    )
    def test_raises_for_layers_with_wrong_gradients(self, kwargs):
        with pytest.raises(ValueError, match="activation checkpointing"):
            self.fit(self.model(**kwargs))

    @pytest.mark.parametrize("layer", [InitStateLSTM, keras.layers.LSTM])
    def test_of_keras_fails_on_jax_and_in_a_graph_of_tensorflow(self, layer):
        """It fails with a layer of Keras too. The test fails if Keras changes."""
        if BACKEND == "torch":
            return
        model = self.model(layer)
        model.run_eagerly = False
        with pytest.raises((AttributeError, RuntimeError, ValueError)):
            self.fit(model)

    @pytest.mark.skipif(BACKEND == "jax", reason="of Keras, see above")
    def test_draws_dropout_masks_again_in_keras_too(self):
        """The documents say this of Keras. The test fails if Keras changes."""
        gradients = []
        for mode in ("full", None):
            with keras.RematScope(mode):
                layer = keras.layers.LSTM(UNITS, dropout=0.5, seed=1)
            layer.build(SHAPE)
            for index, weight in enumerate(layer.trainable_weights):
                weight.assign(normal(*weight.shape, seed=index))
            call = functools.partial(layer, training=True)
            gradients.append(gradients_of(layer, call))
        assert np.abs(gradients[0][0] - gradients[1][0]).max() > 1e-3


@of_torch
class TestPyTorch:
    """A call must not overwrite tensors that the backward pass needs."""

    @pytest.mark.parametrize("compiler", [None, "aot_eager"])
    def test_a_compiled_step_has_the_gradient_of_the_initial_state(self, compiler):
        _, layer = stream()
        state = layer.states[0]
        initial = torch.ones((BATCH, UNITS), requires_grad=True)
        x = torch.from_numpy(normal(BATCH, UNITS))

        def call(x):
            h = torch.tanh(state.or_else(initial) + x)
            state.assign(h)
            return h.sum()

        if compiler:
            torch._dynamo.reset()
            call = torch.compile(call, backend=compiler, fullgraph=True)
        layer.reset_state()
        for carried in (False, True, True):
            h = np.tanh((state.numpy() if carried else 1) + x.numpy())
            (gradient,) = torch.autograd.grad(call(x), [initial])
            assert_same(gradient, 0 * h if carried else 1 - h**2, 1e-6)
            assert_same(state.numpy(), h, 1e-6)

    def test_a_loss_over_several_calls(self):
        model, layer = stream("trainable")
        layer.reset_state()
        loss = sum(model(X, training=True).sum() for _ in range(3))
        layer.reset_states(rows=[0])
        loss.backward()
        gradient = to_numpy(layer.h0.value.value.grad)
        layer.h0.value.value.grad = None
        layer.reset_state()
        model(X, training=True).sum().backward()
        assert_same(gradient, layer.h0.value.value.grad, 1e-6)

    def test_returned_states_are_copies_of_the_carried_states(self):
        layer = InitStateLSTM(UNITS, stateful=True, return_state=True)
        _, h, _ = layer(X)
        given = np.ones((BATCH, UNITS), "float32")
        before = flat(layer.states)
        with torch.no_grad():
            h += 1
        assert_same(layer.states, before)
        layer.states[0].assign(given)
        given += 1
        assert (to_numpy(layer.states[0]) == 1).all()

    def test_a_stream_of_the_inference_mode_is_trained_on(self):
        model, layer = stream("trainable")
        with torch.inference_mode():
            model(X)
        model(X, training=True).sum().backward()
        assert layer.cell.kernel.value.grad.abs().sum() > 0
