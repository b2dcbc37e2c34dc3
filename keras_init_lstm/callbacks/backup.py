"""Backs up a training run, and restores it exactly after it was killed."""

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

    If `fit()` is killed at any moment, and the same program runs again with the same
    arguments, it ends with exactly the weights, optimizer, metrics, random streams and
    carried states of an uninterrupted run. `keras.callbacks.BackupAndRestore` restores
    weights and optimizer, but within an epoch it trains on the first batches again, and
    a kill while it overwrites its backup leaves no backup. This callback replaces the
    previous backup only when the new one is complete and on disk.

    A backup holds all variables of the model, its optimizer and its metrics, with the
    variables of seed generators and the states of stateful layers, and on PyTorch its
    global generators. It does not hold the state of other callbacks: an `EarlyStopping`
    counts from zero again. Put this callback last in the list; otherwise a backup of
    `save_freq="epoch"` does not hold the changes that later callbacks make to the model
    at the end of an epoch. The `History` holds the epochs that end in the resumed run.

    In the interrupted epoch, the resumed `fit()` reads the batches again that were
    trained on, without training on them. They must come in the same order, as from

    - arrays and `PyDataset`, shuffled or not (shuffled arrays on TensorFlow only after
      `keras.utils.set_random_seed`). Their draws from `random` and `np.random` are
      repeated. A `PyDataset` loses what it keeps from one epoch for the next, such as
      an order that it shuffles further. On JAX and PyTorch, leave `workers` of a
      `PyDataset` at 1: with more, the order of an epoch depends on earlier epochs;
    - a `torch.utils.data.DataLoader` without a custom `generator`;
    - a `tf.data.Dataset` with the same order in each epoch, for example with
      `shuffle(..., seed=..., reshuffle_each_iteration=False)`;
    - with `steps_per_epoch` and a number for `save_freq`, generators and datasets that
      never end and return the same batches in each run, for example with
      `shuffle(..., seed=...).repeat()`. All earlier batches are then read again. On
      PyTorch, leave `steps_per_epoch` out.

    Args:
        backup_dir: Path of a local folder for this run only.
        save_freq: `"epoch"`, or the number of batches from one backup to the next.
            Defaults to `"epoch"`.
        delete_checkpoint: Whether to delete the backup when training has finished.
            Defaults to `True`.

    Raises:
        ValueError: If an argument is not as above, if the model is not built before
            `fit()`, or if a resumed run would not be exact: the backup is of another
            model, or of a version of Keras that orders the batches differently; the
            data end before the batch where training continues; or the data continue
            from epoch to epoch and are not as above.

    Example:
    >>> import tempfile
    >>> from keras_init_lstm import callbacks
    >>> folder = tempfile.mkdtemp()
    >>> def run():  # The program that may be killed.
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
        is_integer = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if not (save_freq == "epoch" or (is_integer and int(save_freq) > 0)):
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
                "The model must be built before `fit()`, or a backup can't be "
                "restored: call it on a batch, or add an `Input`. "
                f"Received: {self.model.name}, which is not built"
            )
        self._batches_since_backup = 0
        # The iterator of the batches, the number of batches that were read from it, and
        # the random state in which it was created.
        self._source: Any = None
        self._read = self._batch = 0
        self._random: Any = None
        self._data = data_of_fit()
        self._undo_epoch: Callable[[], None] = lambda: None
        # The backup that is not restored yet.
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
        # The next `fit()` must not begin at this epoch.
        self._undo_epoch()
        self._continues_source = self._read > self._batch
        self._epoch, self._batch = epoch, 0
        if self._backup is not None:
            set_random_state(self._backup.random, self._data)
            if self._backup.batch == 0:
                self._backup = None
        self._random_at_epoch_begin = random_state(self._data)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch > 0 and self._backup is None:
            return
        # On JAX, reading `self.model` writes the training state to the variables, which
        # must not happen within a training step. Read it here.
        model = self.model
        train_function = model.train_function

        # `fit()` calls it once: with an iterator, on PyTorch with a list of batches, on
        # JAX with the training state and an iterator.
        def replacement(*arguments: Any) -> Any:
            restore()
            *state, source = arguments
            if batch == 0:
                self._set_source(source)
            if self._backup is None:
                return train_function(*arguments)
            self._skip(model, source, self._backup)
            return (self._backup.logs, *state) if state else self._backup.logs

        def undo() -> None:
            if model.train_function is replacement:  # `compile()` may have reset it.
                model.train_function = train_function

        restore = _before_next_training(model, undo)
        model.train_function = replacement

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        batches = batch + 1 - self._batch
        self._batch += batches
        self._read += batches
        if self._backup is not None:
            # Restore at the position in the list of callbacks where the backup was
            # saved: it holds the changes of earlier callbacks, and later callbacks make
            # theirs again.
            if self._batch >= self._backup.batch:
                self._backup.restore(self.model, self.backup_dir)
                self._backup = None
        elif self.save_freq != "epoch":
            self._batches_since_backup += batches
            if self._batches_since_backup >= int(self.save_freq):
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
            with contextlib.suppress(OSError):  # The folder has other files.
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

    def _set_source(self, source: Any) -> None:
        """Sets the iterator from which the first batch of an epoch comes.

        Raises:
            ValueError: If a backup of such data could not be restored exactly.
        """
        if source is self._source:
            if self.save_freq == "epoch":
                raise ValueError(
                    "Argument `save_freq` must be a number of batches if the data of "
                    "`fit(steps_per_epoch=...)` continue from epoch to epoch. "
                    'Received: save_freq="epoch"'
                )
            return
        if self._continues_source:
            raise ValueError(
                "The data of `fit(steps_per_epoch=...)` must never end if they "
                "continue from epoch to epoch: repeat them, or leave out "
                "`steps_per_epoch`. "
                f"Received: data that ended after {self._read} batches"
            )
        self._source, self._read = source, 0
        self._random = self._random_at_epoch_begin

    def _skip(self, model: keras.Model, source: Any, backup: Backup) -> None:
        """Reads the batches of one training call, without training on them."""
        if isinstance(source, list):
            return  # Keras has read the batches.
        if self._batch == 0:
            self._read = backup.read - backup.batch
            for _ in range(self._read):
                next(source)
        batch = next(source)
        for _ in range(model.steps_per_execution - 1):
            next(source, None)
        if len(model.metrics_variables) != len(backup.metrics):
            # TensorFlow builds the metrics when it traces the training step, which has
            # not happened.
            build_metrics(model, batch)

    def _save(self, epoch: int, batch: int, random_state: Any, logs: Any) -> None:
        self._batches_since_backup = 0
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
    """Makes sure that a change of `model` is undone before the next training.

    Keras does not tell a callback when an exception ends `fit()`. But `fit()` and
    `train_on_batch()` first call the public `make_train_function()`.

    Args:
        model: The model that is trained.
        undo: Function that undoes the change. It may be called twice.

    Returns:
        Function that undoes the change now.
    """
    attributes = vars(model)
    previous = attributes.get("make_train_function")

    def restore() -> None:
        undo()
        if attributes.get("make_train_function") is make_train_function:
            del attributes["make_train_function"]
            if previous is not None:  # Another callback of this class has set it.
                attributes["make_train_function"] = previous

    def make_train_function(*args: Any, **kwargs: Any) -> Any:
        restore()
        return model.make_train_function(*args, **kwargs)

    attributes["make_train_function"] = make_train_function
    return restore
