"""The comparison on text runs, and its table and picture show the results."""

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.evidence import text
from benchmarks.evidence.characters import encode, read_text

TINY = ["--length", "5", "--units", "4", "--epochs", "1", "--seeds", "2"]


@pytest.fixture
def folder(tmp_path):
    """Ten files with 200 characters."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.txt").write_text("abcde fgh\n" * 2)
    return folder


@pytest.fixture
def run_eagerly():
    """Saves time: tracing four trainings takes longer than their few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def rows(table):
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}


@pytest.mark.usefixtures("run_eagerly")
def test_table_and_picture(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text, "KINDS", {"zeros": "zeros", "trainable": "learned"})
    output = tmp_path / "new" / "picture.png"

    losses = text.main([*TINY, "--text", str(folder), "--output", str(output)])

    assert list(losses) == ["zeros", "trainable"]
    for values in losses.values():
        assert values.shape == (2, 5)
        assert np.isfinite(values).all() and (values > 0).all()
    assert output.read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert str(output) in printed
    assert "[4/4] seed 1, trainable" in printed
    assert "10 files" in printed
    *_, loss_table, difference_table, ending = printed.split("\n\n")
    assert list(rows(loss_table)) == list(losses)
    assert list(rows(difference_table)) == ["trainable"]
    for kind, cells in rows(loss_table).items():
        mean_loss = losses[kind].mean(axis=0)
        expected = [*mean_loss[[0, 1, 3, 4]], mean_loss.mean()]
        assert cells[0::3] == [f"{mean:.3f}" for mean in expected]
    best = min(losses, key=lambda kind: losses[kind].mean())
    assert best in ending.splitlines()[0]


def test_kinds_share_weights_at_first():
    def weights(kind):
        model = text.build_model(kind, units=4, learning_rate=0.01, seed=3)
        model.build((None, 5))
        embedding, lstm, dense = model.layers
        layers = (embedding, lstm.cell, dense)
        return [np.array(w) for layer in layers for w in layer.weights]

    expected = weights("zeros")
    assert len(expected) == 6
    for kind in text.KINDS:
        for found, value in zip(weights(kind), expected, strict=True):
            np.testing.assert_array_equal(found, value)


def test_files_are_either_for_training_or_for_the_test(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.py").write_text(str(number))
    (tmp_path / "notes.rst").write_text("not read")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "a.py").write_text("not read")

    files, train, test = read_text(tmp_path)

    assert files == 10
    assert len(train.split()) == 8 and len(test.split()) == 2
    assert sorted(train.split() + test.split()) == list("0123456789")


def test_single_file_is_split(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")

    assert read_text(tmp_path / "a.txt") == (1, "01234567", "89")


def test_rare_characters_share_an_id():
    # The 127 most frequent characters of the training text have an id of their own.
    common = "".join(map(chr, range(256, 256 + 127)))

    train, test = encode(common * 2 + "z", "zy" + common)

    assert train[-1] == 0
    assert test[:2].tolist() == [0, 0]
    assert sorted(test[2:]) == list(range(1, 128))
    assert test[2:].tolist() == train[:127].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "no_such_file"], "no_such_file"),
        (["--text", __file__, "--length", "100000"], "too short"),
    ],
)
def test_invalid_texts(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit):
        text.main(arguments)

    assert message in capsys.readouterr().err
