"""Models that carry their states from call to call."""

from keras_init_lstm.streams.encoder_decoder import as_encoder_and_decoder
from keras_init_lstm.streams.packing import pack, unpack
from keras_init_lstm.streams.stateful import as_stateful, as_stateless
from keras_init_lstm.streams.states import (
    ResetStates,
    get_states,
    reset_states,
    set_states,
)
from keras_init_lstm.streams.step_model import with_states_as_inputs
from keras_init_lstm.streams.store import StreamStore

__all__ = [
    "ResetStates",
    "StreamStore",
    "as_encoder_and_decoder",
    "as_stateful",
    "as_stateless",
    "get_states",
    "pack",
    "reset_states",
    "set_states",
    "unpack",
    "with_states_as_inputs",
]
