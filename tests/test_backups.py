"""Training that is killed and goes on: it ends as one that was left alone."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from backends import BACKEND, tf
from keras_init_lstm import ExactBackupAndRestore, InitStateLSTM, ResetStates, Sampled
from models import BATCH, FEATURES, TIMESTEPS, normal
from oracles import assert_same, flat

BATCHES, EPOCHS = 5, 3
X = normal(BATCHES * BATCH, TIMESTEPS, FEATURES)
Y = normal(BATCHES * BATCH, 1)


def stateful_model(dtype="float32", **compile_arguments):
    start = ["trainable", Sampled(0.5, 0.25)]
    model = keras.Sequential(
        [
            keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH),
            InitStateLSTM(2, initial_state=start, stateful=True, dtype=dtype),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", metrics=["mae"], **compile_arguments)
    return model


def state_of(model):
    """All that training changes."""
    streams = [s.variables for s in model.layers[0].states]
    return flat([model.variables, model.optimizer.variables, streams])


class Noisy(keras.utils.PyDataset):
    """Noise in the data, and an order of the rows of its own in each epoch."""

    def __len__(self):
        return BATCHES

    def on_epoch_begin(self):
        self.order = np.random.permutation(len(X))

    def __getitem__(self, index):
        rows = getattr(self, "order", np.arange(len(X)))[index * BATCH :][:BATCH]
        noise = np.random.normal(size=(BATCH, TIMESTEPS, FEATURES))
        return X[rows] + noise.astype("float32"), Y[rows]


def endless():
    rng = np.random.default_rng(1)
    while True:
        rows = rng.permutation(len(X))[:BATCH]
        yield X[rows], Y[rows]


def loader(**kwargs):
    import torch

    tensors = [torch.from_numpy(array) for array in (X, Y)]
    dataset = torch.utils.data.TensorDataset(*tensors)
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, **kwargs)


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def once(*args, **kwargs):
    return {"reshuffle_each_iteration": False, "seed": 1}


def arrays(shuffle):
    return {"x": X, "y": Y, "batch_size": BATCH, "shuffle": shuffle}


GO_ON = {"steps_per_epoch": BATCHES - 1}
SOURCES = {
    "arrays": lambda: arrays(False),
    "shuffled arrays": lambda: arrays(True),
    "arrays shuffled in batches": lambda: arrays("batch"),
    "PyDataset": lambda: {"x": Noisy(), "shuffle": True},
}
if BACKEND == "tensorflow":
    fixed = {"seed": 1, "reshuffle_each_iteration": False}
    SOURCES |= {
        "tf.data": lambda: {"x": dataset().shuffle(20, **fixed).batch(BATCH)},
        "endless tf.data": lambda: {
            "x": dataset().shuffle(20, seed=1).batch(BATCH).repeat(),
            **GO_ON,
        },
    }
if BACKEND == "torch":
    SOURCES["DataLoader"] = lambda: {"x": loader(shuffle=True)}
else:
    SOURCES["generator"] = lambda: {"x": endless(), **GO_ON}


class Interrupt(keras.callbacks.Callback):
    """Stops training in the middle of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def train(source, *callbacks, make=stateful_model):
    """What a program does that may be killed."""
    keras.utils.set_random_seed(7)
    model = make()
    fit = model.fit(**source(), epochs=EPOCHS, verbose=0, callbacks=[*callbacks])
    return model, fit.history


@pytest.mark.parametrize("source", SOURCES)
def test_goes_on_within_an_epoch(source, tmp_path):
    want, history = train(SOURCES[source])
    for at in [(0, 3), (1, 1), (1, 3)]:
        with pytest.raises(KeyboardInterrupt):
            train(
                SOURCES[source],
                ExactBackupAndRestore(tmp_path / "backup", save_freq=2),
                Interrupt(*at),
            )
    got, resumed = train(
        SOURCES[source], ExactBackupAndRestore(tmp_path / "backup", save_freq=2)
    )
    assert_same(state_of(got), state_of(want))
    assert resumed == {name: values[1:] for name, values in history.items()}
    assert list(tmp_path.iterdir()) == []
