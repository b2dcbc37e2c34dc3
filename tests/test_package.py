"""What is published: a source distribution and a wheel, and what they say."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import keras
import pytest

import keras_init_lstm
from distributions import install_alone, metadata_of
from documents import DOCUMENTS, README, ROOT, python_of

VERSION = keras_init_lstm.__version__


def test_the_source_distribution_has_the_files_of_the_repository(distributions):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True)
    files = [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    expected = {name for name in files if not name.startswith(".ci/")} | {"PKG-INFO"}
    with tarfile.open(distributions[0]) as archive:
        names = [one.name for one in archive.getmembers() if one.isfile()]
    assert {name.partition("/")[2] for name in names} == expected


def test_the_wheel_has_the_modules_and_the_licence(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        names = archive.namelist()
    package = ROOT / "keras_init_lstm"
    code = [str(path.relative_to(ROOT)) for path in package.rglob("*.py")]
    own = {name for name in names if ".dist-info/" not in name}
    assert own == {*code, "keras_init_lstm/py.typed"}
    about = {name.partition(".dist-info/")[2] for name in set(names) - own}
    assert about == {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


def test_an_index_shows_the_description(distributions):
    pytest.importorskip("twine")
    check = [sys.executable, "-m", "twine", "check", "--strict", *distributions]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_description_stands_without_the_repository(distributions):
    text = metadata_of(distributions[1]).get_payload()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert all(re.match("https?://", link) for link in links)
    for command in ("'keras-init-lstm[tensorflow]'\n", "keras-init-lstm`"):
        assert f"pip install {command}" in text
    assert "In the source distribution, two commands do everything" in text
    for only_here in ("clone", "pip install .", "pip install '.", "package index"):
        assert only_here not in text
    assert python_of(text) == python_of(README)


def test_the_readme_runs_with_the_wheel_alone(distributions, tmp_path):
    python = install_alone(
        distributions[1], tmp_path / "environment", keras.backend.backend()
    )
    code = "\n".join(python_of(README))
    script = f"""
import importlib.util
for name in ("hypothesis", "matplotlib", "pytest"):
    assert importlib.util.find_spec(name) is None, name
{code}
import keras_init_lstm
print(keras.backend.backend(), keras_init_lstm.__version__, keras_init_lstm.__file__)
"""
    done = subprocess.run(
        [python, "-I", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    backend, version, file = done.stdout.split()[-3:]
    assert (backend, version) == (keras.backend.backend(), VERSION)
    assert file.startswith(str(tmp_path / "environment"))


def test_citation():
    """It has what the format asks for, and agrees with the metadata."""
    text = (ROOT / "CITATION.cff").read_text()
    entries = dict(re.findall(r"^([\w-]+): *(.*)$", text, re.MULTILINE))
    values = {key: value.strip('"') for key, value in entries.items()}
    assert {"cff-version", "message", "title", "authors"} <= set(values)
    assert values["cff-version"] == "1.2.0" and values["type"] == "software"
    assert values["version"] == VERSION
    released = f"## [{VERSION}] - {values['date-released']}"
    assert released in DOCUMENTS["CHANGELOG.md"]
    project = (ROOT / "pyproject.toml").read_text()
    name, title = values["title"].split(": ")
    assert name == keras_init_lstm.__name__ and title[1:] in project
    assert f'license = "{values["license"]}"' in project
    (author,) = re.findall(r'^  - name: "(.*)"$', text, re.MULTILINE)
    assert f'authors = [{{ name = "{author}" }}]' in project
    # Nothing else that YAML would read in another way: keys, and lists of one level.
    lines = [line for line in text.splitlines() if not re.match(r"[\w-]+:", line)]
    assert all(re.fullmatch(r'  - (name: )?"?[\w ]+"?', line) for line in lines)


def test_the_changelog_begins_with_this_version():
    text = DOCUMENTS["CHANGELOG.md"]
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    for section in sections:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", section)
    assert sections[0].startswith(f"[{VERSION}] - ")
    dates = [section[-10:] for section in sections]
    assert dates == sorted(dates, reverse=True)
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    allowed = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert kinds and set(kinds) <= allowed
