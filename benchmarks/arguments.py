"""What the command lines in this folder share."""

import argparse


def positive(text):
    """Returns the positive integer that an argument names."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def picture_path(parser, output, name):
    """Returns the PNG file that `--output`, a file or folder, names; makes its folder.

    Exits with what is wrong if it cannot be one.
    """
    if output.is_dir() or not output.suffix:
        output /= name
    if output.suffix.lower() != ".png":
        parser.error(f"--output must end in .png, got {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    return output
