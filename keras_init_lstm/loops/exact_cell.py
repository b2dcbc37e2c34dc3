"""Checks whether a cell computes exactly what the cell of Keras computes."""

from typing import Any, Literal, NamedTuple

import keras

from keras_init_lstm._keras import has_replaced_methods


class Cell(NamedTuple):
    """A cell of Keras that fused loops support."""

    name: Literal["lstm", "gru", "simple_rnn"]
    keras_cell: Any
    gates: int


# The cells by their Keras layers.
CELLS: dict[type, Cell] = {
    keras.layers.LSTM: Cell("lstm", keras.layers.LSTMCell, 4),
    keras.layers.GRU: Cell("gru", keras.layers.GRUCell, 3),
    keras.layers.SimpleRNN: Cell("simple_rnn", keras.layers.SimpleRNNCell, 1),
}
# The original `call()` of each cell: a user may replace it in the class.
_CALLS = {cell.keras_cell: cell.keras_cell.call for cell in CELLS.values()}


def why_not_exact(layer: Any) -> str | None:
    """Returns why a loop that does not call the cell would compute something else.

    A user may replace the cell, its methods or its weights, or change its attributes,
    at any time.

    Args:
        layer: An `InitStateLSTM`, `InitStateGRU` or `InitStateSimpleRNN`, built.

    Returns:
        The reason, or `None` if the loop computes the same.
    """
    _, cell_class, gates = CELLS[layer.keras_layer]
    cell = layer.cell
    if (
        type(cell) is not cell_class
        or has_replaced_methods(cell)
        or cell_class.call is not _CALLS[cell_class]
    ):
        return f"a cell that is not exactly a `keras.layers.{cell_class.__name__}`"
    if not cell.built:
        return "a cell that is not built"
    if cell.activity_regularizer is not None:
        return "an activity regularizer of the cell"
    if getattr(cell, "quantization_mode", None) is not None:
        return "a quantized cell"
    if cell.compute_dtype != layer.compute_dtype:
        return f"a cell of dtype {cell.compute_dtype} in a layer of another"
    names = ["kernel", "recurrent_kernel", *["bias"] * cell.use_bias]
    weights = [getattr(cell, name) for name in names]
    variables = set(map(id, cell.weights))
    if (cell.bias is not None) != bool(cell.use_bias) or not variables.issuperset(
        map(id, weights)
    ):
        return "weights of the cell that are not its variables"
    width = gates * cell.units
    bias = (2, width) if getattr(cell, "reset_after", False) else (width,)
    kernel, *others = [tuple(weight.shape) for weight in weights]
    expected = [(cell.units, width), bias]
    if kernel[1:] != (width,) or others != expected[: len(others)]:
        return f"weights of the cell that do not fit its units={cell.units}"
    return None
