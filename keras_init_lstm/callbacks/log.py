"""Logs the initial states during training for TensorBoard."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_init_lstm._keras import layers_within
from keras_init_lstm.layers.rnn import InitStateRNN


class LogInitialState(keras.callbacks.Callback):
    """Logs the initial states of a model for TensorBoard at the end of each epoch.

    For each value `(units,)` that a layer of the model owns, in nested models and
    wrappers too, it logs the L2 norm as a scalar and the units as a histogram. For a
    `Sampled` state, the values are `mean` and `stddev`. The tags are the paths of the
    variables, as in `sequential/init_state_lstm/h0/value/norm` and `.../histogram`.
    The step is the number of trained epochs. Step 0 is before the first epoch. It is
    missing if the first batch builds the model, which has no values before that.

    With every backend, it needs the packages tensorflow and tensorboard, as
    `keras.callbacks.TensorBoard` does.

    Args:
        log_dir: Path of the folder to log to. The events go to its sub-folder
            `initial_state`, so `log_dir` may be the folder of
            `keras.callbacks.TensorBoard`: TensorBoard needs one writer for each
            folder, and shows the sub-folder as a run next to `train`.

    Raises:
        ImportError: When training starts, if the package tensorflow is missing.

    Example:
    >>> import tempfile
    >>> model = keras.Sequential([
    ...     keras.Input((3, 1)),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable"),
    ... ])
    >>> model.compile(loss="mse")
    >>> log_dir = tempfile.mkdtemp()
    >>> history = model.fit(
    ...     np.ones((8, 3, 1)), np.ones((8, 4)), epochs=2, verbose=0,
    ...     callbacks=[keras_init_lstm.callbacks.LogInitialState(log_dir)],
    ... )
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)

    def on_train_begin(self, logs: Any = None) -> None:
        tf = _tensorflow()
        folder = tf.io.gfile.join(self.log_dir, "initial_state")
        self._writer = tf.summary.create_file_writer(folder)
        self._has_initial_values = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Keras does not pass the initial epoch to `on_train_begin()`.
        if not self._has_initial_values:
            self._write(epoch)
            self._has_initial_values = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not list(self._values()):
            warnings.warn(
                "LogInitialState has nothing to log: no layer of the model owns an "
                "initial state. Create a layer with `initial_state='trainable'`, for "
                "example.",
                stacklevel=2,
            )
        self._write(epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()

    def _values(self) -> Iterator[keras.Variable]:
        for layer in layers_within(self.model):
            kinds = layer.initial_state if isinstance(layer, InitStateRNN) else ()
            for kind in kinds:
                if kind is not None and getattr(kind, "value", None) is not None:
                    yield from kind.weights

    def _write(self, step: int) -> None:
        tf = _tensorflow()
        # Another callback, such as `TensorBoard`, may have turned recording off.
        with self._writer.as_default(step), tf.summary.record_if(True):
            for variable in self._values():
                value = keras.ops.convert_to_numpy(variable).astype("float64")
                tf.summary.scalar(f"{variable.path}/norm", np.linalg.norm(value))
                tf.summary.histogram(f"{variable.path}/histogram", value)


def _tensorflow() -> Any:
    # Import it only here: other backends work without TensorFlow, and the import takes
    # seconds.
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "LogInitialState writes with TensorFlow: pip install tensorflow tensorboard"
        ) from error
    return tensorflow
