"""Calls of layers on JAX, which has no native recurrent layer."""

import re

import jax
import jax.numpy as jnp

from benchmarks.speed.timing import Run

NATIVE = None
# The loops and the calls of libraries in a compiled program.
_KERNEL = re.compile(r'custom_call_target="([^"]+)"| (while)\(')


def device():
    """Returns "GPU" or "CPU"."""
    return "GPU" if jax.default_backend() == "gpu" else "CPU"


def make_run(layer, action, x, **masks):
    """Returns the run of a compiled call of a built layer."""
    x, masks = jnp.asarray(x), {name: jnp.asarray(masks[name]) for name in masks}
    fixed = [v.value for v in layer.non_trainable_variables]
    trained = [v.value for v in layer.trainable_variables]

    def infer(trained, fixed, x, masks):
        return layer.stateless_call(trained, fixed, x, **masks)[0]

    def loss(trained, fixed, x, masks):
        outputs, _ = layer.stateless_call(trained, fixed, x, training=True, **masks)
        return jnp.sum(jnp.square(outputs))

    function = infer if action == "inference" else jax.value_and_grad(loss)
    compiled = jax.jit(function).lower(trained, fixed, x, masks).compile()

    def run():
        return jax.block_until_ready(compiled(trained, fixed, x, masks))

    return Run(run, graph=compiled.as_text)


def native_run(shape, mode, x, y):
    """Returns `None`."""


def kernels(run):
    """Returns the calls of libraries and the loops of the compiled program."""
    return sorted({a or b for a, b in _KERNEL.findall(run.graph())})
