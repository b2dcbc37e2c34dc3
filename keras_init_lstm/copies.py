"""A copy of any layer, with its weights."""

import tempfile

import keras


def copy_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a layer of its own with the arguments, weights and state of `layer`.

    Unlike `copy.deepcopy()`, it takes classes that are not registered with Keras.

    Args:
        layer: Any layer or model of Keras 3, built or not.

    Returns:
        A layer of the same class and name. What is frozen in `layer` is so in it too.

    Raises:
        ValueError: If the layer cannot be made anew from its `get_config()`.

    Example:
    >>> from keras_init_lstm.copies import copy_layer
    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> copied = copy_layer(dense)
    >>> copied is dense, bool((copied.kernel.numpy() == dense.kernel.numpy()).all())
    (False, True)
    """
    if not isinstance(layer, keras.layers.Layer):
        # An operation of a Functional model, such as a sum: it owns nothing.
        return type(layer).from_config(layer.get_config())
    try:
        if isinstance(layer, (keras.Function, keras.Sequential)) and layer.built:
            copied = keras.models.clone_model(layer, clone_function=copy_layer)
        else:
            copied = type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"The layer {layer.name} (of class {type(layer).__name__}) cannot be made "
            "anew from its `get_config()`, which must return every argument of its "
            f"constructor: {error}"
        ) from error
    if layer.built and not copied.built:
        copied.build_from_config(layer.get_build_config())
    hand_over(layer, copied)
    return copied


def hand_over(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Gives `target` the variables and vocabularies of `source`, and what is frozen."""
    # Keras has no public way to reach the layers inside any layer.
    pairs = zip(source._flatten_layers(), target._flatten_layers(), strict=True)
    for ours, theirs in pairs:
        theirs.trainable = ours.trainable
        if hasattr(ours, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                ours.save_assets(folder)
                theirs.load_assets(folder)
    for ours, theirs in zip(source.variables, target.variables, strict=True):
        theirs.assign(ours)
