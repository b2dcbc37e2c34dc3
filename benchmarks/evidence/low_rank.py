"""Low-rank adapters of the kernels of an LSTM. Keras has them for other layers."""

import keras


class LowRank(keras.layers.Layer):
    """A frozen model that learns a change of low rank of each kernel of its LSTM.

    A kernel `(inputs, 4 * units)` becomes `kernel + a @ b`, with `a` of shape
    `(inputs, rank)` and `b` of shape `(rank, 4 * units)`, for the inputs and for the
    recurrent inputs alike. `b` is zero at first, and `a` is drawn, as by
    `keras.layers.Dense.enable_lora()`.

    Args:
        model: The model, whose weights are frozen.
        lstm: The layer of the model that is adapted.
        rank: The rank of the change.

    Reference:
        [Hu and others, 2021](https://arxiv.org/abs/2106.09685)
    """

    def __init__(self, model, lstm, rank):
        super().__init__()
        model.trainable = False
        self.model = model
        self._kernels = [lstm.cell.kernel, lstm.cell.recurrent_kernel]
        self._factors = [
            (
                self.add_weight(shape=(kernel.shape[0], rank), name="a"),
                self.add_weight(shape=(rank, kernel.shape[1]), name="b"),
            )
            for kernel in self._kernels
        ]
        self.built = True

    def restart(self, seed):
        """Sets the change of each kernel back to zero."""
        for number, (a, b) in enumerate(self._factors):
            draw = keras.initializers.HeUniform(seed=2 * seed + number)
            a.assign(draw(a.shape))
            b.assign(keras.ops.zeros(b.shape))

    def call(self, inputs, training=False):
        adapted = [
            (kernel, kernel + keras.ops.matmul(a, b))
            for kernel, (a, b) in zip(self._kernels, self._factors, strict=True)
        ]
        with keras.StatelessScope(state_mapping=adapted):
            return self.model(inputs, training=training)
