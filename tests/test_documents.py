"""The code in the documents runs, and their links and names exist."""

import doctest
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pytest

import keras_init_lstm
from documents import (
    DOCUMENTS,
    MIGRATION,
    README,
    ROOT,
    WRITTEN,
    blocks,
    headings,
    prose_of,
    python_of,
)
from oracles import to_numpy

HOW_TO = [name for name in WRITTEN if name.startswith("docs/how-to/")]
# The documents whose code one process runs, as each process starts TensorFlow.
WITH_CODE = [name for name in WRITTEN if "```python" in DOCUMENTS[name]]
GROUPS = {
    "how-to": [name for name in WITH_CODE if name in HOW_TO],
    "docs": [name for name in WITH_CODE if name.startswith("docs/")],
}
GROUPS["docs"] = [name for name in GROUPS["docs"] if name not in HOW_TO]
# `test_package.py` runs the README.
ALONE = [name for name in WITH_CODE if "/" not in name and name != "README.md"]
GROUPS.update({name: [name] for name in ALONE})
# Functions that need a newer Keras than the oldest that `make versions` tests.
SINCE = {"keras2.load_model": (3, 14), "OptimizerMap": (3, 15)}
KERAS = tuple(map(int, keras.__version__.split(".")[:2]))
PACKAGE = ROOT / "keras_init_lstm"
MODULES = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
]
# The names of the package and of its public modules.
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (
        keras_init_lstm,
        *(getattr(keras_init_lstm, name) for name in keras_init_lstm.__all__),
    )
    if isinstance(module, types.ModuleType)
    for name in module.__all__
    if not isinstance(getattr(module, name), types.ModuleType)
}
# What a process prints before the output of each document.
PAGE = "the page "
EVERYTHING = "\n".join(
    f"from {module} import *" for module in {name.rpartition(".")[0] for name in PUBLIC}
)


@pytest.mark.tensorflow  # The docstrings show tensors of TensorFlow.
@pytest.mark.parametrize(
    # The files of other backends import their own frameworks.
    "name",
    [name for name in MODULES if not name.endswith((".jax", ".torch"))],
)
def test_docstrings(name):
    module = importlib.import_module(f"keras_init_lstm.{name}")
    names = {"keras": keras, "np": np, "keras_init_lstm": keras_init_lstm}
    result = doctest.testmod(module, extraglobs=names)
    # The example of `keras2.load_model` needs a file.
    text = pathlib.Path(module.__file__).read_text()
    shown = name != "keras2.load" and ">>> " in text
    assert bool(result.attempted) >= shown and not result.failed


def test_every_public_name_has_an_example():
    for name, value in PUBLIC.items():
        assert ">>> " in value.__doc__, name


@pytest.fixture(scope="module")
def wheel(distributions, tmp_path_factory):
    """A folder with the unpacked wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.tensorflow  # for the logs and the `tf.function` in it
@pytest.mark.parametrize("group", GROUPS)
def test_every_block_against_the_wheel(group, wheel, tmp_path):
    pages = {
        name: "\n".join(
            block
            for block in python_of(DOCUMENTS[name])
            if all(what not in block or since <= KERAS for what, since in SINCE.items())
        )
        for name in GROUPS[group]
    }
    script = f"""
import os, sys, tempfile
sys.path.insert(0, {str(wheel)!r})
import keras, keras_init_lstm
for name, code in {pages!r}.items():
    os.chdir(tempfile.mkdtemp(dir={str(tmp_path)!r}))
    keras.utils.clear_session()
    print({PAGE!r} + name)
    exec(compile(code, name, "exec"), {{"__name__": "__main__"}})
