"""Copies of any layer or model, with its weights."""

import contextlib
import tempfile
import types
from collections.abc import Callable
from typing import Any

import keras

from keras_init_lstm._keras import (
    clone_uncompiled,
    compile_arguments,
    layers_within,
    output_shape_of,
    set_trainable_of_itself,
    trace,
)


def copy_layer(
    layer: keras.layers.Layer, make: Callable[..., Any] | None = None
) -> keras.layers.Layer:
    """Returns a layer of its own with the arguments, weights and state of `layer`.

    Unlike `copy.deepcopy()`, it takes classes that are not registered with Keras.
    What is shared within `layer` is shared within the copy.

    Args:
        layer: Any layer or model of Keras 3, built or not.
        make: Function that is called with each layer of `layer`, and the function
            that copies what is inside of it, and returns the layer to stand in its
            place. Defaults to `make_anew`.

    Returns:
        A layer of the same class and name. What is frozen in `layer` is so in it too.
        A compiled model is compiled likewise, with an optimizer that starts anew.

    Raises:
        ValueError: If the layer cannot be made anew from its `get_config()`.

    Example:
    >>> from keras_init_lstm._copies import copy_layer
    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> copied = copy_layer(dense)
    >>> copied is dense, bool((copied.kernel.numpy() == dense.kernel.numpy()).all())
    (False, True)
    """
    made: dict[int, Any] = {}

    def copy_inner(inner: Any) -> Any:
        if id(inner) not in made:
            made[id(inner)] = copied = (make or make_anew)(inner, copy_inner)
            # Whether a mask is handed on may have been set, and is in no configuration.
            if isinstance(inner, keras.layers.Layer):
                copied.supports_masking = inner.supports_masking
        return made[id(inner)]

    return copy_inner(layer)


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer] | None:
    """The layers of a model or wrapper that `make_anew` copies one by one."""
    if isinstance(layer, (keras.Function, keras.Sequential)):
        return layer.layers
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    if isinstance(layer, keras.layers.TimeDistributed):
        return [layer.layer]
    return None


