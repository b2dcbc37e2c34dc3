"""Backups of interrupted training, which ends as uninterrupted training does."""

import functools
import json
import os
import pathlib
import random
import signal
import stat
import time

import keras
import numpy as np
import pytest
from keras import layers

from backends import BACKEND, WITHOUT_XLA, in_a_fresh_process, tf
from keras_init_lstm import InitStateLSTM, Sampled
from keras_init_lstm._keras import epoch_of_data
from keras_init_lstm.callbacks import ExactBackupAndRestore, _backup_file
from keras_init_lstm.callbacks import backup as backup_module
from keras_init_lstm.streams import ResetStates
from models import BATCH, FEATURES, normal
from oracles import assert_same, flat

# How often and when training is killed. Set them: `KILLS=20 KILL_SEED=3 pytest ...`.
KILLS = int(os.environ.get("KILLS", 4))
KILL_SEED = int(os.environ.get("KILL_SEED", 1))
TIMESTEPS, BATCHES, EPOCHS = 2, 5, 3
# On JAX, each training compiles again, which takes minutes.
asked_for = pytest.mark.skipif(
    BACKEND == "jax" and "KILLS" not in os.environ, reason="takes minutes on JAX"
)
X = normal(BATCHES * BATCH, TIMESTEPS, FEATURES)
Y = normal(BATCHES * BATCH, 1)


def model_of(layer=None, rate=0.5, **compile_arguments):
    """A compiled model with a stream, and with random numbers of every kind."""
    states = ["trainable", Sampled(0.5, 0.25)]
    # An unrolled loop is traced faster.
    layer = layer or InitStateLSTM(2, initial_state=states, stateful=True, unroll=True)
    inputs = keras.Input((TIMESTEPS, FEATURES), batch_size=BATCH)
    dropout, dense = layers.Dropout(rate), layers.Dense(1)
    model = keras.Sequential([inputs, layer, dropout, dense])
    model.compile(
        "adam", "mse", metrics=["mae"], **{**WITHOUT_XLA, **compile_arguments}
    )
    return model


def state_of(model):
    """All that training changes."""
    streams = [
        getattr(state, "variables", state)
        for layer in model.layers
        for state in getattr(layer, "states", None) or []
    ]
    return flat([model.variables, model.optimizer.variables, streams])


def train(*callbacks, source=None, make=model_of, epochs=EPOCHS, **kwargs):
    """Runs a program that trains; returns the state of training and the history."""
    keras.utils.set_random_seed(7)
    model = make()
    source = source or SOURCES["arrays"]
    fit = model.fit(
        **source(), epochs=epochs, verbose=0, callbacks=[*callbacks], **kwargs
    )
    return state_of(model), fit.history


@functools.cache
def uninterrupted(rate=0.5, resets=False):
    """The state and the history of uninterrupted training."""
    return train(*[ResetStates()] * resets, make=lambda: model_of(rate=rate))


def same(got, want):
    return all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


class Interrupt(keras.callbacks.Callback):
    """Stops training before a batch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


class Steps(keras.callbacks.Callback):
    """Records the number of training steps of the model after each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(int(self.model.optimizer.iterations.numpy()))


