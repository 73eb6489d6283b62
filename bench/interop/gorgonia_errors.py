"""The runner of `anomaly verify`: onnx-go reads autoencoder.onnx into a Gorgonia graph, which runs on
Gorgonia's tape machine."""

import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def version():
    with open(os.path.join(HERE, "..", "..", "go.mod")) as f:
        pins = dict(re.findall(r"^\s*(?:require )?(\S+) v(\S+)", f.read(), re.MULTILINE))
    return f"{pins['gorgonia.org/gorgonia']} (onnx-go {pins['github.com/owulveryck/onnx-go']})"


anomaly, folder = os.environ["ANOMALY"], sys.argv[1]
fitting = sorted(os.path.join(folder, "fitting", name) for name in os.listdir(os.path.join(folder, "fitting")))
run = subprocess.run([anomaly, "verify", os.path.join(folder, "model.zip"), *fitting, "--json"], capture_output=True, text=True)
try:
    found = json.loads(run.stdout)
except ValueError:
    sys.exit(run.stderr.strip() or f"{anomaly} verify printed no JSON")
errors = {os.path.abspath(i["file"]): i["gorgonia_error"] for i in found["images"]}
answer = {"version": version(), "tensor": [errors[os.path.abspath(p)] for p in fitting], "problems": {}}
if not found["same_graph"]:
    answer["problems"]["tensor"] = "the imported graph differs from the exported one"
json.dump(answer, sys.stdout)
