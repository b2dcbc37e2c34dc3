"""Models with the layers: built, trained, saved and loaded."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
from hypothesis import given
from keras import layers

from backends import BACKEND, in_a_fresh_process, tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, Sampled, Trainable
from keras_init_lstm.streams import ResetStates, reset_states
from models import (
    ARCHITECTURES,
    BATCH,
    CONTEXT,
    DATA,
    FEATURES,
    INITIAL_STATES,
    KINDS,
    MODES,
    SHAPE,
    TIMESTEPS,
    UNITS,
    WITH_XLA,
    WRAPS,
    X,
    by_hand,
    conditional,
    functional,
    models_to_save,
    normal,
    ours,
    owning,
    sampled,
    trained,
    with_weights,
)
from oracles import assert_same, flat, reference_of, to_numpy
from strategies import LAYERS, at_most, cases


class TestTraining:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_in_every_architecture(self, architecture):
        got = trained(architecture(owning))
        assert_same(got, trained(architecture(by_hand)), tolerance=1e-5)

    @pytest.mark.parametrize("data", DATA)
    @pytest.mark.parametrize("mode", MODES, ids=str)
    def test_with_every_source_of_data_and_in_every_mode(self, data, mode):
        got = trained(functional(owning), data, **mode)
        assert_same(got, trained(functional(by_hand), data, **mode), tolerance=1e-5)

    @pytest.mark.tensorflow
    def test_in_a_custom_training_loop(self):
        model, reference = functional(owning), functional(by_hand)
        y = normal(BATCH, 1)
        losses = []
        for each in (model, reference):
            optimizer = keras.optimizers.SGD(0.1)
            optimizer.build(each.trainable_variables)

            @tf.function
            def step(each=each, optimizer=optimizer):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((each(X, training=True) - y) ** 2)
                gradients = tape.gradient(loss, each.trainable_variables)
                optimizer.apply(gradients, each.trainable_variables)
                return loss

            losses.append([float(step()) for _ in range(3)])
        np.testing.assert_allclose(*losses, rtol=1e-5)
        learned = model.layers[1].initial_state[1].value
        assert (learned.numpy() != -0.5).all()
        assert_same(learned, reference.layers[1].c0, tolerance=1e-6)

    @pytest.mark.parametrize("kind", INITIAL_STATES)
    @pytest.mark.parametrize("mode", [{}, WITH_XLA], ids=str)
    def test_every_kind_in_fit(self, kind, mode):
        model = functional(
            lambda units: InitStateLSTM(units, initial_state=INITIAL_STATES[kind])
        )
        before = flat(model.layers[1].weights)
        trained(model, **mode)
        after = flat(model.layers[1].weights)
        moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
        assert moved[:3] == [True] * 3
        assert set(moved[3:]) <= {kind == "trainable"}

    def test_a_learned_distribution_in_fit(self):
        entry = sampled(0.5, 1 / 64, learned=True, seed=1)
        model = functional(lambda units: InitStateLSTM(units, initial_state=entry))
        trained(model)
        for state in model.layers[1].initial_state:
            assert (to_numpy(state.mean) != 0.5).all()
            assert (to_numpy(state.stddev) != 1 / 64).all()

    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize("mode", MODES, ids=str)
    def test_an_encoder_in_fit(self, wrap, mode):
        model = conditional(WRAPS[wrap])
        before = flat(model.weights)
        model.compile(keras.optimizers.SGD(0.1), "mse", **mode)
        losses = model.fit(
            [X, CONTEXT], np.ones((BATCH, 1)), epochs=3, verbose=0
        ).history["loss"]
        assert losses[-1] < losses[0]
        for old, new in zip(before, flat(model.weights), strict=True):
            assert (old != new).any()
        want = to_numpy(model([X, CONTEXT]))
        assert_same(model.predict([X, CONTEXT], verbose=0), want, tolerance=1e-6)
        got = model.predict([X[:3], CONTEXT[:3]], batch_size=2, verbose=0)
        assert_same(got, want[:3], tolerance=1e-6)

    def test_a_stateful_model_in_fit(self):
        # The optimizer changes only the states: the loss of each epoch is then the
        # loss of a stream from the learned states.
        model = keras.Sequential(
            [
                keras.Input(SHAPE[1:], batch_size=BATCH),
                InitStateLSTM(UNITS, initial_state="trainable", stateful=True),
            ]
        )
        model.layers[0].cell.trainable = False
        model.compile(keras.optimizers.SGD(1.0), "mse")
        losses = model.fit(
            normal(2 * BATCH, TIMESTEPS, FEATURES),
            np.ones((2 * BATCH, UNITS)),
            batch_size=BATCH,
            shuffle=False,
            epochs=20,
            verbose=0,
            callbacks=[ResetStates()],
        ).history["loss"]
        assert losses[-1] < losses[0]
        assert (to_numpy(model.layers[0].initial_state[0].value) != 0).all()

    @pytest.mark.parametrize("stateful", [False, True])
    def test_a_resumed_run_equals_an_uninterrupted_run(self, tmp_path, stateful):
        x, y = normal(2 * BATCH, TIMESTEPS, FEATURES), normal(2 * BATCH, UNITS)

        class Interrupt(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 2:
                    raise KeyboardInterrupt

        def run(*callbacks):
            entry = sampled(learned=True, distribution="uniform")
            model = keras.Sequential(
                [
                    keras.Input(SHAPE[1:], batch_size=BATCH),
                    InitStateLSTM(UNITS, initial_state=entry, stateful=stateful),
                ]
            )
            model.compile("adam", "mse")
            if callbacks:
                model.load_weights(tmp_path / "start.weights.h5")
            else:
                model.save_weights(tmp_path / "start.weights.h5")
            model.fit(
                x,
                y,
                batch_size=BATCH,
                epochs=4,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, ResetStates()],
            )
            return model

        unbroken = run()
        backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        with pytest.raises(KeyboardInterrupt):
            run(*backup, Interrupt())
        resumed = run(*backup)
        assert_same(resumed.weights, unbroken.weights)


@pytest.mark.parametrize("kind", INITIAL_STATES)
def test_time_distributed(kind):
    layer = layers.TimeDistributed(
        InitStateLSTM(UNITS, initial_state=INITIAL_STATES[kind])
    )
    x = normal(BATCH, 3, TIMESTEPS, FEATURES)
    outputs = layer(x)
    slices = [layer.layer(x[:, i]) for i in range(3)]
    assert_same(outputs, np.stack(flat(slices), axis=1))
    assert layer(x, training=True).shape == (BATCH, 3, UNITS)


def by_tensorflow(model, new, given, folder):
    path = tf.train.Checkpoint(model).write(str(folder / "checkpoint"))
    other = new()
    other.set_weights([0 * weight for weight in other.get_weights()])
    tf.train.Checkpoint(other).read(path).assert_consumed()
    assert_same(other(given), model(given))  # Of a stream, the second call of both.


def by_torch(model, new, _given, _folder):
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {id(weight.value) for weight in model.weights} <= set(parameters)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(weight.value) for weight in model.trainable_weights}
    other, values = new(), model.state_dict()
    other.set_weights([0 * weight for weight in other.get_weights()])
    other.load_state_dict(values)
    assert_same(other.get_weights(), model.get_weights())


def by_jax(model, _new, given, _folder):
    import jax

    def loss(trainable, others):
        outputs, _ = model.stateless_call(trainable, others, given, training=True)
        return (outputs**2).sum()

    reset_states(model)
    values = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    found = jax.grad(loss)(*values)
    assert len(jax.tree.leaves(found)) == len(model.trainable_weights)
    assert all((gradient != 0).any() for gradient in found)


WALKS = {"tensorflow": by_tensorflow, "torch": by_torch, "jax": by_jax}


class TestOptimizers:
    """What the documents say of Keras's optimizers."""

    PATTERN = ".*/[hc]0/.*"

    @staticmethod
    def model():
        """A model with learned initial states that are not zero."""
        kinds = [Trainable("ones"), Sampled(0.5, 0.25, learned=True)]
        layer = InitStateLSTM(UNITS, initial_state=kinds)
        return keras.Sequential([keras.Input(X.shape[1:]), layer, layers.Dense(1)])

    @pytest.mark.skipif(
        not hasattr(keras.optimizers, "OptimizerMap"), reason="since Keras 3.15"
    )
    def test_initial_states_have_a_learning_rate_of_their_own(self):
        sgd = keras.optimizers.SGD
        by_path = keras.optimizers.OptimizerMap(sgd(0.125), {self.PATTERN: sgd(0.5)})
        moved = []
        for optimizer in (sgd(0.125), keras.optimizers.MultiOptimizer(by_path)):
            keras.utils.set_random_seed(1)
            model = self.model()
            before = flat(model.trainable_variables)
            model.compile(optimizer, "mse")
            model.fit(X, np.ones((BATCH, 1)), batch_size=BATCH, verbose=0)
            after = flat(model.trainable_variables)
            moved.append([new - old for new, old in zip(after, before, strict=True)])
        for variable, plain, mapped in zip(
            model.trainable_variables, *moved, strict=True
        ):
            factor = 4 if variable.name in ("value", "mean", "stddev") else 1
            assert plain.any()
            assert_same(mapped, factor * plain, 1e-5)

    @pytest.mark.parametrize("name", ["SGD", "AdamW"])
    def test_weight_decay_leaves_initial_states_out(self, name):
        variables = self.model().trainable_variables
        optimizer = getattr(keras.optimizers, name)(1.0, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(
            [v for v in variables if "/h0/" in v.path or "/c0/" in v.path]
        )
        before = flat(variables)
        optimizer.apply([keras.ops.zeros_like(v.value) for v in variables], variables)
        decayed = {
            variable.name
            for variable, old in zip(variables, before, strict=True)
            if (to_numpy(variable) != old).any()
        }
        # The bias of the `Dense` is zero.
        assert decayed == {"kernel", "recurrent_kernel", "bias"}
        kept = [v.path.split("/", 2)[2] for v in variables if v.name not in decayed]
        assert kept == ["h0/value", "c0/mean", "c0/stddev"]


class TestBurnIn:
    """The way of the documents: a burn-in before `stop_gradient`."""

    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    @pytest.mark.parametrize("use_fused", ["auto", False])
    def test_gradients_are_of_the_later_timesteps(self, cls, use_fused, given):
        burn_in = 2
        layer = cls(
            UNITS,
            initial_state="trainable",
            return_sequences=True,
            return_state=True,
            use_fused=use_fused,
        )
        count = len(layer.state_names)
        x = keras.Input(X.shape[1:])
        stored = [keras.Input((UNITS,)) for _ in range(count)]
        kwargs = {"initial_state": stored} if given else {}
        _, *states = layer(x[:, :burn_in], **kwargs)
        states = [keras.ops.stop_gradient(state) for state in states]
        outputs, *_ = layer(x[:, burn_in:], initial_state=states)
        model = keras.Model([x, *stored] if given else x, outputs)
        with_weights(layer.cell)
        layer.assign_initial_state([normal(UNITS, seed=k) for k in range(count)])

        states = list(normal(count, BATCH, UNITS)) if given else None
        data = [X, *states] if given else X
        whole, *_ = layer(X, initial_state=states)
        assert_same(model(data), to_numpy(whole)[:, burn_in:], 1e-6)

        # Keras's layer reads the later timesteps alone, from states that are constants.
        constants = flat(layer(X[:, :burn_in], initial_state=states))[1:]
        reference = reference_of(layer, return_sequences=True)
        rest = keras.Input((X.shape[1] - burn_in, FEATURES))
        inputs = [keras.Input((UNITS,)) for _ in range(count)]
        later = keras.Model([rest, *inputs], reference(rest, initial_state=inputs))
        before, owned = layer.cell.get_weights(), flat(layer.get_initial_state(1))
        target = np.ones((BATCH, X.shape[1] - burn_in, UNITS))
        for trained_model, given_data in (
            (model, data),
            (later, [X[:, burn_in:], *constants]),
        ):
            trained_model.compile(keras.optimizers.SGD(0.5), "mse")
            trained_model.fit(given_data, target, batch_size=BATCH, verbose=0)
        assert_same(layer.cell.get_weights(), reference.get_weights(), 1e-5)
        assert all(
            (new != old).any()
            for new, old in zip(layer.cell.get_weights(), before, strict=True)
        )
        assert_same(layer.get_initial_state(1), owned)


class TestFiles:
    @at_most(30)
    @given(cases(layers=LAYERS))
    def test_a_loaded_layer_is_the_same(self, tmp_path_factory, case):
        folder = tmp_path_factory.mktemp("saved")
        layer = case.layer()
        for weight in layer.weights:
            weight.assign(np.abs(np.random.normal(size=weight.shape)))
        model = keras.Sequential([keras.Input(case.inputs.shape[1:]), layer])
        model.save(folder / "model.keras")
        loaded = keras.models.load_model(folder / "model.keras")
        configs = [json.dumps(each.get_config()) for each in (loaded.layers[0], layer)]
        assert configs[0] == configs[1]
        clone = keras.models.clone_model(model)
        model.save_weights(folder / "model.weights.h5")
        clone.load_weights(folder / "model.weights.h5")
        want = layer(case.inputs, mask=case.mask)
        for each in (loaded, clone):
            for a, b in zip(layer.weights, each.layers[0].weights, strict=True):
                assert a.path.split("/")[-2:] == b.path.split("/")[-2:]
                assert to_numpy(a).tobytes() == to_numpy(b).tobytes()
            assert_same(each.layers[0](case.inputs, mask=case.mask), want)

    @pytest.mark.parametrize("wrap", WRAPS)
    def test_a_loaded_encoder_is_the_same(self, wrap, tmp_path):
        model = conditional(WRAPS[wrap])
        for weight in model.weights:
            weight.assign(np.random.normal(size=weight.shape))
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        clone = keras.models.clone_model(model)
        clone.load_weights(tmp_path / "model.weights.h5")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for each in (clone, loaded):
            assert_same(each([X, CONTEXT]), model([X, CONTEXT]))
            assert len(each.trainable_weights) == len(model.trainable_weights)
        configs = [json.dumps(m.layers[2].get_config()) for m in (loaded, model)]
        assert configs[0] == configs[1]

    def test_in_a_fresh_process_without_custom_objects(self, tmp_path):
        for name, (model, x) in models_to_save().items():
            folder = tmp_path / name
            folder.mkdir()
            inputs = x if isinstance(x, list) else [x]
            np.savez(folder / "inputs.npz", *inputs)
            for weight in model.weights:
                weight.assign(np.random.normal(size=weight.shape))
            model.save(folder / "model.keras")
            model.save_weights(folder / "model.weights.h5")
            (folder / "model.json").write_text(model.to_json())
            np.save(folder / "outputs.npy", to_numpy(model(x)).astype("float64"))
        script = """
import pathlib, sys
import keras, keras_init_lstm, numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    x = list(np.load(folder / "inputs.npz").values())
    want = np.load(folder / "outputs.npy")
    loaded = keras.models.load_model(folder / "model.keras")
    restored = keras.models.model_from_json((folder / "model.json").read_text())
    restored.load_weights(folder / "model.weights.h5")
    for model in (loaded, restored):
        got = keras.ops.convert_to_numpy(model(x if len(x) > 1 else x[0]))
        np.testing.assert_array_equal(got.astype("float64"), want)
    print(folder.name)
"""
        folders = sorted(tmp_path.iterdir())
        printed = in_a_fresh_process(script, *folders)
        assert printed.split() == [folder.name for folder in folders]

    @pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been")
    @pytest.mark.parametrize("kind", INITIAL_STATES)
    @pytest.mark.parametrize("built", [False, True])
    def test_copies(self, kind, built, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=INITIAL_STATES[kind])
        model = keras.Sequential([layer])
        if built:
            want = model(X)
        model.save(tmp_path / "model.keras")
        for each in (
            keras.models.load_model(tmp_path / "model.keras"),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            keras.Sequential([copy.deepcopy(layer)]),
        ):
            got = each(X)
            assert got.shape == (BATCH, UNITS)
            if built and each.layers[0].name == layer.name:
                each.set_weights(model.get_weights())
                assert_same(each(X), want)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stateful", [False, True])
    def test_other_tools_find_every_weight(self, kind, stateful, tmp_path):
        def new():
            keras.utils.clear_session()  # PyTorch needs the same paths.
            x = keras.Input(SHAPE[1:], BATCH)
            layer = ours("LSTM", kind, stateful=stateful)
            if not layer.takes_context:
                return with_weights(keras.Model(x, layer(x)))
            context = keras.Input(CONTEXT.shape[1:], BATCH)
            return with_weights(keras.Model([x, context], layer(x, context=context)))

        model = new()
        given = [X, CONTEXT] if kind.startswith("conditional") else X
        first, names = flat(model(given)), [weight.path for weight in model.weights]
        assert [name.split("/")[1] for name in names[3:]] == sorted(
            (name.split("/")[1] for name in names[3:]), reverse=True
        )
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        # No file holds the stream, as with Keras's layers.
        for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), clone):
            assert [weight.path for weight in each.weights] == names
            assert_same(each.get_weights(), model.get_weights())
            assert not set(map(id, each.variables)) & set(map(id, model.variables))
            assert_same(each(given), first)
        WALKS[BACKEND](model, new, given, tmp_path)

    def test_a_weights_file_names_the_states(self, tmp_path):
        def model(h, c):
            layer = InitStateLSTM(UNITS, initial_state=[h, c])
            return keras.Sequential([keras.Input(SHAPE[1:]), layer])

        model(Trainable("ones"), 5.0).save_weights(tmp_path / "model.weights.h5")
        other = model(7.0, Trainable())
        other.load_weights(tmp_path / "model.weights.h5")
        states = other.layers[0].get_initial_state(1)
        assert_same(states, [np.ones((1, UNITS), "f"), np.full((1, UNITS), 5, "f")])
        for crossed in ((None, 7.0), (7.0, "sampled"), ("sampled", 7.0)):
            model(7.0, None).save_weights(tmp_path / "model.weights.h5")
            other = model(*crossed)
            with pytest.raises(ValueError, match="could not be loaded|expected"):
                other.load_weights(tmp_path / "model.weights.h5")

    def test_a_weights_file_of_an_lstm_raises_and_changes_nothing(self, tmp_path):
        lstm = functional(lambda units: layers.LSTM(units))
        lstm.save_weights(tmp_path / "lstm.weights.h5")
        model = functional(InitStateLSTM)
        with pytest.raises(ValueError, match="could not be loaded"):
            model.load_weights(tmp_path / "lstm.weights.h5")

    def test_a_loaded_model_continues_the_random_stream(self, tmp_path):
        model, x = models_to_save()["stack"]
        model(x, training=True)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        restored = keras.models.clone_model(model)
        restored.load_weights(tmp_path / "model.weights.h5")
        want = to_numpy(model(x, training=True))
        assert_same(loaded(x, training=True), want)
        assert_same(restored(x, training=True), want)
        assert (to_numpy(model(x, training=True)) != want).any()


@pytest.mark.tensorflow
class TestFilesOfTensorFlow:
    @pytest.mark.parametrize("stateful", [False, True])
    def test_a_checkpoint_holds_every_state(self, tmp_path, stateful):
        def new():
            return keras.Sequential(
                [
                    keras.Input(SHAPE[1:], batch_size=BATCH),
                    InitStateLSTM(UNITS, initial_state="trainable", stateful=stateful),
                ]
            )

        model, other = new(), new()
        for weight in model.weights:
            weight.assign(np.random.normal(size=weight.shape))
        model(X)
        path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
        tf.train.Checkpoint(model=other).restore(path).assert_consumed()
        assert_same(other.get_weights(), model.get_weights())
        assert_same(other(X), model(X))