def interrupted(backup, at, *callbacks, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        train(*callbacks, backup(), Interrupt(*at), **kwargs)


@pytest.fixture
def backup(tmp_path):
    """Returns a function that creates the callback, as a restarted program does."""

    def make(save_freq=2, **kwargs):
        return ExactBackupAndRestore(tmp_path / "backup", save_freq, **kwargs)

    return make


class Noisy(keras.utils.PyDataset):
    """Data with random noise, and with another order of the rows in each epoch."""

    def __len__(self):
        return BATCHES

    def on_epoch_begin(self):
        self.order = np.random.permutation(len(X))

    def __getitem__(self, index):
        rows = getattr(self, "order", np.arange(len(X)))[index * BATCH :][:BATCH]
        noise = np.random.normal(size=(BATCH, TIMESTEPS, FEATURES))
        return X[rows] + noise.astype("float32"), Y[rows]


def endless():
    while True:
        rows = np.random.permutation(len(X))[:BATCH]
        yield X[rows], Y[rows]


def loader():
    import torch

    tensors = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(tensors, batch_size=BATCH, shuffle=True)


def dataset(**shuffle):
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    return data.shuffle(len(X), seed=1, **shuffle).batch(BATCH)


def arrays(shuffle):
    return {"x": X, "y": Y, "batch_size": BATCH, "shuffle": shuffle}


GO_ON = {"steps_per_epoch": BATCHES - 1, "shuffle": False}
SOURCES = {
    "arrays": lambda: arrays(False),
    "shuffled arrays": lambda: arrays(True),
    "arrays shuffled in batches": lambda: arrays("batch"),
    "PyDataset": lambda: {"x": Noisy(), "shuffle": True},
}
if BACKEND == "tensorflow":
    SOURCES["tf.data"] = lambda: {
        "x": dataset(reshuffle_each_iteration=False),
        "shuffle": False,
    }
    SOURCES["endless tf.data"] = lambda: {"x": dataset().repeat(), **GO_ON}
if BACKEND == "torch":
    SOURCES["DataLoader"] = lambda: {"x": loader(), "shuffle": False}
else:
    SOURCES["generator"] = lambda: {"x": endless(), **GO_ON}


@asked_for
class TestContinues:
    @pytest.mark.parametrize("source", SOURCES)
    def test_within_an_epoch(self, source, backup, tmp_path):
        source = SOURCES[source]
        want, history = train(source=source)
        batches = source().get("steps_per_epoch", BATCHES)
        # Interrupt the resumed run again if the data continue from epoch to epoch.
        for epoch in [1] if batches == BATCHES else [1, 2]:
            interrupted(backup, (epoch, 3), source=source)
        steps = Steps()
        got, resumed = train(steps, backup(), source=source)
        assert_same(got, want)
        assert resumed == {name: values[epoch:] for name, values in history.items()}
        before = epoch * batches
        saved = (before + 3) // 2 * 2
        new = range(saved + 1, EPOCHS * batches + 1)
        assert steps.seen == [saved] * (saved - before) + [*new]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "make",
        [
            pytest.param(
                lambda: model_of(steps_per_execution=2),
                marks=pytest.mark.skipif(BACKEND == "torch", reason="not in it"),
                id="two steps at once",
            ),
            pytest.param(
                lambda: model_of(
                    layers.LSTM(2, stateful=True, recurrent_dropout=0.5),
                    **({"run_eagerly": True} if BACKEND == "tensorflow" else {}),
                ),
                marks=pytest.mark.skipif(BACKEND == "torch", reason="fails in Keras"),
                id="a stream of Keras",
            ),
            pytest.param(
                lambda: model_of(
                    InitStateLSTM(
                        2,
                        stateful=True,
                        dtype="bfloat16",
                        recurrent_initializer="glorot_uniform",
                    )
                ),
                id="bfloat16",
            ),
        ],
    )
    def test_with_other_models(self, make, backup):
        want, _ = train(make=make)
        interrupted(backup, (1, 4), make=make)
        assert_same(train(backup(), make=make)[0], want)

    @pytest.mark.parametrize("backup_first", [True, False])
    def test_callbacks_that_change_the_model(self, backup_first, backup):
        class Meddle(ResetStates):
            """Makes two changes that must be made exactly once."""

            def on_train_batch_end(self, batch, logs=None):
                rate = self.model.optimizer.learning_rate
                rate.assign(rate * 0.5)
                if batch == 1:
                    self.model.layers[0].states[0].assign(np.ones((BATCH, 2)))

        def callbacks(*backups):
            both = [*backups, Meddle()]
            return both if backup_first else both[::-1]

        validation = {"validation_data": (X, Y), "validation_batch_size": BATCH}
        want, history = train(*callbacks(), **validation)
        with pytest.raises(KeyboardInterrupt):
            train(*callbacks(backup()), Interrupt(1, 2), **validation)
        got, resumed = train(*callbacks(backup()), **validation)
        assert_same(got, want)
        assert resumed == {name: values[1:] for name, values in history.items()}

    @pytest.mark.parametrize(
        ("save_freq", "at", "epoch"), [("epoch", (2, 3), 2), (BATCHES, (2, 0), 1)]
    )
    def test_between_epochs(self, save_freq, at, epoch, backup):
        """The backup is from the end of an epoch, or from its last batch."""
        want, history = uninterrupted()
        interrupted(lambda: backup(save_freq), at)
        got, resumed = train(backup(save_freq))
        assert_same(got, want)
        assert resumed == {name: values[epoch:] for name, values in history.items()}

    def test_in_one_process(self, backup):
        """One model is trained again, with the callback and without."""
        want, _ = train(epochs=4)
        kept = {"save_freq": "epoch", "delete_checkpoint": False}
        train(backup(**kept), epochs=2)
        model = model_of()

        def epochs(epochs, *callbacks):
            fit = {"epochs": epochs, "callbacks": [*callbacks], "verbose": 0}
            return model.fit(**SOURCES["arrays"](), **fit).epoch

        assert epochs(2, backup(**kept)) == []
        assert epochs(1) == [0]
        with pytest.raises(KeyboardInterrupt):
            epochs(4, backup(**kept), Interrupt(3, 0))
        assert epochs(1) == [0]
        assert epochs(4, backup(**kept)) == [3]
        assert_same(state_of(model), want)


