"""Settings for all tests."""

import os
import sys
from pathlib import Path

from hypothesis import settings

# The repository's root goes last, so that `tests` can be imported and `onnxquant` is the installed package.
sys.path.append(str(Path(__file__).parents[1]))

# A session of ONNX Runtime takes milliseconds to make, so that a deadline an example says nothing.
settings.register_profile("onnxquant", deadline=None, max_examples=60, derandomize="CI" in os.environ)
settings.load_profile("onnxquant")