print({PAGE!r} + keras_init_lstm.__file__)
"""
    # Run each page in an empty folder, isolated from this checkout.
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.split(PAGE)[1:]
    assert last.startswith(str(wheel))
    # Compare the outputs that comments after `print()` show.
    for (name, code), output in zip(pages.items(), printed, strict=True):
        first, *lines = output.splitlines()
        assert first == name
        said = re.findall(r"^print\(.*\)  # ([(\[].*|\w+/.*)$", code, re.M)
        assert [line for line in said if line not in lines] == [], name


def test_a_group_runs_every_document_with_code():
    named = [name for names in GROUPS.values() for name in names]
    assert sorted([*named, "README.md"]) == sorted(
        name for name in WRITTEN if python_of(DOCUMENTS[name])
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_no_block_is_skipped(name):
    # A block of another language would not be tested.
    assert {language for language, _ in blocks(DOCUMENTS[name])} <= {"python", "sh"}
    assert DOCUMENTS[name].count("```") % 2 == 0
    text = DOCUMENTS[name]
    tested = [*python_of(text), *python_of(text, "torch")]
    assert len(tested) == text.count("```python")


@pytest.mark.parametrize("name", WRITTEN)
def test_no_line_of_code_is_cut_off_on_the_site(name):
    lines = [line for _, code in blocks(DOCUMENTS[name]) for line in code.splitlines()]
    assert [line for line in lines if len(line) > 88] == []


def test_documents_with_code():
    at_least = {"README.md": 3, "docs/code.md": 2, "MIGRATION.md": 5}
    at_least.update(dict.fromkeys(HOW_TO, 1))
    for name, count in at_least.items():
        assert len(python_of(DOCUMENTS[name])) >= count, name
    assert len(HOW_TO) >= 16
    assert sum(len(python_of(DOCUMENTS[name])) for name in HOW_TO) >= 30


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name):
    text = prose_of(DOCUMENTS[name])
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    # A picture in a link has two links.
    links += re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        if re.match(r"https?://|doi:|mailto:", link):
            continue
        file, _, heading = link.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        known = not heading or heading in headings(path.read_text())
        if not path.exists() or not known:
            broken.append(link)
    assert not broken


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb")
    pytest.importorskip("furo")
    command = ["-m", "sphinx", "-q", "-W", "-c", "docs", ".", tmp_path / "site"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert "docs/index.html" in first
    pages = (tmp_path / "site" / "docs" / "index.html").read_text()
    for name in WRITTEN:
        page = os.path.relpath(ROOT / name, ROOT / "docs").removesuffix(".md")
        assert page == "index" or f'href="{page}.html"' in pages, name
    reference = (tmp_path / "site" / "docs" / "reference" / "api.html").read_text()
    layer = keras_init_lstm.InitStateRNN
    methods = [
        f"keras_init_lstm.InitStateRNN.{name}"
        for cls in layer.__mro__[: layer.__mro__.index(keras.layers.RNN)]
        for name, value in vars(cls).items()
        if isinstance(value, (classmethod, types.FunctionType)) and name[0] != "_"
        if value.__doc__
    ]
    assert len(methods) >= 6
    for name in [*PUBLIC, *methods]:
        assert f'id="{name}"' in reference, name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    # The first screens must say what the package is and how to try it.
    top = "\n".join(README.splitlines()[:60])
    for text in ("pip install", "make demo", "make test", "digits.png", "```python"):
        assert text in top, text


COMPARISON = MIGRATION.partition("## trainable-initial-state-rnn and cond-rnn")[2]
(SETUP,) = python_of(COMPARISON)
CODE = re.findall(r"\| `(.*)` \|$", COMPARISON, re.MULTILINE)


@pytest.mark.parametrize("code", CODE)
def test_every_example_of_the_migration(code):
    keras.utils.set_random_seed(1)
    scope = {"keras": keras, "np": np}
    exec(f"{EVERYTHING}\n{SETUP}", scope)
    outputs = to_numpy(eval(code, scope))
    assert outputs.shape[0] == 4
    # All rows have the same sequence. Only their initial states may differ.
    same = [(outputs[0] == row).all() for row in outputs[1:]]
    assert set(same) == {"context" not in code and "initial_state=[h" not in code}


TROUBLES = DOCUMENTS["docs/reference/errors.md"]
(PREPARED,) = python_of(TROUBLES)
ERRORS = re.findall(r"^\| (`+)(.*?)\1 \| `(.*?)` \| .+ \|$", TROUBLES, re.MULTILINE)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The names that the examples of the errors use."""
    monkeypatch.chdir(tmp_path)
    scope = {"keras": keras, "np": np}
    exec(f"{EVERYTHING}\n{PREPARED}", scope)
    return scope


