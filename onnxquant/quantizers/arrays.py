"""One arithmetic for numpy, torch and other array-API arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy, torch or other array-API array."""


def namespace(x: Array) -> Any:
    """The module whose functions take `x`: numpy itself for its arrays, else what array-api-compat says."""
    if isinstance(x, np.ndarray):
        return np  # follows the standard since numpy 2.1, and the import of the wrapper takes 0.3 s
    from array_api_compat import array_namespace

    return array_namespace(x)
