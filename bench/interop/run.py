"""Compares exported models across runtimes.

    python bench/interop/run.py --anomaly bin/anomaly --tiles testdata/tiles [--json FILE]

Trains and converts models, installs each runtime in .cache/interop, and prints one row for each
runtime and model: the largest relative difference of reconstruction_error from that of
`anomaly detect --json`, over 50 images. The columns:

    tensor   the runtime runs autoencoder.onnx (or autoencoder.pt) on the same numbers that anomaly
             reads from PNG files of the network's size
    PNG      files of odd sizes: the runtime runs autoencoder_image.onnx on the decoded pixels; in
             PyTorch's rows, Pillow resizes
    JPEG     the same with JPEG files. Decoders differ: anomaly uses Go's, the others use Pillow's

A runtime that is not available on this machine has a row with the reason. The exit status is 1 if
a difference exceeds its column's bound, if a runtime fails that is expected to work, or if a check
of the files fails.
"""

import argparse
import datetime
import json
import os
import platform
import re
import sys
import textwrap
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cases
from checks import checks, difference
from peer_train import find_images
from runtimes import CACHE, Failed, NotAvailable, debian_torch, runtimes

BOUNDS = {"tensor": 1e-5, "PNG": 1e-3, "JPEG": 5e-3, "older": 5e-3, "written": 1e-5, "patches": 1e-1, "patches_png": 5e-3}
NOTE = """\
{images} images per model; the largest difference of reconstruction_error from anomaly detect
--json, relative to it, or to the threshold of a trained model where that is larger. Bounds: tensor {tensor:.0e} (the same input), PNG {PNG:.0e} (odd sizes, resized by
the runtime), JPEG {JPEG:.0e} (decoders differ: Go's in anomaly, Pillow's elsewhere), JPEG with the
anomaly score of a trained model {patches:.0e} (PNG {patches_png:.0e}): the most anomalous patch determines it, and a
difference of 1/255 changes it more than a mean over all pixels. ( ): no bound, for the reason below
the rows. {missing}: nothing to compare."""
MISSING = "–"


class Row:
    """One runtime on one model."""

    def __init__(self, runtime, model):
        self.runtime, self.model = runtime.name, model.name
        self.version, self.differences, self.notes, self.failed = "", {}, [], False
        self.expected, self.available = runtime.expected, True
        self.writer = model.writer
        # PyTorch has only the autoencoder, and computes its mean squared error; only the ONNX files
        # contain the scoring graph.
        self.plain = runtime.plain
        try:
            answer = runtime.run(model.folder)
        except NotAvailable as problem:
            self.available = False
            self.notes.append(f"not available: {problem}")
            return
        except Failed as problem:
            self.fail(problem)
            return
        self.version = answer["version"]
        for part, problem in answer["problems"].items():
            expected = part in runtime.expected or part == "written"
            self.failed |= expected
            self.notes.append(f"{'FAIL' if expected else 'not run'}, {part}: {problem}")
        self.compare("tensor", answer.get("tensor"), model.tensor)
        if model.written and "written" in answer:
            self.compare("written", answer["written"], model.written)
        if "image" in answer:
            n, verdicts = len(model.png), answer.get("anomalous")
            self.compare("PNG", answer["image"][:n], model.png, verdicts and verdicts[:n])
            self.compare("JPEG", answer["image"][n:], model.jpeg, verdicts and verdicts[n:])
            if "older" in answer:
                self.compare("older", answer["older"], model.png + model.jpeg)
        elif "no image" in answer:
            self.notes.append(f"not run, image: {answer['no image']}")
        elif "image" in runtime.expected and "image" not in answer["problems"]:
            self.fail("the answer has no images")
        if "image" not in runtime.expected:
            self.notes.append(runtime.why)

    def bound(self, column):
        """Returns whether the column has a bound; if not, a note has the reason."""
        return column not in ("PNG", "JPEG") or "image" in self.expected

    def fail(self, why):
        self.failed = True
        self.notes.append(f"FAIL: {why}")

    def compare(self, column, errors, wanted, verdicts=None):
        """Compares a runtime's errors, and its verdicts if there are any, with those of detect."""
        if errors is None:
            return
        if not errors or len(errors) != len(wanted):
            return self.fail(f"{column}: {len(errors)} errors for {len(wanted)} images")
        judged = any(error != mse for error, _, mse in wanted) and not self.plain
        limit = BOUNDS[{"JPEG": "patches", "PNG": "patches_png"}.get(column, column) if judged else column]
        wanted = [(mse if self.plain else error, threshold) for error, threshold, mse in wanted]
        # An anomaly score is compared with its threshold: that of an image the model was trained on
        # is near 0, where a relative difference says nothing.
        least = [threshold for _, threshold in wanted] if judged else 1e-12
        self.differences[column] = worst = difference(errors, [error for error, _ in wanted], least)
        if not self.bound(column):
            return
        # NaN fails this comparison.
        if not worst <= limit:
            self.fail(f"{column} exceeds {limit:.0e}")
        if verdicts is not None:
            # Near the threshold, within the bound, both verdicts are right.
            wrong = [v for v, (e, t) in zip(verdicts, wanted, strict=True) if v != (e > t) and abs(e - t) > limit * e]
            if wrong:
                self.fail(f"{column}: {len(wrong)} verdicts differ")


