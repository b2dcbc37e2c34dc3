"""How often TensorFlow traces a call, and by which ops its graph runs a sequence."""

import time

import tensorflow as tf

COMPILED = "XLA"
# What the name of an op has that runs a whole sequence.
_SEQUENCE_OPS = ("blocklstm", "cudnn", "while")


def sequence_ops(concrete_function):
    """Returns the ops that run whole sequences, and `COMPILED` where XLA compiles.

    They stand in the graph or in a function that it reaches. What XLA compiles is not
    looked into.
    """
    graph = concrete_function.graph.as_graph_def()
    library = {f.signature.name: f for f in graph.library.function}
    found, seen, pending = set(), set(), [graph.node]
    while pending:
        for node in pending.pop():
            if any(name in node.op.lower() for name in _SEQUENCE_OPS):
                found.add(node.op)
            called = {node.op}
            for attribute in node.attr.values():
                called |= {attribute.func.name, *(f.name for f in attribute.list.func)}
            for name in (called & library.keys()) - seen:
                seen.add(name)
                if library[name].attr["_XlaMustCompile"].b:
                    found.add(COMPILED)
                else:
                    pending.append(library[name].node_def)
    return sorted(found)


def cudnn_ops(concrete_function):
    """Returns the cuDNN ops in a graph and in every function that it reaches."""
    return [op for op in sequence_ops(concrete_function) if "cudnn" in op.lower()]


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
