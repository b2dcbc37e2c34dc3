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
    set_trainable_flag,
    trace,
)


def copy_layer(
    layer: keras.layers.Layer, make: Callable[..., Any] | None = None
) -> keras.layers.Layer:
    """Returns a copy of a layer, with its arguments, weights and carried states.

    Unlike `copy.deepcopy()`, it copies layers of classes that are not registered with
    Keras. A layer that is shared inside `layer` is shared inside the copy.

    Args:
        layer: Any layer or model of Keras 3, built or not.
        make: Function that replaces a layer. It is called with each layer of `layer`,
            and with the function that copies an inner layer. Defaults to
            `copy_with_inner`, which copies the layer.

    Returns:
        A layer of the same class and name. Frozen weights stay frozen. If `layer` is a
        compiled model, the copy is compiled with the same arguments and a new
        optimizer.

    Raises:
        ValueError: If a layer can't be created from its `get_config()`.

    Example:
    >>> from keras_init_lstm._copies import copy_layer
    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> copied = copy_layer(dense)
    >>> copied is dense, bool((copied.kernel.numpy() == dense.kernel.numpy()).all())
    (False, True)
    """
    copies: dict[int, Any] = {}

    def copy_inner(inner: Any) -> Any:
        if id(inner) not in copies:
            copies[id(inner)] = copied = (make or copy_with_inner)(inner, copy_inner)
            # A user may have set `supports_masking`, which no configuration holds.
            if isinstance(inner, keras.layers.Layer):
                copied.supports_masking = inner.supports_masking
        return copies[id(inner)]

    return copy_inner(layer)


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer] | None:
    """Returns the layers of a model or wrapper that are copied one by one."""
    if isinstance(layer, (keras.Function, keras.Sequential)):
        return layer.layers
    if isinstance(layer, keras.layers.Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    if isinstance(layer, keras.layers.TimeDistributed):
        return [layer.layer]
    return None


def inputs_and_outputs(model: keras.Model) -> tuple[Any, Any]:
    """Returns the inputs and outputs of a Sequential or Functional model, nested."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def copy_with_inner(
    layer: Any,
    copy_inner: Callable[[Any], Any],
    make_input: Callable[[Any], Any] | None = None,
) -> Any:
    """Copies one layer, and the layers inside it with a function.

    Args:
        layer: Any layer or model, or an operation, which is returned as it is.
        copy_inner: Function that copies a layer inside `layer`.
        make_input: Function that takes an input of a Functional or Sequential model,
            and returns the input of the copy. Defaults to `None`, inputs of the same
            shapes.

    Raises:
        ValueError: If the layer can't be created from its `get_config()`.
    """
    if not isinstance(layer, keras.layers.Layer):
        return layer  # An operation of `keras.ops`, which has no state.
    copied = _copy_around(layer, copy_inner, make_input)
    if copied is not None:
        return copied
    try:
        with _custom_objects_of(*layers_within(layer)):
            if type(layer) is keras.layers.Lambda:
                shape = output_shape_of(layer)
                arguments = {**arguments_of(layer), "output_shape": shape}
                copied = type(layer)(**arguments)
            else:
                copied = type(layer).from_config(arguments_of(layer))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) can't be "
            "created from its `get_config()`, which must return every argument of its "
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
    """Returns a copy of a model or wrapper; `None` for any other layer."""
    if isinstance(layer, keras.layers.Bidirectional):
        inner = [copy_inner(layer.forward_layer), copy_inner(layer.backward_layer)]
        config = {**layer.get_config(), "layer": inner[0], "backward_layer": inner[1]}
        with _custom_objects_of(*layers_within(inner[0])):
            copied = type(layer)(**config)
        # Keras creates another forward layer from the configuration of this one.
        if inner[0].built:
            copied.forward_layer.build_from_config(inner[0].get_build_config())
        hand_over(inner[0], copied.forward_layer)
        # The constructor of `Bidirectional` sets another value; restore it.
        for source, target in (
            (layer.forward_layer, copied.forward_layer),
            (layer.backward_layer, copied.backward_layer),
        ):
            target.zero_output_for_mask = source.zero_output_for_mask
        copied.built = layer.built and inner[0].built
    elif isinstance(layer, keras.layers.TimeDistributed):
        copied = type(layer)(**{**layer.get_config(), "layer": copy_inner(layer.layer)})
        copied.built = layer.built and copied.layer.built
    elif type(layer) is keras.layers.StackedRNNCells:
        cells = [copy_inner(cell) for cell in layer.cells]
        copied = type(layer)(**{**layer.get_config(), "cells": cells})
        copied.built = layer.built
    elif inner_layers(layer):
        copied = _clone(layer, copy_inner, make_input)
        if type(copied) is not type(layer):  # The class has a custom constructor.
            return None
        copied.dtype_policy = layer.dtype_policy
        if layer.compiled:
            _compile_like(layer, copied)
    else:
        return None
    set_trainable_flag(copied, layer.trainable)
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
            # Each model creates its own metric from a name or a function.
            lambda m: _from_config(m) if isinstance(m, keras.metrics.Metric) else m,
            arguments[key],
        )
    # Keras wraps the given optimizer to scale the loss.
    auto_scale_loss = source.optimizer is not given
    target.compile(**arguments, auto_scale_loss=auto_scale_loss)


def _from_config(original: Any) -> Any:
    with _custom_objects_of(original):
        return type(original).from_config(original.get_config())


def builds_itself(layer: keras.layers.Layer) -> bool:
    """Whether the class of a layer overrides the empty `build()` of Keras."""
    defaults = (keras.layers.Layer.build, keras.Model.build)
    return type(layer).build not in defaults


def build_inside(
    layer: keras.layers.Layer,
    call: Callable[[Any], Any],
    given: Any = None,
    at_once: bool = False,
) -> None:
    """Builds the layers inside a layer that its `build()` does not build.

    It calls the layer with symbolic tensors, as Keras does in a Functional model.

    Args:
        layer: Any layer.
        call: Function that calls the layer.
        given: The argument of the function: `KerasTensor`s, in any structure.
        at_once: Whether to raise an error of the call. If not, layers that can only be
            built by an eager call are left to the next call. Defaults to `False`.
    """
    if any(builds_itself(x) and not x.built for x in layers_within(layer)):
        with contextlib.suppress(*[] if at_once else [Exception]):
            trace(call, given)


def build_from_config(layer: keras.layers.Layer, config: Any) -> None:
    """Builds a layer, and the layers inside it, from its `get_build_config()`.

    If its shapes are not enough, the layers inside are left to the first call.
    """
    if config and builds_itself(layer):
        layer.build_from_config(config)
    # A Functional model has no input shape here: its constructor builds its layers.
    if config and config.get("input_shape"):
        build_inside(layer, layer, specs_of_shapes(config["input_shape"]))


def _build_like(layer: keras.layers.Layer, copied: keras.layers.Layer) -> None:
    """Builds a copy, and the layers inside it that its `build()` does not build."""
    if not layer.built:
        return
    if not copied.built and builds_itself(layer):
        copied.build_from_config(layer.get_build_config())
    with keras.name_scope(copied.name):
        inside = [layers_within(x, False, False) for x in (layer, copied)]
        for inner, copied_inner in zip(*inside, strict=False):
            _build_like(inner, copied_inner)
    copied.built = True


def specs_of_shapes(shapes: Any) -> Any:
    """Returns a `KerasTensor` for each shape, in the structure of the shapes."""
    return keras.tree.map_shape_structure(keras.KerasTensor, shapes)


def arguments_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the arguments of a layer: its configuration, with custom functions."""
    config = {**left_out_of_config(layer), **layer.get_config()}
    if _is_ours_or_keras(type(layer)):
        for key in config:
            value = getattr(layer, key, None)
            named = value if isinstance(value, types.FunctionType) else type(value)
            # Keep the configuration of an object of Keras: an initializer must be
            # created again, because one object draws the same values again.
            if callable(value) and not _is_ours_or_keras(named):
                config[key] = value
    return config


def left_out_of_config(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the arguments of an LSTM or GRU that Keras's `get_config()` omits."""
    if not isinstance(layer, (keras.layers.LSTM, keras.layers.GRU)):
        return {}
    return {
        "implementation": layer.cell.implementation,
        "use_cudnn": layer.use_cudnn,
    }


def _is_ours_or_keras(named: Any) -> bool:
    return named.__module__.split(".")[0] in ("keras", "keras_init_lstm")


def _custom_objects_of(*objects: Any) -> Any:
    """Returns a scope in which Keras finds the classes and functions of objects."""
    names = {}
    for original in objects:
        for value in (original, *vars(original).values()):
            named = value if isinstance(value, types.FunctionType) else type(value)
            if named.__module__ != "builtins":
                names[named.__name__] = named
    return keras.saving.custom_object_scope(names)


def hand_over(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies variables, vocabularies, carried states and `trainable` to `target`.

    Raises:
        ValueError: If the two do not have the same layers and variables.
    """
    layers = [layers_within(x) for x in (source, target)]
    variables = [source.variables, target.variables]
    if any(len(old) != len(new) for old, new in (layers, variables)):
        raise ValueError(
            f"The layer {source.name} can't be copied: it holds {len(layers[0])} "
            f"layers and {len(variables[0])} variables, but a layer from its "
            f"`get_config()` holds {len(layers[1])} and {len(variables[1])}. Call the "
            "layer once before"
        )
    for old, new in zip(*layers, strict=True):
        if type(old) is not type(new):
            raise ValueError(
                f"The layer {source.name} can't be copied: it holds a "
                f"{type(old).__name__} where a layer from its `get_config()` holds a "
                f"{type(new).__name__}"
            )
    for old, new in zip(*layers, strict=True):
        new.trainable = old.trainable
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
    for old, new in zip(*variables, strict=True):
        # Copy through an array: on JAX the variables would share a buffer, which
        # training one of them deletes.
        new.assign(keras.ops.convert_to_numpy(old))
        new.trainable = old.trainable
    for old, new in zip(*layers, strict=True):
        if isinstance(new, keras.layers.Normalization):
            new.finalize_state()
        if isinstance(old, keras.layers.RNN) and old.stateful and old.states:
            _copy_carried_states(old.states, new)


def _copy_carried_states(states: Any, target: Any) -> None:
    if hasattr(target, "_continue_from"):
        target._continue_from(states)
        return
    pairs = zip(*map(keras.tree.flatten, (states, target.states)), strict=True)
    for old, new in pairs:
        new.assign(keras.ops.convert_to_numpy(old))
