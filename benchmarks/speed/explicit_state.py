"""A custom layer that learns an initial state of Keras's LSTM, as users write it."""

import keras
from keras import ops


class ExplicitState(keras.layers.Layer):
    """An LSTM whose initial states are two weights, tiled to the batch.

    Args:
        units: The units of the LSTM.
        h0: Initializer of the first weight.
        c0: Initializer of the second weight.
        fixed: The states that are not learned: "h0", "c0" or both.
        **lstm_arguments: Other arguments of the LSTM.
    """

    def __init__(self, units, h0="zeros", c0="zeros", fixed=(), **lstm_arguments):
        super().__init__()
        self.lstm = keras.layers.LSTM(units, **lstm_arguments)
        self.initializers, self.fixed = {"h0": h0, "c0": c0}, fixed
        # From Keras 3.16 on, its LSTM does not hand its mask on.
        self.supports_masking = self.lstm.supports_masking

    def build(self, shape):
        self.lstm.build(shape)
        self.h0, self.c0 = (
            self.add_weight(
                shape=(self.lstm.units,),
                initializer=initializer,
                trainable=name not in self.fixed,
                name=name,
            )
            for name, initializer in self.initializers.items()
        )

    def call(self, x, mask=None, training=False):
        shape = (ops.shape(x)[0], self.lstm.units)
        states = [ops.broadcast_to(state, shape) for state in (self.h0, self.c0)]
        return self.lstm(x, initial_state=states, mask=mask, training=training)

    def compute_output_shape(self, shape):
        return self.lstm.compute_output_shape(shape)

    def compute_mask(self, x, mask=None):
        return self.lstm.compute_mask(x, mask)