@pytest.mark.parametrize(("_", "says", "code"), ERRORS, ids=lambda value: value[:30])
def test_every_error_on_the_page_of_errors(_, says, code, prepared, monkeypatch):
    if "load_model" in code:  # as in a program that did not import the package
        known = keras.saving.get_custom_objects()
        for name in [name for name in known if name.startswith("keras_init_lstm>")]:
            monkeypatch.delitem(known, name)
    with pytest.raises((AttributeError, TypeError, ValueError), match=re.escape(says)):
        eval(code, prepared)


def test_every_error_has_its_row():
    rows = re.findall(r"^\| .*", TROUBLES, re.MULTILINE)
    assert len(ERRORS) == len(rows) - 1 == 11  # but for the heading


@pytest.mark.parametrize("name", WRITTEN)
def test_every_named_test_exists(name):
    named = set(re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", DOCUMENTS[name]))
    assert name != "docs/reference/production.md" or len(named) >= 10
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        text = path.read_text()
        assert re.search(rf"^ *(def|class) {test}\b" if test else "", text, re.M), test


@pytest.mark.parametrize("name", WRITTEN)
def test_every_named_command_exists(name):
    text = DOCUMENTS[name]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make (?:-k )?([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^[^\t#:=]*\b{target}(?= |:)[^=]*:", makefile, re.M), target
    for command in re.findall(r"\bpython -m (benchmarks[\w.]*\w)", text):
        path = ROOT / command.replace(".", "/")
        assert (path / "__main__.py").exists() or path.with_suffix(".py").exists()


def test_the_documents_name_every_public_name():
    for name in (name.rpartition(".")[2] for name in PUBLIC):
        pages = [README, MIGRATION, *(DOCUMENTS[page] for page in HOW_TO)]
        assert any(re.search(rf"\b{name}\b", page) for page in pages), name


def test_every_module_is_on_the_map():
    text = DOCUMENTS["docs/code.md"]
    for name in MODULES:
        path = f"`{name.replace('.', '/')}.py`"
        assert path in text or name.startswith("backend."), name
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_the_readme_names_the_jobs_of_ci():
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("not part of a source distribution")
    commands = re.findall(r"^make \S+$", script.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        assert f"`{command}`" in README, command


QUICKSTART = ROOT / "notebooks" / "01_quickstart.ipynb"


def cells(notebook, kind):
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(each["source"]) for each in found if each["cell_type"] == kind]


def test_the_quickstart_lists_every_public_name_with_a_page_that_shows_it():
    (table,) = (
        text for text in cells(QUICKSTART, "markdown") if "## All names" in text
    )
    rows = re.findall(r"^\| `([\w.]+)` \| .+ \| (.+) \|$", table, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(
        name.removeprefix("keras_init_lstm.") for name in PUBLIC
    )
    for name, shown_in in rows:
        pages = re.findall(r"\[[^\]]+\]\(([^)#]+)", shown_in)
        assert pages, name
        for page in pages:
            path = QUICKSTART.parent / page
            is_notebook = path.suffix == ".ipynb"
            text = "".join(cells(path, "code")) if is_notebook else path.read_text()
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), (name, page)


def test_the_gallery_shows_every_notebook():
    gallery = DOCUMENTS["notebooks/README.md"]
    notebooks = sorted(path.name for path in QUICKSTART.parent.glob("*.ipynb"))
    assert re.findall(r"^## \[.+\]\((.+)\)$", gallery, re.MULTILINE) == notebooks
    pictures = [f"pictures/{name.replace('.ipynb', '.png')}" for name in notebooks]
    assert re.findall(r"^!\[.+\]\((.+)\)$", gallery, re.MULTILINE) == pictures
    for name in notebooks:
        assert f"(../notebooks/{name})" in DOCUMENTS["docs/index.md"], name
