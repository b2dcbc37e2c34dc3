"""How often TensorFlow traces a call, and whether its graph runs cuDNN."""

import time

import tensorflow as tf


def cudnn_ops(concrete_function):
    """Returns the cuDNN ops in a graph and in every function that it reaches."""
    graph = concrete_function.graph.as_graph_def()
    library = {f.signature.name: f.node_def for f in graph.library.function}
    found, seen, pending = set(), set(), [graph.node]
    while pending:
        for node in pending.pop():
            found |= {node.op} if "cudnn" in node.op.lower() else set()
            called = {node.op}
            for attribute in node.attr.values():
                called |= {attribute.func.name, *(f.name for f in attribute.list.func)}
            pending += [library[name] for name in (called & library.keys()) - seen]
            seen |= called
    return sorted(found)


def count_traces(call, shapes, **options):
    """Returns how often `tf.function(call, **options)` traces, and the seconds."""
    traces = 0

    @tf.function(**options)
    def function(x):
        nonlocal traces
        traces += 1
        return call(x)

    start = time.perf_counter()
    for shape in shapes:
        function(tf.zeros(shape))
    return traces, time.perf_counter() - start
