"""Trains the models of the evidence for many seeds and learning rates."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from benchmarks.evidence.models import LAYER, NEEDS, build

CHECKS = 10  # of the loss on validation data, in each training


class Trainer:
    """A model with its compiled training, for many seeds and learning rates.

    Only the first training traces and compiles. Later trainings assign new initial
    weights.

    Args:
        task: The `Task`.
        kind: As in `build`.
        units: The units of the LSTM.
        data: `Data` with the shapes of the training data.
        use_fused: The argument of `InitStateLSTM`.
        adapted: Function of the model that returns the model or layer to train. It may
            freeze a part of the model. Defaults to `None`: the model is trained.
    """

    def __init__(self, task, kind, units, data, use_fused="auto", adapted=None):
        self.task, self.kind = task, kind
        self._build = lambda seed: build(task, kind, units, data, seed, use_fused)
        self.model = self._build(0)
        self.trained = self.model if adapted is None else adapted(self.model)
        self._optimizer = keras.optimizers.Adam(clipnorm=1.0)
        self._optimizer.build(self.trained.trainable_variables)
        self._optimizer_at_first = [v.numpy() for v in self._optimizer.variables]
        self._train = tf.function(self._steps)
        self._evaluate = tf.function(self._losses)

    def fit(self, train, validation, seed, rate, steps):
        """Trains the model from new weights, and keeps the best on validation data.

        Args:
            train: `Data`.
            validation: `Data` on which the best weights are chosen, `CHECKS` times in a
                training, and for a stream after each pass.
            seed: The seed of the initial weights and of the order of the batches.
            rate: Learning rate of Adam, which decays to zero along a cosine.
            steps: The number of steps.

        Returns:
            The lowest mean loss on the validation data.
        """
        fresh = self._build(seed)
        for variable, value in zip(self.model.variables, fresh.variables, strict=True):
            variable.assign(value)
        lowest, best = np.inf, None
        for _ in self.passes(train, seed, rate, steps):
            loss = mean(self.losses(validation), validation)
            if loss < lowest:
                lowest, best = loss, self.model.get_weights()
        if best is None:
            raise FloatingPointError(f"{self.kind}: the loss was never finite")
        self.model.set_weights(best)
        return lowest

    def passes(self, train, seed, rate, steps):
        """Trains from the current weights, and yields after each part of the steps.

        The arguments are the arguments of `fit`.
        """
        for variable, value in zip(
            self._optimizer.variables, self._optimizer_at_first, strict=True
        ):
            variable.assign(value)
        arrays = self.tensors(train)
        order = batches(self.task, len(train), seed, steps)
        rates = rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
        # Reset the streams before each pass over their data.
        count = order.size // len(train) if self.task.stream else CHECKS
        for part in np.array_split(np.arange(steps), count):
            self._start_streams()
            self._train(
                arrays, tf.constant(order[part]), tf.constant(rates[part], tf.float32)
            )
            yield

    def _start_streams(self):
        lstm = self.model.get_layer(LAYER)
        if lstm.stateful:
            lstm.reset_state()

    def losses(self, data):
        """Returns the loss at each timestep of each sequence of `Data`."""
        if not self.task.stream:
            return self._evaluate(self.tensors(data)).numpy()
        self._start_streams()
        size = self.task.batch_size
        parts = [data[row : row + size] for row in range(0, len(data), size)]
        return np.concatenate([self._evaluate(self.tensors(p)).numpy() for p in parts])

    def tensors(self, data):
        """Returns the inputs of the model, the targets and the weights, as tensors."""
        needs = NEEDS.get(self.kind)
        inputs = [data.inputs, *([data.known[needs]] if needs else [])]
        return tf.nest.map_structure(tf.constant, (inputs, data.targets, data.weights))

    def _losses(self, arrays, training=False):
        inputs, targets, _ = arrays
        outputs = self.trained(inputs, training=training)
        if self.task.levels:
            losses = keras.losses.sparse_categorical_crossentropy(
                targets, outputs, from_logits=True
            )
        else:
            losses = ops.square(outputs - targets)
        return ops.sum(losses, axis=-1)

    def _steps(self, arrays, order, rates):
        variables = self.trained.trainable_variables
        for step in tf.range(tf.shape(order)[0]):
            batch = tf.nest.map_structure(
                lambda array, rows=order[step]: tf.gather(array, rows), arrays
            )
            self._optimizer.learning_rate.assign(rates[step])
            with tf.GradientTape() as tape:
                losses = self._losses(batch, training=True)
                loss = tf.reduce_sum(losses * batch[2]) / tf.reduce_sum(batch[2])
            self._optimizer.apply(tape.gradient(loss, variables), variables)


def batches(task, count, seed, steps):
    """Returns the rows of each batch, an array `(steps, batch_size)`.

    The numbers of batches with each sequence differ by at most one. The batches of a
    stream are in order.
    """
    size = min(task.batch_size, count)
    rng = np.random.default_rng(seed)
    passes = -(-steps * size // count)
    if task.stream:
        order = np.tile(np.arange(count), passes)
    else:
        order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[: steps * size].reshape(steps, size).astype("int32")


def mean(losses, data):
    """Returns the mean over all timesteps except padding."""
    return float((losses * data.weights).sum() / data.weights.sum())


def by_timestep(losses, data):
    """Returns the mean over the sequences at each timestep, an array `(timesteps,)`."""
    return (losses * data.weights).sum(axis=0) / data.weights.sum(axis=0)
