"""What the documents print runs: docstrings, and the README against a built wheel."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_init_lstm
from oracles import to_numpy

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MODULES = [
    module.name
    for module in pkgutil.iter_modules(keras_init_lstm.__path__)
    if not module.ispkg
]


@pytest.mark.tensorflow  # whose tensors they show
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"keras_init_lstm.{name}")
    names = {"keras": keras, "np": np, "keras_init_lstm": keras_init_lstm}
    result = doctest.testmod(module, extraglobs=names)
    # That of `load_keras2_model` is of a file that is not here.
    shown = name != "keras2" and ">>> " in pathlib.Path(module.__file__).read_text()
    assert bool(result.attempted) >= shown and not result.failed


def test_every_public_name_has_an_example():
    for name in keras_init_lstm.__all__:
        assert ">>> " in getattr(keras_init_lstm, name).__doc__, name


@pytest.mark.tensorflow  # for the logs and the `tf.function` in it
def test_readme_against_the_wheel(tmp_path):
    assert len(BLOCKS) >= 10
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            tmp_path,
            ROOT,
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert "keras_init_lstm/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"keras_init_lstm"}
    # In an empty folder, and isolated from this checkout.
    script = "\n".join(
        [
            "import sys",
            f"sys.path.insert(0, {str(tmp_path / 'installed')!r})",
            *BLOCKS,
            "import keras_init_lstm",
            "print(keras_init_lstm.__file__)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "sequential/init_state_lstm/h0/value (64,)"
    assert lines[-1].startswith(str(tmp_path))


SETUP, COMPARISON = re.search(
    r"## What people used before.*?```python\n(.*?)```(.*?)\n## ",
    README,
    re.DOTALL,
).groups()
CODE = re.findall(r"\| `(.*)` \|\n", COMPARISON)


@pytest.mark.parametrize("code", CODE)
def test_every_capability_of_what_people_used_before(code):
    keras.utils.set_random_seed(1)
    scope = {"keras": keras, "np": np}
    exec(f"from keras_init_lstm import *\n{SETUP}", scope)
    outputs = to_numpy(eval(code, scope))
    assert outputs.shape[0] == 4
    # All rows are given the same sequence, so that only their start can differ.
    same = [(outputs[0] == row).all() for row in outputs[1:]]
    assert set(same) == {"context" not in code and "initial_state=[h" not in code}


def test_every_test_that_the_readme_names_is_there():
    named = set(re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", README))
    assert len(named) >= 10
    for file, name in named:
        text = (ROOT / "tests" / file).read_text()
        assert re.search(rf"^ *(def|class) {name}\b" if name else "", text, re.M), name