def table(cells):
    """Yields lines of aligned columns. The last column is printed below, once for consecutive rows
    with the same text."""
    *widths, _ = (max(len(line[i]) for line in cells) for i in range(len(cells[0])))
    for i, line in enumerate(cells):
        yield "  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
        if line[-1] and (i + 1 == len(cells) or cells[i + 1][-1] != line[-1] or cells[i + 1][0] != line[0]):
            yield from textwrap.wrap(line[-1], 100, initial_indent="    ", subsequent_indent="    ")


def shown(row, *columns):
    """Yields the differences in these columns, in parentheses if there is no bound."""
    for column in columns:
        text = f"{row.differences[column]:.1e}" if column in row.differences else MISSING
        yield f"({text})" if column in row.differences and not row.bound(column) else text


def machine():
    """Returns a description of the machine in one line."""
    system, processor = platform.system(), platform.processor()
    try:
        with open("/proc/cpuinfo") as f:
            processor = re.search(r"^model name\s*: (.*)", f.read(), re.MULTILINE)[1]
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, TypeError, KeyError):
        pass
    return f"{os.cpu_count()} cores {processor}, {system}, Python {platform.python_version()}"


def main():
    p = argparse.ArgumentParser(description="compare exported models across runtimes")
    p.add_argument("--anomaly", default="bin/anomaly")
    p.add_argument("--tiles", default="testdata/tiles", help="folder with train/good and test")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    p.add_argument("--only", metavar="NAME", help="only runtimes whose name contains this, ignoring case")
    a = p.parse_args()
    program = os.path.abspath(a.anomaly)

    everything = [r for r in runtimes(program) if (a.only or "").lower() in r.name.lower()]
    if not everything:
        sys.exit(f"no runtime's name contains {a.only!r}: expected one of {', '.join(r.name for r in runtimes(program))}")

    start = time.monotonic()
    print(f"{datetime.date.today()}, {machine()}")
    print("training and converting models", file=sys.stderr)
    torches = {"PyTorch": sys.executable}
    try:
        torches["Debian's PyTorch"] = debian_torch()
    except (NotAvailable, Failed):
        pass  # its row has the reason
    models = cases.make(os.path.join(CACHE, "cases"), cases.Anomaly(program), find_images(os.path.join(a.tiles, "train", "good")),
                        find_images(os.path.join(a.tiles, "test")), torches)
    failed = False
    for model in models:
        print(f"{model.name}:")
        for what, ok, detail in checks(model.folder, BOUNDS["tensor"]):
            failed |= not ok
            print(f"  {'ok  ' if ok else 'FAIL'}  {what:<66} {detail}")

    rows = []
    for runtime in everything:
        for model in models:
            print(f"{runtime.name}: {model.name}", file=sys.stderr)
            rows.append(Row(runtime, model))
            failed |= rows[-1].failed
    print()
    print("\n".join(table([
        ["runtime", "model", "tensor", "PNG", "JPEG", ""],
        *([f"{r.runtime} {r.version}".strip(), r.model, *shown(r, "tensor", "PNG", "JPEG"), "; ".join(r.notes)] for r in rows),
    ])))
    print()
    print(NOTE.format(images=cases.IMAGES, missing=MISSING, **BOUNDS))

    decoders = []
    for m in models:
        judged = any(error != mse for error, _, mse in m.jpeg)
        least = [threshold for _, threshold, _ in m.jpeg] if judged else 1e-12
        decoders.append([m.name, f"{difference([row[0] for row in m.decoded], [row[0] for row in m.jpeg], least):.1e}", ""])
    print("\nThe contribution of the JPEG decoders: anomaly on the JPEG files, and on the pixels that Pillow decodes.\n")
    print("\n".join(table([["model", "difference", ""], *decoders])))

    older = [r for r in rows if "older" in r.differences]
    if older:
        print(f"\nThe same PNG and JPEG files, resized by Pillow before version 13, which always resizes the width first. Bound {BOUNDS['older']:.0e}.\n")
        print("\n".join(table([["runtime", "model", "difference", ""], *([f"{r.runtime} {r.version}", r.model, *shown(r, "older"), ""] for r in older)])))

    written = [r for r in rows if "written" in r.differences]
    if written:
        print(f"\nA .pt file written by PyTorch, scored by PyTorch and by anomaly detect. Bound {BOUNDS['written']:.0e}.\n")
        print("\n".join(table([["written by", "scored by", "difference", ""],
                               *([r.writer, f"{r.runtime} {r.version}", *shown(r, "written"), ""] for r in written)])))
    absent = ", ".join(dict.fromkeys(r.runtime for r in rows if not r.available))
    print(f"\n{'FAILED' if failed else 'All within bounds'}{absent and f', without {absent}'}, after {(time.monotonic() - start) / 60:.0f} minutes.")
    if a.json:
        with open(a.json, "w") as f:
            json.dump([vars(row) for row in rows], f, indent=2)
            f.write("\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
