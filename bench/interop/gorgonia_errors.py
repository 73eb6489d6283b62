"""The runner of `anomaly verify`: onnx-go reads autoencoder.onnx into a Gorgonia graph, which
Gorgonia's own machine computes. It is slow, so a few of the case's images have to do."""

import json
import os
import subprocess
import sys

FEW = 6

anomaly, folder = os.environ["ANOMALY"], sys.argv[1]
fitting = sorted(os.path.join(folder, "fitting", name) for name in os.listdir(os.path.join(folder, "fitting")))[:FEW]
run = subprocess.run([anomaly, "verify", os.path.join(folder, "model.zip"), *fitting, "--json"], capture_output=True, text=True)
try:
    found = json.loads(run.stdout)
except ValueError:
    sys.exit(run.stderr.strip() or f"{anomaly} verify printed no JSON")
errors = {os.path.abspath(i["file"]): i["gorgonia_error"] for i in found["images"]}
answer = {"version": "", "tensor": [errors[os.path.abspath(p)] for p in fitting], "problems": {}}
if not found["same_graph"]:
    answer["problems"]["tensor"] = "the graph that was read differs from the one that was written"
json.dump(answer, sys.stdout)