@asked_for
class TestLeavesNothingBehind:
    """Keras does not tell callbacks about an exception in `fit()`."""

    @pytest.fixture
    def backed_up(self, backup):
        """A model with a backup of batch 2 of epoch 1."""
        interrupted(backup, (1, 3))
        return model_of()

    def fit(self, model, *callbacks, **kwargs):
        arguments = {**SOURCES["arrays"](), "verbose": 0, "epochs": EPOCHS, **kwargs}
        return model.fit(**arguments, callbacks=[*callbacks]).epoch

    @pytest.mark.parametrize("way", ["fit", "train_on_batch", "compiled again"])
    def test_interrupted_between_a_callback_and_its_step(self, way, backup, backed_up):
        model = backed_up
        with pytest.raises(KeyboardInterrupt):  # The next batch would only be read.
            self.fit(model, backup(), Interrupt(1, 0))
        if way == "compiled again":
            model.compile("adam", "mse", **WITHOUT_XLA)
        before = int(model.optimizer.iterations.numpy())
        if way == "train_on_batch":
            for _ in range(BATCHES):
                model.train_on_batch(X[:BATCH], Y[:BATCH])
        else:
            assert self.fit(model, epochs=1) == [0]
        assert int(model.optimizer.iterations.numpy()) == before + BATCHES

    def test_interrupted_between_two_backup_callbacks(self, tmp_path):
        model = model_of()
        two = [ExactBackupAndRestore(tmp_path / name, 2) for name in "ab"]
        with pytest.raises(KeyboardInterrupt):
            self.fit(model, *two, Interrupt(0, 0))
        function = model.train_function
        self.fit(model, epochs=1)
        assert model.train_function is not function
        assert "make_train_function" not in vars(model)

    def test_interrupted_before_the_first_epoch(self, backup, backed_up):
        class Fails(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.fit(backed_up, backup(), Fails())
        assert self.fit(backed_up, epochs=1) == [0]

    def test_interrupted_in_fit(self, backup, backed_up):
        self.fit(backed_up, backup())
        assert "make_train_function" not in vars(backed_up)


class Tell(keras.callbacks.Callback):
    """Writes a byte after each batch."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def on_train_batch_end(self, batch, logs=None):
        os.write(self.pipe, b".")


def start_training(folder, name, epochs, *callbacks):
    """Trains in a new process; returns its ID and a pipe with a byte for each step."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            callbacks = [*callbacks, ResetStates(), Tell(writing)]
            state, _ = train(*callbacks, epochs=epochs)
            np.savez(f"{folder}/{name}.npz", *state)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return process, reading


def kill_and_restart(folder, kills, seed):
    """Trains, is killed and restarts. Prints how often it was killed.

    Keras is imported before the fork, which saves seconds for each process, but must
    not have run.
    """
    rng = random.Random(seed)
    killed, epochs = 0, 3 * kills
    for attempt in range(kills + 1):
        backup = ExactBackupAndRestore(f"{folder}/backup", save_freq=2)
        process, pipe = start_training(folder, "killed", epochs, backup)
        steps = rng.randint(0, 10)
        if attempt == kills:
            while os.read(pipe, 1):
                pass
        elif steps == 0:  # Kill it before the first step.
            time.sleep(rng.uniform(0, 1))
        else:
            for _ in range(steps):
                os.read(pipe, 1)
            time.sleep(rng.uniform(0, 0.02))
        if attempt < kills:
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(pipe)
        killed += os.WIFSIGNALED(status)
    process, pipe = start_training(folder, "uninterrupted", epochs)
    while os.read(pipe, 1):
        pass
    os.waitpid(process, 0)
    print(json.dumps(killed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="divides processes")
def test_killed_at_random_moments(tmp_path):
    print(f"KILLS={KILLS} KILL_SEED={KILL_SEED}")
    script = (
        "import sys, test_backup\n"
        "folder, kills, seed = sys.argv[1:]\n"
        "test_backup.kill_and_restart(folder, int(kills), int(seed))"
    )
    killed = in_a_fresh_process(script, tmp_path, KILLS, KILL_SEED)
    assert json.loads(killed) == KILLS
    got, want = (
        np.load(tmp_path / f"{name}.npz") for name in ("killed", "uninterrupted")
    )
    assert_same([*got.values()], [*want.values()])
    assert not (tmp_path / "backup").exists()


@asked_for
class TestFiles:
    @pytest.mark.parametrize("step", ["numpy.savez", "pathlib.Path.replace"])
    def test_interrupted_while_saving(self, step, backup, tmp_path, monkeypatch):
        interrupted(backup, (0, 3))
        (whole,) = (tmp_path / "backup").iterdir()
        content = whole.read_bytes()

        def torn(file, *_, **__):
            if step == "numpy.savez":
                file.write(content[: len(content) // 2])
                file.flush()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(step, torn)
            with pytest.raises(KeyboardInterrupt):
                train(backup())
        assert whole.read_bytes() == content
        assert [*whole.parent.iterdir()] == [whole]
        assert_same(train(backup())[0], uninterrupted()[0])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.name != "posix", reason="opens a folder")
    def test_is_on_disk_before_it_replaces_the_old_file(self, backup, monkeypatch):
        done = []

        def spy(owner, name, described):
            real = getattr(owner, name)

            def called(*args):
                done.append((name, described(*args)))
                return real(*args)

            monkeypatch.setattr(owner, name, called)

        spy(os, "fsync", lambda file: stat.S_ISDIR(os.fstat(file).st_mode))
        spy(pathlib.Path, "replace", lambda old, new: old.parent == new.parent)
        train(backup("epoch"), epochs=1)
        assert done == [("fsync", False), ("replace", True), ("fsync", True)]


@asked_for
class TestBackupAndRestoreOfKeras:
    """Keras's callback, compared with the callback of this package."""

    @pytest.mark.parametrize(
        ("save_freq", "rate"), [("epoch", 0.0), ("epoch", 0.5), (2, 0.0)]
    )
    def test_is_exact_between_epochs(self, save_freq, rate, tmp_path):
        """It is exact except for the random numbers of layers of Keras."""

        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq)

        def make():
            return model_of(rate=rate)

        interrupted(backup, (1, 3), ResetStates(), make=make)
        got, _ = train(ResetStates(), backup(), make=make)
        assert same(got, uninterrupted(rate, True)[0]) == (
            save_freq == "epoch" and not rate
        )
        # The backup is from batch 8, but training continues from the epoch's first one.
        repeated = 3 if save_freq == 2 else 0
        (iterations,) = (a for a in got if a.dtype.kind == "i" and a.shape == ())
        assert iterations == EPOCHS * BATCHES + repeated

    def test_loses_a_stream(self, tmp_path):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        interrupted(backup, (1, 3))
        assert not same(train(backup())[0], uninterrupted()[0])

    def test_a_broken_file_stops_it(self, tmp_path):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        interrupted(backup, (1, 3))
        file = tmp_path / "backup" / "latest.weights.h5"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(OSError, match="truncated"):
            train(backup())


def test_the_random_state_holds_a_normal_number_that_was_not_yet_returned():
    # Both generators draw two numbers at a time.
    random.gauss(0, 1), np.random.normal()
    state = _backup_file.random_state(None)
    want = random.gauss(0, 1), np.random.normal()
    random.seed(1), np.random.seed(1)
    _backup_file.set_random_state(state, None)
    assert (random.gauss(0, 1), np.random.normal()) == want


@asked_for
class TestErrors:
    @pytest.mark.parametrize("backup_dir", ["", None, 3])
    def test_backup_dir(self, backup_dir):
        with pytest.raises(ValueError, match="`backup_dir` must be .* Received"):
            ExactBackupAndRestore(backup_dir)

    @pytest.mark.parametrize("save_freq", ["batch", 0, -1, 1.5, True, None])
    def test_save_freq(self, save_freq, backup):
        with pytest.raises(ValueError, match="`save_freq` must be .* Received"):
            backup(save_freq)

    @pytest.mark.tensorflow  # Other backends build the model before the callbacks.
    def test_a_model_that_is_not_built(self, backup):
        def make():
            model = keras.Sequential([layers.Flatten(), layers.Dense(1)])
            model.compile("sgd", "mse")
            return model

        with pytest.raises(ValueError, match="must be built before"):
            train(backup(), make=make)

    # With other variables, and with as many variables of other shapes.
    @pytest.mark.parametrize("states", [None, ["trainable", Sampled(0.5, 0.25)]])
    def test_the_backup_of_another_model(self, states, backup):
        interrupted(backup, (1, 1))

        def make():
            return model_of(InitStateLSTM(3, initial_state=states, stateful=True))

        with pytest.raises(ValueError, match=r"of another model.*shapes.*shapes"):
            train(backup(), make=make)

    def test_the_backup_of_another_optimizer(self, backup):
        """Adam has the variables of SGD, and then more."""

        def with_adam():
            return model_of(layers.LSTM(2))

        def with_sgd():
            model = with_adam()
            model.compile("sgd", "mse", metrics=["mae"], **WITHOUT_XLA)
            return model

        interrupted(backup, (1, 1), make=with_sgd)
        with pytest.raises(ValueError, match="compiled with other arguments"):
            train(backup(), make=with_adam)

    def test_the_backup_of_another_keras(self, backup, monkeypatch):
        """Versions of Keras draw the order of an epoch from different generators."""

        def of_another_version(data):
            return 1 if epoch_of_data(data) is None else None

        with monkeypatch.context() as patch:
            patch.setattr(_backup_file, "epoch_of_data", of_another_version)
            interrupted(backup, (1, 1))
        with pytest.raises(ValueError, match=r"same version of Keras.*Received: Keras"):
            train(backup())

    def test_data_that_are_not_found(self, backup, monkeypatch):
        interrupted(backup, (1, 1))
        monkeypatch.setattr(backup_module, "data_of_fit", lambda: None)
        with pytest.raises(ValueError, match=r"by the `fit\(\)` of Keras"):
            train(backup())

    def test_data_that_end_too_early(self, backup):
        interrupted(backup, (1, 4))

        def fewer():
            return {"x": X[:BATCH], "y": Y[:BATCH], "batch_size": BATCH}

        with pytest.raises(ValueError, match=r"at least 3 batches.*Received: 1"):
            train(backup(), source=fewer)

    @pytest.mark.skipif(BACKEND == "torch", reason="can't see where data come from")
    @pytest.mark.parametrize(
        ("save_freq", "message"),
        [
            ("epoch", '`save_freq` must .* Received: save_freq="epoch"'),
            (2, "ended after 5 batch"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Your input ran out of data")
    def test_data_that_continue_from_epoch_to_epoch(self, save_freq, message, backup):
        def source():
            return {**arrays(False), "steps_per_epoch": 2}

        with pytest.raises(ValueError, match=message):
            train(backup(save_freq), source=source, epochs=4)
