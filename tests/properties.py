"""What the properties are drawn from, and the references they are checked against."""

from models import state_size
from oracles import (
    assert_same,
    flat,
    numpy_lstm,
    owned_values,
    tiled_states,
    value_of,
)
from strategies import (
    ALL_KINDS,
    DTYPES,
    LAYERS,
    Case,
    arrays,
    cases,
    entries,
    for_each_layer,
    initial_states,
)

__all__ = [
    "ALL_KINDS",
    "DTYPES",
    "LAYERS",
    "Case",
    "arrays",
    "assert_same",
    "cases",
    "entries",
    "flat",
    "for_each_layer",
    "initial_states",
    "numpy_lstm",
    "owned_values",
    "state_size",
    "tiled_states",
    "value_of",
]
