"""Saves the pictures of this folder's README, each an output of its notebook."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
# Which of the pictures of a notebook.
SHOWN = {
    "01_quickstart": 0,
    "02_forecasting": 0,
    "03_sequence_to_sequence": 0,
    "04_identities": 3,
    "05_streams": 0,
    "06_reinforcement_learning": 0,
    "07_speed": 2,
}


def main():
    for name, number in SHOWN.items():
        cells = json.loads((HERE / f"{name}.ipynb").read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        data = [output.get("data", {}) for output in outputs]
        pictures = [each["image/png"] for each in data if "image/png" in each]
        png = io.BytesIO(base64.b64decode(pictures[number]))
        picture = Image.open(png).convert("RGB")
        picture.thumbnail((800, 800))
        picture.quantize(128).save(HERE / "pictures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
