"""Makes the goldens of deep images: files of 16 bits and of floating point, and what NumPy
and Pillow make of them without a conversion to 8 bits.

Run from the repository's root:

    python testdata/golden/make_deep.py

Made with Python 3.11, Pillow 13.0.0 and NumPy 2.4.6. It writes

    testdata/golden/deep/<name>       the inputs
    testdata/golden/deep/expected.json  for each case the file, the size, the fit, the window,
        the region, and one plane of the network's input:
        height×width float32, little-endian, in base64

A sample v becomes clip((v - low) / (high - low), 0, 1) in float32; the plane is then cropped and
resized by Pillow in mode "F", and a pixel that is not judged becomes -1.
"""

import base64
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent / "deep"


def nearest(share, limit):
    """Return a share rounded half up, from 1 to the limit."""
    return min(limit, max(int(share + Fraction(1, 2)), 1))


def expected(values, width, height, fit, window, region):
    low, high = np.float32(window[0]), np.float32(window[1])
    plane = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1)
    h, w = plane.shape
    kept, there = (w, h), (width, height)
    if fit == "pad":  # as large as fits
        there = nearest(Fraction(w * height, h), width), nearest(Fraction(h * width, w), height)
    if fit == "crop":
        kept = nearest(Fraction(h * width, height), w), nearest(Fraction(w * height, width), h)
    x, y = (w - kept[0]) // 2, (h - kept[1]) // 2
    image = Image.fromarray(plane).crop((x, y, x + kept[0], y + kept[1]))
    part = np.asarray(image.resize(there, Image.Resampling.BILINEAR))
    if region is not None:  # the mask's pixel at each pixel's centre
        for row in range(there[1]):
            for column in range(there[0]):
                at_x = (x + (column + Fraction(1, 2)) * kept[0] / there[0]) / w
                at_y = (y + (row + Fraction(1, 2)) * kept[1] / there[1]) / h
                if not region[int(at_y * region.shape[0]), int(at_x * region.shape[1])]:
                    part = part.copy()
                    part[row, column] = -1
    out = np.full((height, width), -1, np.float32)
    left, top = (width - there[0]) // 2, (height - there[1]) // 2
    out[top:top + there[1], left:left + there[0]] = part
    return out.astype("<f4")


def runs(mask):
    flat, lengths, inside = mask.reshape(-1), [0], False
    for value in flat:
        if bool(value) != inside:
            inside = not inside
            lengths.append(0)
        lengths[-1] += 1
    return " ".join(map(str, lengths))


def main():
    HERE.mkdir(exist_ok=True)
    rng = np.random.default_rng(4)
    y, x = np.mgrid[0:45, 0:70]
    wave = 0.5 + 0.4 * np.sin(x / 5) * np.cos(y / 6) + 0.02 * rng.standard_normal(x.shape)
    inputs = {
        "grey12.png": (wave * 4095).clip(0, 4095).astype(np.uint16),
        "grey16.tif": (wave.T * 65535).clip(0, 65535).astype(np.uint16),
        "float.tif": (wave * 3000 - 1000).astype(np.float32),
        "tall.png": (wave[:, :9] * 4095).clip(0, 4095).astype(np.uint16),
    }
    for name, values in inputs.items():
        Image.fromarray(values).save(HERE / name)
    region = np.zeros((5, 7), bool)
    region[1:4, 2:7] = True
    cases = []
    for name, width, height, fit, window, mask in [
        ("grey12.png", 16, 16, "", (0, 4095), None),
        ("grey12.png", 16, 16, "", (1000.5, 3000.25), None),
        ("grey12.png", 70, 45, "", (0, 65535), None),
        ("grey12.png", 100, 90, "", (0, 4095), None),
        ("grey12.png", 70, 16, "", (0, 4095), region),
        ("grey16.tif", 16, 45, "", (100, 60000), None),
        ("grey16.tif", 32, 16, "pad", (0, 65535), None),
        ("float.tif", 32, 16, "", (-1000, 2000), None),
        ("float.tif", 16, 32, "crop", (-500, 1500), region),
        ("float.tif", 48, 16, "pad", (-500, 1500), region),
        ("tall.png", 16, 16, "pad", (0, 4095), region),
        ("tall.png", 16, 16, "crop", (0, 4095), None),
        ("tall.png", 16, 32, "", (0, 4095), None),
    ]:
        case = {"file": name, "width": width, "height": height, "fit": fit, "window": window}
        if mask is not None:
            case["region"] = {"width": mask.shape[1], "height": mask.shape[0], "runs": runs(mask)}
        values = expected(inputs[name], width, height, fit, window, mask)
        case["input"] = base64.b64encode(values.tobytes()).decode()
        cases.append(case)
    (HERE / "expected.json").write_text(json.dumps(cases, indent=1) + "\n")


main()
