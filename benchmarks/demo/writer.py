"""A model that writes handwritten digits row by row: its data, training and use."""

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks import initial_states
from keras_init_lstm import Conditional, InitStateLSTM

ZEROS, CONDITIONAL, DIGIT_INPUT = "zeros", "conditional", "digit as input"
KINDS = {
    **initial_states.KINDS,
    CONDITIONAL: "learned for each digit: Conditional(Embedding(10, units))",
    DIGIT_INPUT: "zeros, and the digit as an input at every row",
}

CLASSES = 10
SIDE = 8  # rows of an image, and pixels of a row
LEVELS = 17  # of grey, from 0 for white to 16 for black
FEATURES = 48  # for each pixel, computed from the LSTM and the pixels to the left
BATCH_SIZE = 64
LEARNING_RATE = 0.03
# A temperature below 1 makes likely levels likelier, which draws cleaner lines.
TEMPERATURE = 0.5


def split(seed):
    """Returns `(images, classes)` to train on, and `(images, classes)` for the test.

    Each seed has its own split, with a fifth of each class for the test.
    """
    digits = load_digits()
    images, classes = digits.images.astype("int32"), digits.target.astype("int32")
    train_images, test_images, train_classes, test_classes = train_test_split(
        images, classes, test_size=0.2, random_state=seed, stratify=classes
    )
    return (train_images, train_classes), (test_images, test_classes)


def initial_state(kind, units, seed):
    """Returns the argument `initial_state` of the LSTM for one of `KINDS`."""
    if kind == CONDITIONAL:
        return Conditional(keras.layers.Embedding(CLASSES, units, "zeros"))
    return initial_states.initial_state(kind, seed)


class Writer(keras.Model):
    """The logits of each pixel, given the rows above and the pixels to its left.

    The LSTM reads the rows above. A pixel is then one of `LEVELS`, with probabilities
    that depend on the LSTM's output and on the pixels to the left in the same row.
    Without these pixels, a stroke that has several likely places becomes grey noise.

    Args:
        kind: One of `KINDS`.
        units: The units of the LSTM.
        seed: The seed of sampled initial states.
    """

    def __init__(self, kind, units, seed=0):
        super().__init__()
        self.kind = kind
        self.lstm = InitStateLSTM(
            units,
            initial_state=initial_state(kind, units, seed),
            return_sequences=True,
        )
        self.from_above = keras.layers.Dense(SIDE * FEATURES)
        self.from_left = keras.layers.Conv1D(FEATURES, SIDE - 1, padding="causal")
        self.logits = keras.layers.Dense(LEVELS)

    def call(self, inputs, states=None, training=None):
        """Returns logits `(batch, row, column, level)`.

        Args:
            inputs: Images `(batch, row, column)` and classes `(batch,)`, integers.
            states: Initial states `[h, c]`, each `(batch, units)`, which replace the
                states that the LSTM owns.
            training: Python boolean. Sampled states are drawn in training only.
        """
        images, classes = inputs
        images = ops.cast(images, "float32") / (LEVELS - 1)
        above = ops.pad(images, [(0, 0), (1, 0), (0, 0)])[:, :-1]
        left = ops.pad(images, [(0, 0), (0, 0), (1, 0)])[:, :, :-1]
        # The other kinds read zeros instead of the class: the weights of all kinds then
        # have the same shapes and the same initial values.
        one_hot = ops.one_hot(classes, CLASSES) * (self.kind == DIGIT_INPUT)
        repeated = ops.repeat(one_hot[:, None], SIDE, axis=1)
        context = classes if self.kind == CONDITIONAL and states is None else None
        outputs = self.lstm(
            ops.concatenate([above, repeated], axis=-1),
            initial_state=states,
            context=context,
            training=training,
        )
        features = ops.reshape(self.from_above(outputs), (-1, SIDE, SIDE, FEATURES))
        to_the_left = self.from_left(ops.reshape(left, (-1, SIDE, 1)))
        features += ops.reshape(to_the_left, (-1, SIDE, SIDE, FEATURES))
        return self.logits(ops.relu(features))


def train(kind, seed, images, classes, units, epochs):
    """Returns a trained `Writer`.

    The losses are paired: for the same seed, all kinds have the same initial weights
    and the same order of the batches.
    """
    keras.utils.set_random_seed(seed)
    writer = Writer(kind, units, seed)
    steps = epochs * -(-len(images) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    writer.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    writer.fit(
        [images, classes], images, batch_size=BATCH_SIZE, epochs=epochs, verbose=0
    )
    return writer


def loss_by_row(writer, images, classes):
    """Returns the loss of each row in nats per image, the mean over the images."""
    losses = keras.losses.sparse_categorical_crossentropy(
        images, writer([images, classes]), from_logits=True
    )
    return np.asarray(ops.convert_to_numpy(losses), "float64").sum(axis=2).mean(axis=0)


def class_states(writer):
    """Returns the initial states `[h, c]` of the ten classes, each `(10, units)`."""
    states = writer.lstm.get_initial_state(CLASSES, context=np.arange(CLASSES))
    return [ops.convert_to_numpy(state) for state in states]


def walk(states, first, last, count=CLASSES):
    """Returns states on the straight line from the states of one class to another's."""
    share = np.linspace(0, 1, count, dtype="float32")[:, None]
    return [(1 - share) * state[first] + share * state[last] for state in states]


def draw(writer, states, chances):
    """Returns images `(batch, row, column)`, drawn pixel by pixel.

    Args:
        writer: A trained `Writer`.
        states: Initial states `[h, c]`, each `(batch, units)`.
        chances: Random numbers in [0, 1), one for each pixel. A pixel gets the first
            level whose cumulative probability exceeds its number: equal states give
            equal images, and similar states similar images.
    """
    images = np.zeros(chances.shape, "int32")
    classes = np.zeros(len(images), "int32")
    for row, column in np.ndindex(SIDE, SIDE):
        logits = writer([images, classes], states=states)[:, row, column]
        odds = ops.convert_to_numpy(ops.softmax(logits / TEMPERATURE))
        below = odds.cumsum(axis=1) <= chances[:, row, column, None]
        # Leave out the last level, whose cumulative probability is 1 but for rounding.
        images[:, row, column] = below[:, :-1].sum(axis=1)
    return images
