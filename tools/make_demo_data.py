"""Make models/demo/digits.npz (held out) and digits_train.npz: scikit-learn's handwritten digits, split as in training.

Runs in the export environment: ``python tools/make_demo_data.py``. Each file holds ``images``, uint8 (N, 8, 8), and
``labels``, int64 (N,). The bytes are the same at every run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DEMO = Path(__file__).parents[1] / "models" / "demo"
TRAINED = 1000  # as DIGITS_TRAINED in train.py


def main() -> None:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    for name, part in (("digits_train.npz", slice(TRAINED)), ("digits.npz", slice(TRAINED, None))):
        np.savez_compressed(DEMO / name, images=images[part], labels=labels[part])
        print(f"{name}: {len(labels[part])} images, {(DEMO / name).stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
