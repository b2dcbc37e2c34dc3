"""The arguments that commands share, and the rounding of numbers in their files."""

import argparse
from pathlib import Path


def positive(text):
    """Returns the positive integer that an argument names."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def make_parser(command, document):
    """Returns the parser of `python -m benchmarks.COMMAND`.

    Args:
        command: The name of the module below `benchmarks`.
        document: The docstring of the command. `--help` shows its first line.
    """
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}", description=document.partition("\n")[0]
    )


def add_output(parser, name, also=""):
    """Adds `--output`, the path of a PNG file, and makes its folder.

    Args:
        parser: The parser of the command line.
        name: The name of the file if `--output` is a folder.
        also: The text of the help about other files.
    """

    def picture_path(text):
        path = Path(text)
        if path.is_dir() or not path.suffix:
            path /= name
        if path.suffix.lower() != ".png":
            raise argparse.ArgumentTypeError(f"must end in .png, got {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return path

    parser.add_argument(
        "--output",
        type=picture_path,
        default=f"out/{name}",
        help=f"PNG file, or folder for {name}{also} (default: %(default)s)",
    )


def rounded(value, digits=4):
    """Returns a structure whose floats are rounded to `digits` significant digits."""
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
