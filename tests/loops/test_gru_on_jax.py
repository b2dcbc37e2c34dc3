"""Which of Keras's two loops runs a GRU on JAX."""

import pytest

from backends import BACKEND
from keras_init_lstm import InitStateGRU
from models import UNITS, X
from oracles import TOLERANCES, assert_same, reference_of

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="a choice for JAX")


def products(jaxpr, is_in_loop=False):
    """The number of matrix products in one timestep of a traced function."""
    count = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        count += is_in_loop and name == "dot_general"
        count += sum(
            products(each, is_in_loop or name == "scan")
            for each in inner
            if hasattr(each, "eqns")
        )
    return count


@pytest.mark.parametrize("use_fused", ["auto", False])
@pytest.mark.parametrize("training", [False, True])
def test_the_cell_is_called_at_inference(use_fused, training):
    layer = InitStateGRU(UNITS, initial_state=0.5, use_fused=use_fused)
    layer.build(X.shape)
    calls_cell = use_fused == "auto" and not training
    traced = jax.make_jaxpr(lambda x: layer(x, training=training))(X)
    assert products(traced.jaxpr) == (2 if calls_cell else 1)
    states = layer.get_initial_state(len(X))
    want = reference_of(layer)(X, initial_state=states, training=training)
    got = layer(X, training=training)
    assert_same(got, want, tolerance=TOLERANCES["float32"] if calls_cell else 0)
