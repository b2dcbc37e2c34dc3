"""Type checkers on a correct and a wrong script of a user."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "typed"
ROOT = FOLDER.parents[1]


def run(*command):
    """The output of a checker for the scripts, and for no other file."""
    command = [sys.executable, "-m", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(script):
    # Keras ships no types.
    output = run("mypy", "--strict", "--ignore-missing-imports", str(script))
    return {int(line) for line in re.findall(rf"{script.name}:(\d+): error", output)}


def pyright(script):
    output = run("pyright", "--outputjson", "--pythonpath", sys.executable, str(script))
    # Pyright infers the results of `keras.ops` from all backends, and in Keras 3.10 the
    # result of OpenVINO is not an array. In a source tree of Keras, Pyright finds no
    # public names in `keras.ops`, `keras.layers` and so on.
    faults_of_keras = re.compile('OpenVINO|known attribute of module "keras"')
    return {
        1 + each["range"]["start"]["line"]
        for each in json.loads(output)["generalDiagnostics"]
        if each["severity"] == "error" and not faults_of_keras.search(each["message"])
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
class TestScripts:
    def test_a_correct_script_has_no_error(self, checker):
        assert checker(FOLDER / "right.py") == set()

    def test_each_line_of_a_wrong_script_has_an_error(self, checker):
        lines = (FOLDER / "wrong.py").read_text().splitlines()
        wrong = {n for n, line in enumerate(lines, 1) if line.endswith("# error")}
        assert len(wrong) > 20
        assert checker(FOLDER / "wrong.py") == wrong
