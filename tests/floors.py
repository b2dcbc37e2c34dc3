"""Prints the lowest versions that `pyproject.toml` names, as constraints of pip."""

import pathlib

import tomllib

PROJECT = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
for requirement in [*PROJECT["dependencies"], *EXTRAS["plot"], *EXTRAS["tensorflow"]]:
    print(requirement.replace(">=", "=="))
