"""PyTorch: all that the package asks for is what PyTorch does by itself."""

from keras_init_lstm.backend.base import Backend

backend = Backend()