def inputs_and_outputs(model: keras.Model) -> tuple[Any, Any]:
    """Those of a Sequential or Functional model, nested as it is called."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def make_anew(
    layer: Any,
    copy_inner: Callable[[Any], Any],
    make_input: Callable[[Any], Any] | None = None,
) -> Any:
    """Makes one layer anew.

    Args:
        layer: Any layer or model.
        copy_inner: Function that copies the layers inside of it.
        make_input: Function from an input of a Functional or Sequential model to that
            of the copy. Defaults to `None`, inputs of the same shapes.
    """
    if not isinstance(layer, keras.layers.Layer):
        return layer  # An operation of `keras.ops`, which has no state.
    copied = _copy_around(layer, copy_inner, make_input)
    if copied is not None:
        return copied
    try:
        with _names_of(*layers_within(layer)):
            if type(layer) is keras.layers.Lambda:
                shape = output_shape_of(layer)
                arguments = {**arguments_of(layer), "output_shape": shape}
                copied = type(layer)(**arguments)
            else:
                copied = type(layer).from_config(arguments_of(layer))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) cannot be made "
            "anew from its `get_config()`, which must return every argument of its "
            f"constructor: {error}"
        ) from error
    _build_like(layer, copied)
    hand_over(layer, copied)
    return copied


def _copy_around(
    layer: Any,
    copy_inner: Callable[[Any], Any],
    make_input: Callable[[Any], Any] | None,
) -> Any:
    """A copy of a model or wrapper around copies of its layers, or None."""
    if isinstance(layer, keras.layers.Bidirectional):
        inner = [copy_inner(layer.forward_layer), copy_inner(layer.backward_layer)]
        config = {**layer.get_config(), "layer": inner[0], "backward_layer": inner[1]}
        with _names_of(*layers_within(inner[0])):
            copied = type(layer)(**config)
        # Keras has made another forward layer, from the configuration of this one.
        if inner[0].built:
            copied.forward_layer.build_from_config(inner[0].get_build_config())
        hand_over(inner[0], copied.forward_layer)
        # The constructor of `Bidirectional` forces another value on them: restore it.
        for ours, theirs in (
            (layer.forward_layer, copied.forward_layer),
            (layer.backward_layer, copied.backward_layer),
        ):
            theirs.zero_output_for_mask = ours.zero_output_for_mask
        copied.built = layer.built and inner[0].built
    elif isinstance(layer, keras.layers.TimeDistributed):
        copied = type(layer)(**{**layer.get_config(), "layer": copy_inner(layer.layer)})
        copied.built = layer.built and copied.layer.built
    elif type(layer) is keras.layers.StackedRNNCells:
        cells = [copy_inner(cell) for cell in layer.cells]  # One may stand in it twice.
        copied = type(layer)(**{**layer.get_config(), "cells": cells})
        copied.built = layer.built
    elif inner_layers(layer):
        copied = _clone(layer, copy_inner, make_input)
        if type(copied) is not type(layer):  # It has a custom constructor.
            return None
        copied.dtype_policy = layer.dtype_policy
        if layer.compiled:
            _compile_like(layer, copied)
    else:
        return None
    set_trainable_of_itself(copied, layer.trainable)
    return copied


def _clone(
    model: keras.Model,
    copy_inner: Callable[[Any], Any],
    make_input: Callable[[Any], Any] | None,
) -> keras.Model:
    inputs = None
    if make_input is not None:
        given, _ = inputs_and_outputs(model)
        inputs = keras.tree.map_structure(make_input, given)
    return clone_uncompiled(model, inputs, copy_inner)


def _compile_like(source: keras.Model, target: keras.Model) -> None:
    if type(source).compile is not keras.Model.compile:
        target.compile_from_config(source.get_compile_config())
        return
    arguments = compile_arguments(source)
    given = arguments["optimizer"]
    if given is not None:
        arguments["optimizer"] = _from_config(given)
    for key in ("metrics", "weighted_metrics"):
        arguments[key] = keras.tree.map_structure(
            # From a name or a function, each model makes a metric of its own.
            lambda m: _from_config(m) if isinstance(m, keras.metrics.Metric) else m,
            arguments[key],
        )
    # To scale the loss, Keras puts an optimizer of its own around the given one.
    auto_scaled = source.optimizer is not given
    target.compile(**arguments, auto_scale_loss=auto_scaled)


def _from_config(original: Any) -> Any:
    with _names_of(original):
        return type(original).from_config(original.get_config())


def builds_itself(layer: keras.layers.Layer) -> bool:
    """Whether a layer has a `build()` of its own, and not the empty one of Keras."""
    defaults = (keras.layers.Layer.build, keras.Model.build)
    return type(layer).build not in defaults


def build_inside(
    layer: keras.layers.Layer,
    call: Callable[[Any], Any],
    given: Any = None,
    at_once: bool = False,
) -> None:
    """Builds the layers inside of one that leaves them to its first call.

    As Keras does in a Functional model, by a call with symbolic tensors.

    Args:
        layer: Any layer.
        call: Function that calls it.
        given: What the function is given: `KerasTensor`s, in any structure.
        at_once: Whether to raise what the call raises. If not, layers that only code
            builds which only runs eagerly are left to that. Defaults to `False`.
    """
    inside = layers_within(layer)
    if any(builds_itself(each) and not each.built for each in inside):
        with contextlib.suppress(*[] if at_once else [Exception]):
            trace(call, given)


def build_from_config(layer: keras.layers.Layer, config: Any) -> None:
    """Builds a layer, and the layers inside of it, from its `get_build_config()`.

    Where the shapes in it don't tell how it is called, it is left to its first call.
    """
    if config and builds_itself(layer):
        layer.build_from_config(config)
    if config and "input_shape" in config:
        build_inside(layer, layer, specs_of_shapes(config["input_shape"]))


def _build_like(layer: keras.layers.Layer, copied: keras.layers.Layer) -> None:
    """Builds a copy, and the layers inside of it that its own `build()` does not."""
    if not layer.built:
        return
    if not copied.built and builds_itself(layer):
        copied.build_from_config(layer.get_build_config())
    with keras.name_scope(copied.name):
        inside = [layers_within(each, False, False) for each in (layer, copied)]
        for inner, copied_inner in zip(*inside, strict=False):
            _build_like(inner, copied_inner)
    copied.built = True


def specs_of_shapes(shapes: Any) -> Any:
    """Returns symbolic tensors of these shapes, in their structure."""
    return keras.tree.map_shape_structure(keras.KerasTensor, shapes)


def arguments_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """The configuration of a layer, with the functions that no configuration keeps."""
    config = {**left_out_of_config(layer), **layer.get_config()}
    if _is_ours_or_keras(type(layer)):
        for key in config:
            value = getattr(layer, key, None)
            named = value if isinstance(value, types.FunctionType) else type(value)
            # Those of Keras are made anew: an initializer would draw the same again.
            if callable(value) and not _is_ours_or_keras(named):
                config[key] = value
    return config


def left_out_of_config(layer: keras.layers.Layer) -> dict[str, Any]:
    """The arguments of an LSTM or GRU that are not in Keras's `get_config()`."""
    if not isinstance(layer, (keras.layers.LSTM, keras.layers.GRU)):
        return {}
    return {
        "implementation": layer.cell.implementation,
        "use_cudnn": layer.use_cudnn,
    }


