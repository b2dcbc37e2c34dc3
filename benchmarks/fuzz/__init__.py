"""`make fuzz`: random layers and calls, compared with the layers of Keras."""

import sys
from pathlib import Path

# The helpers of the tests are modules of their folder, not of a package.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
