"""Holds models against the runtimes that their files are made for.

    python bench/interop/run.py --anomaly bin/anomaly --tiles testdata/tiles [--json FILE]

Trains and converts models, brings each runtime into .cache/interop, and prints one line for
each runtime and model: the largest relative difference of reconstruction_error from what
`anomaly detect --json` says, over 50 images. The columns:

    tensor   each runtime gives autoencoder.onnx (or autoencoder.pt) the same numbers, and anomaly
             reads them from PNG files of the network's size
    PNG      from files of odd sizes: autoencoder_image.onnx, given the decoded pixels, does all
             the rest; in PyTorch's lines it is Pillow that resizes
    JPEG     the same from JPEG files. Decoders differ: anomaly reads with Go's, the others are
             given what Pillow decodes

Exit status 1 where a difference is above its column's bound, where a runtime fails that is
expected to work, or where a check of the files fails.
"""

import argparse
import json
import os
import sys
import textwrap

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cases
from checks import checks, difference
from peer_train import find_images
from runtimes import CACHE, Failed, NotAvailable, debian_torch, runtimes

BOUNDS = {"tensor": 1e-5, "PNG": 1e-3, "JPEG": 5e-3, "written": 1e-5}
NOTE = """\
{images} images a model; the largest relative difference of reconstruction_error from anomaly
detect --json. Bounds: tensor {tensor:.0e} (the same numbers go in), PNG {PNG:.0e} (odd sizes,
resized by the runtime), JPEG {JPEG:.0e} (decoders differ: Go's in anomaly, Pillow's for all
others). {missing} where a runtime isn't expected to run the model that takes images."""
MISSING = "–"


class Row:
    """One runtime on one model."""

    def __init__(self, runtime, model):
        self.runtime, self.model = runtime.name, model.name
        self.version, self.differences, self.notes, self.failed = "", {}, [], False
        try:
            answer = runtime.run(model.folder)
        except NotAvailable as problem:
            self.notes.append(f"not available: {problem}")
            return
        except Failed as problem:
            self.failed = True
            self.notes.append(f"failed: {problem}")
            return
        self.version = answer["version"]
        for part, problem in answer["problems"].items():
            expected = part in runtime.expected or part == "written"
            self.failed |= expected
            self.notes.append(f"{'failed' if expected else 'not run'}, {part}: {problem}")
        self.hold("tensor", answer.get("tensor"), model.tensor, few="gorgonia" in runtime.name.lower())
        if model.written and "written" in answer:
            self.hold("written", answer["written"], model.written)
        if "image" in answer:
            n, verdicts = len(model.png), answer.get("anomalous")
            self.hold("PNG", answer["image"][:n], model.png, verdicts and verdicts[:n])
            self.hold("JPEG", answer["image"][n:], model.jpeg, verdicts and verdicts[n:])
        elif "image" in runtime.expected and "image" not in answer["problems"]:
            self.fail("no images in the answer")

    def fail(self, why):
        self.failed = True
        self.notes.append(f"FAIL: {why}")

    def hold(self, column, errors, wanted, verdicts=None, few=False):
        """Holds a runtime's errors, and its verdicts where it gives some, against detect's."""
        if errors is None:
            return
        if not errors or len(errors) != len(wanted) and not few:
            return self.fail(f"{column}: {len(errors)} errors for {len(wanted)} images")
        if few:
            self.notes.append(f"{len(errors)} images")
        wanted = wanted[:len(errors)]
        self.differences[column] = worst = difference(errors, [error for error, _ in wanted])
        # Written so that NaN fails.
        if not worst <= BOUNDS[column]:
            self.fail(f"{column} is above {BOUNDS[column]:.0e}")
        if verdicts is not None:
            # An error so near the threshold that the bound allows both verdicts decides nothing.
            wrong = [v for v, (e, t) in zip(verdicts, wanted, strict=True) if v != (e > t) and abs(e - t) > BOUNDS[column] * e]
            if wrong:
                self.fail(f"{column}: {len(wrong)} verdicts differ")


def table(rows):
    """The rows as lines of aligned columns. A long note goes on below itself."""
    cells = [["runtime", "model", "tensor", "PNG", "JPEG", "note"]]
    for row in rows:
        cells.append([
            f"{row.runtime} {row.version}".strip(), row.model,
            *(f"{row.differences[c]:.1e}" if c in row.differences else MISSING for c in ("tensor", "PNG", "JPEG")),
            "; ".join(row.notes),
        ])
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    indent = sum(widths) + 2 * len(widths)
    for line in cells:
        start = "  ".join(cell.ljust(w) for cell, w in zip(line, widths))
        note = textwrap.wrap(line[5], 100) or [""]
        yield f"{start}  {note[0]}".rstrip()
        yield from (" " * indent + more for more in note[1:])


def main():
    p = argparse.ArgumentParser(description="hold models against the runtimes that their files are made for")
    p.add_argument("--anomaly", default="bin/anomaly")
    p.add_argument("--tiles", default="testdata/tiles", help="folder with train/good and test")
    p.add_argument("--json", metavar="FILE", help="writes the rows there, too")
    p.add_argument("--only", metavar="NAME", help="runtimes whose name holds this, in any letter case")
    a = p.parse_args()
    program = os.path.abspath(a.anomaly)

    print("training and converting models", file=sys.stderr)
    torches = {"PyTorch": sys.executable}
    try:
        torches["Debian's PyTorch"] = debian_torch()
    except (NotAvailable, Failed):
        pass  # its row says why
    models = cases.make(os.path.join(CACHE, "cases"), cases.Anomaly(program), find_images(os.path.join(a.tiles, "train", "good")),
                        find_images(os.path.join(a.tiles, "test")), torches)
    failed = False
    for model in models:
        print(f"{model.name}:")
        for what, ok, detail in checks(model.folder, BOUNDS["tensor"]):
            failed |= not ok
            print(f"  {'ok  ' if ok else 'FAIL'}  {what:<66} {detail}")

    rows = []
    for runtime in runtimes(program):
        if (a.only or "").lower() not in runtime.name.lower():
            continue
        for model in models:
            print(f"{runtime.name}: {model.name}", file=sys.stderr)
            rows.append(Row(runtime, model))
            failed |= rows[-1].failed
    print()
    print("\n".join(table(rows)))
    print()
    print(NOTE.format(images=cases.IMAGES, missing=MISSING, **BOUNDS))
    for row in rows:
        if "written" in row.differences:
            print(f"the .pt as {row.model.rsplit(' ', 1)[0]} wrote it, {row.runtime} {row.version} and anomaly: {row.differences['written']:.1e}")
    if a.json:
        with open(a.json, "w") as f:
            json.dump([vars(row) for row in rows], f, indent=2)
            f.write("\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
