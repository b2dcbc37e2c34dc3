"""The ways to call a layer, and the result, error and warnings of a call."""

import logging
import re
import warnings

import keras
import numpy as np

from backends import tf
from oracles import to_numpy

# What a layer may raise. TensorFlow raises its own errors at run time.
ERRORS = (ValueError, TypeError, *([tf.errors.OpError] if tf else []))


def run(way, layer, x, kwargs):
    """Calls a layer in one of the ways of `draws.WAYS`."""
    if way == "eager" or (tf is None and "predict" not in way):
        return layer(x, **kwargs)
    if way == "graph":
        return tf.function(lambda: layer(x, **kwargs))()
    if way == "compiled":
        return tf.function(lambda: layer(x, **kwargs), jit_compile=True)()
    given = {"sequences": x, **kwargs}
    if "context" in kwargs:
        given["context"] = np.asarray(kwargs["context"])
    if "predict" in way:
        del given["training"]
    leaves = keras.tree.flatten(given)
    arrays = [to_numpy(leaf) for leaf in leaves if hasattr(leaf, "shape")]

    def call(*tensors):
        left = iter(tensors)
        new = [next(left) if hasattr(leaf, "shape") else leaf for leaf in leaves]
        return layer(**keras.tree.pack_sequence_as(given, new))

    if way == "unknown shapes":
        shapes = [[None] * (a.ndim - 1) + [a.shape[-1]] for a in arrays]
        specs = [tf.TensorSpec(s, a.dtype) for s, a in zip(shapes, arrays, strict=True)]
        return tf.function(call, input_signature=specs)(*arrays)
    batch_size = len(x) if layer.stateful else None
    inputs = [keras.Input(a.shape[1:], batch_size, dtype=str(a.dtype)) for a in arrays]
    model = keras.Model(inputs, call(*inputs))
    model.compile(run_eagerly=way == "predict eagerly")
    return model.predict(arrays, batch_size=max(len(x), 1), verbose=0)


def attempt(function, *args):
    """Returns the result of a function, the error that it raises, and its warnings."""
    value, error, log = None, None, logging.Handler(logging.WARNING)
    log.emit = lambda record: texts.append(record.getMessage())
    texts = []
    logger = logging.getLogger("tensorflow")
    handlers, logger.handlers = logger.handlers, [log]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*args)
        except Exception as raised:
            error = raised
    logger.handlers = handlers
    texts += [f"{w.category.__name__}: {w.message}" for w in caught]
    # Ignore warnings about many traces of functions, about arrays that Keras drops when
    # it raises, about Keras's variables that NumPy 2 converts, and about a single
    # prediction of a single row, which Keras logs as a number.
    ignored = r"retracing(?!.*_(for|back)ward)|never used.*keras/src|accept a copy"
    ignored += r"|array with ndim > 0 to a scalar"
    ignored = re.compile(ignored, re.S)
    return value, error, {t for t in texts if not ignored.search(t)}
