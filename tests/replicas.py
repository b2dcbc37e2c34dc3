"""Training on several devices and processes: each function runs in a new process.

TensorFlow and JAX must know their devices before they run. A function raises an error
if a result is wrong.
"""

import contextlib
import json
import os

import keras
import numpy as np
import pytest

from backends import tf
from keras_init_lstm import Conditional, InitStateGRU, InitStateLSTM, Sampled
from keras_init_lstm.streams import reset_states
from models import normal
from oracles import assert_same

SHAPE, UNITS, ROWS = (10, 3), 4, 8
X, CONTEXT, Y = normal(ROWS, *SHAPE), normal(ROWS, 6), normal(ROWS, 1)
KINDS = {
    "trainable": lambda: "trainable",
    "learned": lambda: Sampled(0.1, 1.0, learned=True, seed=1),
    "conditional": lambda: Conditional(keras.layers.Dense(UNITS)),
}


def trained(cls, kind, strategy=None):
    """A model after three steps on the whole batch, and the losses."""
    keras.utils.set_random_seed(1)
    with strategy.scope() if strategy else contextlib.nullcontext():
        x, context = keras.Input(SHAPE), keras.Input((6,))
        layer = cls(UNITS, initial_state=KINDS[kind]())
        given = {"context": context} if layer.takes_context else {}
        outputs = keras.layers.Dense(1)(layer(x, **given))
        model = keras.Model([x, context] if given else x, outputs)
        model.compile(keras.optimizers.Adam(0.1), "mse")
    data = [X, CONTEXT] if given else X
    options = {"batch_size": ROWS, "epochs": 3, "shuffle": False, "verbose": 0}
    losses = model.fit(data, Y, **options).history["loss"]
    return model, losses


def two_devices():
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
    # Use one strategy: two would mix up their collective operations.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def mirrored():
    strategy = two_devices()
    for cls, kinds in ((InitStateLSTM, KINDS), (InitStateGRU, ["trainable"])):
        for kind in kinds:
            model, losses = trained(cls, kind, strategy)
            for variable in model.trainable_variables:
                first, second = variable.value.values
                assert_same(first, second)
            if kind == "learned":
                again, losses_again = trained(cls, kind, strategy)
                assert losses_again == losses
                assert_same(again.get_weights(), model.get_weights())
            else:
                alone, losses_alone = trained(cls, kind)
                assert_same(losses, losses_alone, tolerance=1e-5)
                assert_same(model.get_weights(), alone.get_weights(), tolerance=1e-5)
    replicas_draw_independently(strategy)
    replicas_have_their_own_streams(strategy)


def replicas_draw_independently(strategy):
    def draws():
        with strategy.scope():
            kind = Sampled(0.0, 1.0, seed=1, at_inference="sample")
            layer = InitStateLSTM(UNITS, initial_state=kind)
            layer.build((None, *SHAPE))
        call = tf.function(lambda: layer.get_initial_state(2))
        return [strategy.run(call) for _ in range(2)], layer

    (first, second), layer = draws()
    for state in first:
        ours, theirs = (np.array(value) for value in state.values)
        assert not np.isclose(ours, theirs).any()
    for state, later in zip(first, second, strict=True):
        assert not np.isclose(state.values[0], later.values[0]).any()
    (again, _), _ = draws()
    assert_same(
        *([value for state in s for value in state.values] for s in (first, again))
    )
    # The first replica draws the same as a layer without a strategy.
    alone = InitStateLSTM(UNITS, initial_state=layer.initial_state[0])
    assert_same(alone.get_initial_state(2)[0], first[0].values[0])


