"""Times the steps of an epoch of `fit`."""

import math
import time

import keras

from benchmarks.speed.contenders import BASELINE
from benchmarks.speed.timing import Run


class StepClock(keras.callbacks.Callback):
    """A clock that runs only during the steps of `fit`.

    `epochs` has, for each epoch, the times at which each batch began and ended.

    The work of `fit` before the first step takes about 0.04 s for every contender.
    After the last step, tf.data ends the thread that tunes its pipeline. In some calls
    this waits until the thread wakes up, at 0.34 s, at 0.66 s and so on: an epoch of
    0.5 s then takes 0.66 s.
    """

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.epochs[-1].append([time.perf_counter()])

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1][-1].append(time.perf_counter())

    def seconds(self):
        """Returns for how many seconds the clock has run."""
        return sum(batches[-1][1] - batches[0][0] for batches in self.epochs)


def fit_run(layer, x, y, batch):
    """Returns the run of an epoch of `fit`."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    clock = StepClock()

    def fit():
        model.fit(x, y, batch, epochs=1, verbose=0, callbacks=[clock])

    return Run(fit, clock=clock.seconds)


def fit_steps(training, seconds):
    """Returns how many steps of `fit` take so long, by a case of training steps."""
    step = training["median_ms"][BASELINE] / 1e3
    return min(64, max(3, math.ceil(seconds / step)))
