"""Encodes text as integers, and cuts sequences from it."""

import random

import numpy as np

VOCABULARY = 128  # ASCII fits; rarer characters of the training text share id 0.

# Generated tables and tests are not typical text, and installed packages differ between
# machines.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings"}


def read_text(path):
    """Returns the number of files and the characters of the train and test split."""

    def read(file):
        return file.read_text(encoding="utf-8", errors="replace")

    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in (".py", ".txt")
            and file.is_file()
            and not SKIPPED_FOLDERS & set(file.relative_to(path).parts)
        )
        # Shuffle the files: neighbours in the alphabet often belong to one package.
        random.Random(0).shuffle(files)
        test = files[::5] if len(files) > 1 else []
        train = [file for file in files if file not in set(test)]
        return len(files), "\n".join(map(read, train)), "\n".join(map(read, test))
    text = read(path)
    split = len(text) * 4 // 5
    return 1, text[:split], text[split:]


def encode(train_text, test_text):
    """Returns both texts as arrays of integers below `VOCABULARY`."""
    train, test = (
        np.frombuffer(text.encode("utf-32-le"), "<u4")
        for text in (train_text, test_text)
    )
    characters, counts = np.unique(train, return_counts=True)
    ids = np.zeros(0x110000, "int32")
    ids[characters[np.argsort(-counts)[: VOCABULARY - 1]]] = np.arange(
        1, min(VOCABULARY, len(characters) + 1)
    )
    return ids[train], ids[test]


def cut(text, length, count, seed):
    """Returns inputs and targets `(count, length)` from random positions of `text`."""
    positions = len(text) - length
    rng = np.random.default_rng(seed)
    starts = rng.choice(positions, min(count, positions), replace=False)
    sequences = text[starts[:, None] + np.arange(length + 1)]
    return sequences[:, :-1], sequences[:, 1:]
