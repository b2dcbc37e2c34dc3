"""The fuzzer finds a planted defect, and nothing without a defect."""

import warnings

import pytest

from benchmarks.fuzz.__main__ import fuzz, main
from keras_init_lstm.initial_states import base
from keras_init_lstm.initial_states.owned import OwnedStates
from keras_init_lstm.layers.rnn import InitStateRNN


def failures(seed):
    return [what for what in fuzz([seed]) if what.startswith("FAILED")]


# Each function takes a function of the package, and returns it with a defect.


def slightly_wrong(tile):
    return lambda *args: tile(*args) + 1e-3


def raises(error):
    def defect(check):
        def checked(*args):
            try:
                return check(*args)
            except ValueError as refusal:
                raise error from refusal

        return checked

    return defect


def silent(check):
    def checked(*args):
        try:
            check(*args)
        except ValueError:
            return

    return checked


def warns(check):
    def checked(*args):
        warnings.warn("a warning", stacklevel=2)
        return check(*args)

    return checked


def twice(states_of_call):
    return lambda *args: (states_of_call(*args), states_of_call(*args))[1]


def resets_elsewhere(for_resets):
    def defect(*args):
        return [state + 1e-2 for state in for_resets(*args)]

    return defect


@pytest.mark.tensorflow  # Which seed finds it depends on the backend.
@pytest.mark.parametrize(
    # The first seed finds the defect now. If drawing changes, a later one may.
    ("place", "name", "defect", "kind", "first_seed"),
    [
        (base, "tile", slightly_wrong, "another value", 0),
        (InitStateRNN, "_check_call", raises(KeyError("x")), "another exception", 5),
        (
            InitStateRNN,
            "_check_call",
            raises(TypeError("x")),
            "not name the argument",
            5,
        ),
        (InitStateRNN, "_check_call", warns, "a warning", 0),
        (OwnedStates, "check_context", silent, "accepted what is wrong", 5),
        (InitStateRNN, "_states_of_call", twice, "drew more or less than once", 36),
        (OwnedStates, "for_resets", resets_elsewhere, "another value", 6),
    ],
)
def test_finds_a_planted_defect(
    place, name, defect, kind, first_seed, monkeypatch, capsys
):
    monkeypatch.setattr(place, name, defect(getattr(place, name)))
    found = None
    for seed in range(first_seed, first_seed + 1000):
        found = failures(seed)
        if found and found[0].endswith(kind):
            break
    assert len(found) == 1
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == f"python -m benchmarks.fuzz --seed {seed} --count 1"
    assert failures(seed) == found
    monkeypatch.undo()
    assert not failures(seed)


def test_finds_nothing_without_a_defect(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--seed", "7", "--count", "20"])
    assert not exited.value.code
    assert "    20 cases\n" in capsys.readouterr().out
