"""What an LSTM may start from, what else a user would do, and how both are trained."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from digits import STDDEV, initial_state
from keras_init_lstm import Conditional, InitStateLSTM, Sampled
from text import VOCABULARY

# What each is, and what has to be known about a sequence to use it.
KINDS = {
    "zeros": ("zeros, as in keras.layers.LSTM", None),
    "fixed": (f"drawn once from N(0, {STDDEV}\u00b2), then kept", None),
    "sampled": (f"drawn anew from N(0, {STDDEV}\u00b2) in training", None),
    "trainable": ("one learned start for all", None),
    "noisy": (f"one learned start, and N(0, {STDDEV}\u00b2) in training", None),
    "identity": ("Conditional(Embedding) of the identity", "identity"),
    "features": ("Conditional(Dense) of the features", "features"),
    "past": ("the final states of an encoder of the past", "past"),
    "first token": ("zeros, and a learned first timestep", None),
    "identity input": ("zeros; the identity's embedding at every step", "identity"),
    "features input": ("zeros; the features at every step", "features"),
    "past input": ("zeros; the past is read first, without a loss", "past"),
}
NEEDS = {kind: needs for kind, (_, needs) in KINDS.items()}
LAST_VALUE = "last value"  # no model: what was known last is the prediction
STREAM_KINDS = {
    "zeros": "each chunk starts from zeros",
    "trainable": "each chunk starts from one learned start",
    "carried": "the state is carried on, from zeros at first",
    "carried, trainable": "the state is carried on, from a learned start at first",
}
EMBEDDING = 16
CHECKS = 10  # of the loss on validation data, in each training
LAYER = "lstm"


class FirstToken(keras.layers.Layer):
    """Puts a learned timestep before the first of each sequence.

    Input shape `(batch, timesteps, features)`, output shape
    `(batch, 1 + timesteps, features)`.
    """

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), name="token")

    def call(self, inputs):
        first = ops.tile(self.token, (ops.shape(inputs)[0], 1, 1))
        return ops.concatenate([first, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        batch, timesteps, features = input_shape
        return batch, timesteps and timesteps + 1, features


def build(task, kind, units, data, seed, use_fused="auto"):
    """Returns a model of the inputs, and of what is known, if the kind reads it.

    Args:
        task: The `Task`.
        kind: One of `KINDS`, or of `STREAM_KINDS` if the task is a stream.
        units: Of the LSTM.
        data: `Data` of the shapes that it will be called with.
        seed: Of the initial weights.
        use_fused: As `InitStateLSTM` takes it.
    """
    keras.utils.set_random_seed(seed)
    timesteps = data.inputs.shape[1]
    carried = kind.startswith("carried")
    inputs = keras.Input(
        data.inputs.shape[1:],
        batch_size=task.batch_size if carried else None,
        dtype=data.inputs.dtype,
    )
    model_inputs, sequence, call = [inputs], inputs, {}
    embed = keras.layers.Embedding(VOCABULARY, 2 * EMBEDDING)
    if data.inputs.ndim == 2:
        sequence = embed(inputs)
    known = None
    if needs := NEEDS.get(kind):
        array = data.known[needs]
        known = keras.Input(array.shape[1:], dtype=array.dtype)
        model_inputs.append(known)

    owned = initial_state(kind.removeprefix("carried, "), units, seed)
    if kind == "noisy":
        owned = Sampled(0.0, STDDEV, learned=True, seed=seed)
    elif kind == "identity":
        owned = Conditional(keras.layers.Embedding(task.identities, units, "zeros"))
        call = {"context": known}
    elif kind == "features":
        owned = Conditional(keras.layers.Dense(units, kernel_initializer="zeros"))
        call = {"context": known}
    elif kind == "past":
        owned = None
        past = embed(known) if data.inputs.ndim == 2 else known
        _, *states = keras.layers.LSTM(units, return_state=True, name="encoder")(past)
        call = {"initial_state": states}
    elif kind == "first token":
        sequence = FirstToken()(sequence)
    elif kind == "past input":
        if data.inputs.ndim == 2:
            sequence = keras.layers.Concatenate(axis=1)([embed(known), sequence])
        else:
            # What is known of the past alone is zero later, as it is not known then.
            missing = known.shape[-1] - sequence.shape[-1]
            padded = ops.pad(sequence, [(0, 0), (0, 0), (0, missing)])
            sequence = keras.layers.Concatenate(axis=1)([known, padded])
    elif kind in ("identity input", "features input"):
        if kind == "identity input":
            known = keras.layers.Embedding(task.identities, EMBEDDING)(known)
        repeated = keras.layers.RepeatVector(timesteps)(known)
        sequence = keras.layers.Concatenate()([sequence, repeated])

    lstm = InitStateLSTM(
        units,
        initial_state=owned,
        return_sequences=True,
        stateful=carried,
        use_fused=use_fused,
        name=LAYER,
    )
    outputs = lstm(sequence, **call)[:, -timesteps:]
    values = data.targets.shape[-1]
    outputs = keras.layers.Dense(values * max(task.levels, 1))(outputs)
    if task.levels:
        outputs = keras.layers.Reshape((timesteps, values, task.levels))(outputs)
    return keras.Model(model_inputs, outputs)


class Trainer:
    """A model with its compiled training, for many seeds and learning rates.

    Only the first training traces and compiles: every further one assigns what a new
    model would start from.

    Args:
        task: The `Task`.
        kind: What `build` takes.
        units: Of the LSTM.
        data: `Data` of the shapes that it will be trained on.
        use_fused: As `InitStateLSTM` takes it.
        prepare: Function of the model, called before the optimizer is made, which may
            freeze a part of it.
    """

    def __init__(self, task, kind, units, data, use_fused="auto", prepare=None):
        self.task, self.kind = task, kind
        self._build = lambda seed: build(task, kind, units, data, seed, use_fused)
        self.model = self._build(0)
        if prepare is not None:
            prepare(self.model)
        self._optimizer = keras.optimizers.Adam(clipnorm=1.0)
        self._optimizer.build(self.model.trainable_variables)
        self._optimizer_at_first = [v.numpy() for v in self._optimizer.variables]
        self._train = tf.function(self._steps)
        self._evaluate = tf.function(self._losses)

    def fit(self, train, validation, seed, rate, steps):
        """Trains the model from the start, and keeps the weights that did best.

        Args:
            train: `Data`.
            validation: `Data` to choose by, `CHECKS` times in the training, and in a
                stream after each pass.
            seed: Of the initial weights and of the order of the batches.
            rate: Of Adam, from which it falls to zero as a cosine does.
            steps: Of the training.

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
        """Trains from the weights that there are, and yields now and then.

        The arguments are those of `fit`.
        """
        for variable, value in zip(
            self._optimizer.variables, self._optimizer_at_first, strict=True
        ):
            variable.assign(value)
        arrays = self.tensors(train)
        order = batches(self.task, len(train), seed, steps)
        rates = rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
        # A stream starts anew where its data do, any other training goes on.
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
        """Returns what the model reads, the targets and the weights, as tensors."""
        needs = NEEDS.get(self.kind)
        inputs = [data.inputs, *([data.known[needs]] if needs else [])]
        return tf.nest.map_structure(tf.constant, (inputs, data.targets, data.weights))

    def _losses(self, arrays, training=False):
        inputs, targets, _ = arrays
        outputs = self.model(inputs, training=training)
        if self.task.levels:
            losses = keras.losses.sparse_categorical_crossentropy(
                targets, outputs, from_logits=True
            )
        else:
            losses = ops.square(outputs - targets)
        return ops.sum(losses, axis=-1)

    def _steps(self, arrays, order, rates):
        variables = self.model.trainable_variables
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

    Every sequence is in as many batches as any other, give or take one; those of a
    stream follow each other.
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
    """Returns the mean over all timesteps that are part of a sequence."""
    return float((losses * data.weights).sum() / data.weights.sum())


def by_timestep(losses, data):
    """Returns the mean over the sequences at each timestep, an array `(timesteps,)`."""
    return (losses * data.weights).sum(axis=0) / data.weights.sum(axis=0)


def kinds_of(task):
    """Returns the kinds that a task can be done with, by what is known in it."""
    if task.stream:
        return list(STREAM_KINDS)
    trained = [k for k, needs in NEEDS.items() if not needs or needs in task.known]
    return trained if task.levels else [*trained, LAST_VALUE]
