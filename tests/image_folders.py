"""Folders of drawn images and masks, as users have them."""

import cv2
import numpy as np

SIZE = (32, 48)


def mask(number, values=(0, 1, 2, 3)):
    """Quarters of four values, in an order by number."""
    quarters = np.roll(np.resize(np.array(values), 4), number).reshape(2, 2)
    return np.kron(quarters, np.ones((SIZE[0] // 2, SIZE[1] // 2))).astype(np.uint8)


def image(ids, number):
    draw = np.random.default_rng(number)
    base = np.stack([ids.astype(float) * 60 % 256, 255 - ids * 50.0 % 256, ids * 20.0], 2)
    return (base + draw.normal(0, 8, base.shape)).clip(0, 255).astype(np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def folder(root, names, count=8, values=(0, 1, 2, 3)):
    """Writes pairs; ``names(number)`` gives the paths of image and mask below the root."""
    for number in range(count):
        ids = mask(number, values)
        first, second = names(number)
        write(root / first, image(ids, number))
        if second:
            write(root / second, ids)
    return root
