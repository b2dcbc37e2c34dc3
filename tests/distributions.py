"""The source distribution and the wheel of this checkout, and the wheel alone."""

import email
import subprocess
import sys
import venv
import zipfile
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from documents import ROOT


def build(folder):
    """Builds a source distribution, and from it a wheel; returns their paths."""
    command = ["-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(lines):
    """The names that requirements have here, without extras."""
    found = map(Requirement, lines or ())
    here = {"extra": ""}
    return [one.name for one in found if not one.marker or one.marker.evaluate(here)]


def with_requirements(names):
    """These distributions and all that they require, by their names."""
    found, missing = {}, list(names)
    while missing:
        name = canonicalize_name(missing.pop())
        if name not in found:
            found[name] = metadata.distribution(name)
            missing += requirements(found[name].requires)
    return found


def install_alone(wheel, folder, backend):
    """Makes an environment with the wheel, its requirements, and a backend.

    Without a download: links to files of the current environment stand for what is
    required. `pip` then installs the wheel, and checks that nothing is missing.

    Returns:
        The Python of the environment.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    required = requirements(metadata_of(wheel).get_all("Requires-Dist"))
    for distribution in with_requirements([*required, backend]).values():
        for file in set(distribution.files):  # NumPy lists some twice
            if ".." in file.parts:
                continue  # a script
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            (packages / file).symlink_to(file.locate())
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-index", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python