def replicas_have_their_own_streams(strategy):
    each = ROWS // 2
    for cls in (InitStateLSTM, keras.layers.LSTM):
        with strategy.scope():
            x = keras.Input(SHAPE, batch_size=each)
            layer = cls(UNITS, stateful=True, return_sequences=True)
            model = keras.Model(x, layer(x))
        lstm = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)
        lstm.build(X.shape)
        lstm.set_weights(model.get_weights())
        for _ in range(2):
            states = None
            for _ in range(3):
                want, *states = lstm(X, initial_state=states)
                got = model.predict(X, batch_size=ROWS, verbose=0)
                assert_same(got, want, tolerance=1e-6)
            reset_states(model)
        with strategy.scope():
            x = keras.Input(SHAPE, batch_size=ROWS)
            model = keras.Model(x, cls(UNITS, stateful=True)(x))
        words = f"xpected a? ?batch size( of|:) {ROWS}"
        if cls is keras.layers.LSTM:  # Before Keras 3.11, an addition raises.
            words += "|Dimensions must be equal"
        with pytest.raises(ValueError, match=words):
            model.predict(X, batch_size=ROWS, verbose=0)


def worker(index, *ports):
    """One of two workers, whose data are every second row."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    task = {"type": "worker", "index": int(index)}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(1)

    def build():
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        model = keras.Sequential([keras.Input(SHAPE), layer, keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        return model

    with strategy.scope():
        model = build()

    def update(model, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / ROWS
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        model.optimizer.apply(gradients, variables)
        return loss

    @tf.function
    def step(batch):
        losses = strategy.run(lambda x, y: update(model, x, y), args=batch)
        return strategy.reduce("SUM", losses, axis=None)

    def shard(context):
        rows = slice(context.input_pipeline_id, None, context.num_input_pipelines)
        return tf.data.Dataset.from_tensors((X[rows], Y[rows])).repeat(3)

    alone = build()
    alone.set_weights(model.get_weights())
    batches = strategy.distribute_datasets_from_function(shard)
    losses = [step(batch) for batch in batches]
    want = [update(alone, X, Y) for _ in losses]
    assert len(losses) == 3
    assert_same(losses, want, tolerance=1e-5)
    assert_same(model.get_weights(), alone.get_weights(), tolerance=1e-5)
    with strategy.scope():
        lstm = keras.Sequential([keras.Input(SHAPE), keras.layers.LSTM(1)])
        lstm.compile("sgd", "mse")
    # Keras's `fit()` does not support this strategy.
    with pytest.raises(ValueError, match="PerReplica"):
        lstm.fit(tf.data.Dataset.from_tensors((X, Y)), verbose=0)


def data_parallel():
    """Two devices have the same results as one, on JAX."""
    results = []
    for devices in (1, 2):
        if devices == 2:
            keras.distribution.set_distribution(keras.distribution.DataParallel())
        results.append(
            [
                (losses, model.get_weights())
                for model, losses in (trained(InitStateLSTM, kind) for kind in KINDS)
            ]
        )
    assert_same(*results, tolerance=1e-5)


def data_parallel_of_torch(rank, port, *_):
    """One of two processes, which draw independently, and learn the same."""
    import torch
    from torch import distributed

    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(
        "gloo", init_method=address, rank=int(rank), world_size=2
    )
    keras.utils.set_random_seed(int(rank))

    def gathered(tensor):
        tensors = [torch.zeros_like(tensor) for _ in range(2)]
        distributed.all_gather(tensors, tensor.contiguous())
        return tensors

    start = Sampled(0.0, 1.0, learned=True)
    layer = InitStateLSTM(UNITS, initial_state=start)
    model = keras.Sequential([keras.Input(SHAPE), layer, keras.layers.Dense(1)])
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        loss = parallel(torch.from_numpy(X), training=True).pow(2).sum()
        loss.backward()
        for kind in layer.initial_state:
            assert_same(*gathered(kind.seed_generator.state.value))
            assert_same(*gathered(kind.mean.value.grad))
        ours = layer.get_initial_state(2, training=True)
        for state in ours:
            first, second = (each.detach().numpy() for each in gathered(state.detach()))
            assert not np.isclose(first, second).any()
    distributed.destroy_process_group()
    # PyTorch destroys the group with the GIL held, and waits for a thread that may
    # need the GIL to free the last tensors. Exit without any destructor.
    os._exit(0)
