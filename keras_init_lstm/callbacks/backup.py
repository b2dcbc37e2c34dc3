"""A training run that is killed and started again ends as if nothing had happened."""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._files import partial_path
from keras_init_lstm._keras import (
    begin_at_epoch,
    build_metrics,
    data_of_fit,
    epoch_of_data,
)
from keras_init_lstm.callbacks._backup_file import (
    Backup,
    random_state,
    set_random_state,
)


class ExactBackupAndRestore(keras.callbacks.Callback):
    """Backs up training and restores it exactly, at any step.

    When `fit()` is killed at any moment, and the same program runs again with the same
    arguments, it ends with exactly the weights, optimizer, metrics, random streams and
    carried states of a run that was not killed. `keras.callbacks.BackupAndRestore`
    restores weights and optimizer, but within an epoch it trains on the first batches
    again, and a kill while it overwrites its backup leaves no backup. Here a backup
    replaces the previous one when it is complete and on disk.

    A backup holds all variables of the model, its optimizer and its metrics, with the
    variables of seed generators and the states of stateful layers, and on PyTorch its
    global generators. It does not hold what other callbacks remember: an
    `EarlyStopping` starts counting anew. Put this callback last in the list; otherwise
    what the others do to the model at the end of an epoch is not in the backup of
    `save_freq="epoch"`. The `History` holds the epochs that end in the restored run.

    In the epoch in which it was killed, `fit()` reads again, without training on them,
    the batches that it has trained on. They must come in the same order, as from

    - arrays and `PyDataset`, shuffled or not (shuffled arrays on TensorFlow only after
      `keras.utils.set_random_seed`). What they draw from `random` and `np.random` is
      drawn again. What a `PyDataset` keeps of one epoch for the next, such as an order
      that it shuffles further, is lost. On JAX and PyTorch, leave `workers` of a
      `PyDataset` at 1: with more, the order of an epoch depends on the epochs before;
    - a `torch.utils.data.DataLoader` without a generator of its own;
    - a `tf.data.Dataset` with the same order in each epoch, so with
      `shuffle(..., seed=..., reshuffle_each_iteration=False)`;
    - with `steps_per_epoch` and a number for `save_freq`, generators and datasets that
      never end and give the same batches in each run, so with
      `shuffle(..., seed=...).repeat()`. All batches so far are then read again. Not
      on PyTorch, where `steps_per_epoch` must be left out.

    Args:
        backup_dir: Path of a local folder for this run alone.
        save_freq: `"epoch"`, or the number of batches from one backup to the next.
            Defaults to `"epoch"`.
        delete_checkpoint: Whether the backup is deleted when training has finished.
            Defaults to `True`.

    Raises:
        ValueError: If an argument is not as above, if the model is not built before
            `fit()`, and where a restored run could not be exact: the backup is of
            another model or of a Keras that orders the batches otherwise, the data end
            before the batch where training continues, or they continue from epoch to
            epoch and are not as above.

    Example:
    >>> import tempfile
    >>> from keras_init_lstm import callbacks
    >>> folder = tempfile.mkdtemp()
    >>> def run():  # What stands in the program that may be killed.
    ...     model = keras.Sequential([
    ...         keras.Input((3, 1)),
    ...         keras_init_lstm.InitStateLSTM(4, initial_state="sampled"),
    ...     ])
    ...     model.compile(loss="mse")
    ...     backup = callbacks.ExactBackupAndRestore(folder, save_freq=100)
    ...     model.fit(
    ...         np.ones((8, 3, 1)), np.ones((8, 4)), verbose=0, callbacks=[backup]
    ...     )
    >>> run()
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: int | str = "epoch",
        delete_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        if not (isinstance(backup_dir, str | os.PathLike) and os.fspath(backup_dir)):
            raise ValueError(
                "Argument `backup_dir` must be the path of a folder. "
                f"Received: {described(backup_dir)}"
            )
        whole = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if not (save_freq == "epoch" or (whole and int(save_freq) > 0)):
            raise ValueError(
                'Argument `save_freq` must be "epoch" or a positive number of batches. '
                f"Received: {described(save_freq)}"
            )
        self.backup_dir = backup_dir
        self.save_freq = save_freq
        self.delete_checkpoint = delete_checkpoint
        self._path = pathlib.Path(backup_dir) / "latest.npz"

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.model.built:
            raise ValueError(
                "The model must be built before `fit()`, so that a backup can be "
                "restored: call it on a batch, or begin it with an `Input`. "
                f"Received: {self.model.name}, which is not built"
            )
        self._since_backup = 0
        # Where the batches come from, how many did so far, and from which random state.
        self._source: Any = None
        self._read = self._batch = 0
        self._random: Any = None
        self._data = data_of_fit()
        self._undo_epoch: Callable[[], None] = lambda: None
        # What is to be restored.
        self._backup: Backup | None = None
        if self._path.exists():
            self._backup = Backup.read_from(self._path)
            self._check_order(self._backup)
            optimizer = self.model.optimizer
            if optimizer is not None and not optimizer.built:
                optimizer.build(self.model.trainable_variables)
            self._backup.restore_variables(self.model, self.backup_dir)
            model = self.model
            self._undo_epoch = _before_next_training(
                model, lambda: begin_at_epoch(model, None)
            )
            begin_at_epoch(model, self._backup.epoch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Otherwise the next `fit()` would begin there too.
        self._undo_epoch()
        self._went_on = self._read > self._batch
        self._epoch, self._batch = epoch, 0
        if self._backup is not None:
            set_random_state(self._backup.random, self._data)
            if self._backup.batch == 0:
                self._backup = None
        self._random_at_epoch_begin = random_state(self._data)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch > 0 and self._backup is None:
            return
        # On JAX, to read `self.model` gives the variables their values back, which must
        # not happen within a training step.
        model = self.model
        train_function = model.train_function

        # `fit()` calls it once, with an iterator, or on PyTorch with a list of batches;
        # on JAX the state comes before.
        def stand_in(*arguments: Any) -> Any:
            restore()
            *state, source = arguments
            if batch == 0:
                self._meet(source)
            if self._backup is None:
                return train_function(*arguments)
            self._skip(model, source, self._backup)
            return (self._backup.logs, *state) if state else self._backup.logs

        def undo() -> None:
            if model.train_function is stand_in:  # `compile()` may have reset it.
                model.train_function = train_function

        restore = _before_next_training(model, undo)
        model.train_function = stand_in

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        batches = batch + 1 - self._batch
        self._batch += batches
        self._read += batches
        if self._backup is not None:
            # At the point in the list of callbacks at which it was saved: the backup
            # holds what the callbacks before did, and the ones after do theirs again.
            if self._batch >= self._backup.batch:
                self._backup.restore(self.model, self.backup_dir)
                self._backup = None
        elif self.save_freq != "epoch":
            self._since_backup += batches
            if self._since_backup >= int(self.save_freq):
                self._save(self._epoch, self._batch, self._random, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._backup is not None:
            raise ValueError(
                f"The data of `fit()` end before the batch at which the backup in "
                f"{self.backup_dir} continues. Expected at least {self._backup.batch} "
                f"batches, as before. Received: {self._batch}"
            )
        if self.save_freq == "epoch":
            self._save(epoch + 1, 0, random_state(self._data), logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._undo_epoch()
        self._source = self._data = self._backup = None
        if self.delete_checkpoint:
            self._path.unlink(missing_ok=True)
            partial_path(self._path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Something else is in it.
                self._path.parent.rmdir()

    def _check_order(self, backup: Backup) -> None:
        """Raises a `ValueError` if the batches can't come in the order of `backup`."""
        was_counted = backup.random["epoch_of_data"] is not None
        is_counted = epoch_of_data(self._data) is not None
        if self._data is None or was_counted != is_counted:
            raise ValueError(
                f"The backup in {self.backup_dir} can't be restored exactly: its "
                "training must continue with the same version of Keras, and by the "
                f"`fit()` of Keras. Received: Keras {keras.__version__}"
            )

    def _meet(self, source: Any) -> None:
        """Takes note of what the first batch of an epoch comes from."""
        if source is self._source:
            if self.save_freq == "epoch":
                raise ValueError(
                    "Where the data of `fit(steps_per_epoch=...)` continue from epoch "
                    "to epoch, argument `save_freq` must be a number of batches. "
                    'Received: "epoch"'
                )
            return
        if self._went_on:
            raise ValueError(
                "The data of `fit(steps_per_epoch=...)` must never end where they "
                "continue from epoch to epoch: repeat them, or leave out "
                "`steps_per_epoch`. "
                f"Received: data that ended after {self._read} batches"
            )
        self._source, self._read = source, 0
        self._random = self._random_at_epoch_begin

    def _skip(self, model: keras.Model, source: Any, backup: Backup) -> None:
        """Reads what `fit()` would train on in one call."""
        if isinstance(source, list):
            return  # They have been read.
        if self._batch == 0:
            self._read = backup.read - backup.batch
            for _ in range(self._read):
                next(source)
        batch = next(source)
        for _ in range(model.steps_per_execution - 1):
            next(source, None)
        if len(model.metrics_variables) != len(backup.metrics):
            # Which on TensorFlow are built when the training step is traced.
            build_metrics(model, batch)

    def _save(self, epoch: int, batch: int, random_state: Any, logs: Any) -> None:
        self._since_backup = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        Backup.of(
            self.model,
            epoch=epoch,
            batch=batch,
            read=self._read,
            random=random_state,
            logs=logs,
        ).write(self._path)


def _before_next_training(
    model: keras.Model, undo: Callable[[], None]
) -> Callable[[], None]:
    """Makes sure that a change of `model` is undone, whatever happens to `fit()`.

    Keras does not tell a callback when an exception ends `fit()`. But `fit()` and
    `train_on_batch()` begin with the public `make_train_function()`.

    Args:
        model: The model that is trained.
        undo: Function that undoes the change. It may be called twice.

    Returns:
        Function that undoes the change now.
    """
    attributes = vars(model)
    before = attributes.get("make_train_function")

    def restore() -> None:
        undo()
        if attributes.get("make_train_function") is make_train_function:
            del attributes["make_train_function"]
            if before is not None:  # Set by another callback like this one.
                attributes["make_train_function"] = before

    def make_train_function(*args: Any, **kwargs: Any) -> Any:
        restore()
        return model.make_train_function(*args, **kwargs)

    attributes["make_train_function"] = make_train_function
    return restore
