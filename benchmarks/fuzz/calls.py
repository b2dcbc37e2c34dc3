"""The ways to call a layer, and what a call returns, raises and logs."""

import logging
import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from oracles import to_numpy


def run(way, layer, x, kwargs):
    """Calls a layer in one of the ways of `draws.WAYS`."""
    if way == "eager":
        return layer(x, **kwargs)
    if way == "graph":
        return tf.function(lambda: layer(x, **kwargs))()
    if way == "compiled":
        return tf.function(lambda: layer(x, **kwargs), jit_compile=True)()
    given = {"sequences": x, **kwargs}
    if "context" in kwargs:
        given["context"] = np.asarray(kwargs["context"])
    arrays = [to_numpy(a) for a in keras.tree.flatten(given) if hasattr(a, "shape")]

    def call(*tensors):
        left = iter(tensors)
        of_leaf = lambda leaf: next(left) if hasattr(leaf, "shape") else leaf  # noqa: E731
        return layer(**keras.tree.map_structure(of_leaf, given))

    if way == "unknown shapes":
        shapes = [[None] * (a.ndim - 1) + [a.shape[-1]] for a in arrays]
        specs = [tf.TensorSpec(s, a.dtype) for s, a in zip(shapes, arrays, strict=True)]
        return tf.function(call, input_signature=specs)(*arrays)
    del given["training"]
    batch_size = len(x) if layer.stateful else None
    inputs = [keras.Input(a.shape[1:], batch_size, dtype=str(a.dtype)) for a in arrays]
    model = keras.Model(inputs, call(*inputs))
    model.compile(run_eagerly=way == "predict eagerly")
    return model.predict(arrays, batch_size=max(len(x), 1), verbose=0)


def attempt(function, *args):
    """Returns what the function returns, the error it raises, and its warnings."""
    value, error, log = None, None, logging.Handler(logging.WARNING)
    log.emit = lambda record: texts.append(record.getMessage())
    texts = []
    logger = tf.get_logger()
    handlers, logger.handlers = logger.handlers, [log]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = function(*args)
        except Exception as raised:
            error = raised
    logger.handlers = handlers
    texts += [f"{each.category.__name__}: {each.message}" for each in caught]
    # The fuzzer traces functions again and again; Keras drops arrays where it raises,
    # and its variables warn when NumPy 2 converts them.
    ignored = r"retracing(?!.*_(for|back)ward)|never used.*keras/src|accept a copy"
    ignored = re.compile(ignored, re.S)
    return value, error, {t for t in texts if not ignored.search(t)}