def _is_ours_or_keras(named: Any) -> bool:
    return named.__module__.split(".")[0] in ("keras", "keras_init_lstm")


def _names_of(*objects: Any) -> Any:
    """A scope in which Keras finds the classes and functions that are in use."""
    names = {}
    for original in objects:
        for value in (original, *vars(original).values()):
            named = value if isinstance(value, types.FunctionType) else type(value)
            if named.__module__ != "builtins":
                names[named.__name__] = named
    return keras.saving.custom_object_scope(names)


def hand_over(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Gives `target` what `source` holds: variables, vocabularies, streams; frozen too.

    Raises:
        ValueError: If the two are not made of the same layers and variables.
    """
    layers = [layers_within(each) for each in (source, target)]
    variables = [source.variables, target.variables]
    if any(len(ours) != len(theirs) for ours, theirs in (layers, variables)):
        raise ValueError(
            f"The layer {source.name} can't be copied: it holds {len(layers[0])} "
            f"layers and {len(variables[0])} variables, one made anew {len(layers[1])} "
            f"and {len(variables[1])}. Call it once before"
        )
    for each, copied in zip(*layers, strict=True):
        if type(each) is not type(copied):
            raise ValueError(
                f"The layer {source.name} can't be copied: it holds a "
                f"{type(each).__name__} where one made anew from its `get_config()` "
                f"has a {type(copied).__name__}"
            )
    for each, copied in zip(*layers, strict=True):
        copied.trainable = each.trainable
        if hasattr(each, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                each.save_assets(folder)
                copied.load_assets(folder)
    for each, copied in zip(*variables, strict=True):
        # By way of an array, or on JAX they would share a buffer, which training one
        # of them takes from the other.
        copied.assign(keras.ops.convert_to_numpy(each))
        copied.trainable = each.trainable
    for each, copied in zip(*layers, strict=True):
        if isinstance(copied, keras.layers.Normalization):
            copied.finalize_state()
        if isinstance(each, keras.layers.RNN) and each.stateful and each.states:
            _carry_on(each.states, copied)


def _carry_on(states: Any, target: Any) -> None:
    if hasattr(target, "_carry_on"):
        target._carry_on(states)
        return
    pairs = zip(*map(keras.tree.flatten, (states, target.states)), strict=True)
    for state, copied in pairs:
        copied.assign(keras.ops.convert_to_numpy(state))
