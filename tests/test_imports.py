"""A module of the package imports only from modules of a lower level."""

import ast
from pathlib import Path

import pytest

import keras_init_lstm

PACKAGE = Path(keras_init_lstm.__file__).parent
# A part imports from earlier parts, and from its own folder.
ORDER = [
    "_types",
    "_keras",
    "backend",
    "_checks",
    "_files",
    "_copies",
    "initial_states",
    "loops",
    "layers",
    "adoption",
    "streams",
    "adaptation",
    "callbacks",
    "keras2",
    "plots",
]
FILES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
)


def imported(path):
    """The parts of the package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "keras_init_lstm":
                yield parts[0]


def part_of(file):
    return file.split("/")[0].removesuffix(".py")


def test_every_part_has_a_place():
    assert {part_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down(file):
    place = ORDER.index(part_of(file))
    upwards = [part for part in imported(PACKAGE / file) if ORDER.index(part) > place]
    assert not upwards
