"""What fuzz_http.py stores in a service, so that requests below a model or a job can succeed."""

import io
import json
import os
import re
import time
import urllib.request
import uuid
import zipfile

TILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "testdata", "tiles", "train", "good")
NAME = "seeded"
# The time limit of the training of the seed, in seconds.
TRAINING = 300


def must_succeed(method, path):
    """Reports whether an operation must succeed once in the rounds with seeds.

    A form with a file cannot: the fuzzer generates no images and no zips."""
    if path.startswith("/v2/") or method in ("delete", "put"):
        return False
    return method in ("get", "patch") or path.endswith(("/restore", "/reset"))


def call(method, url, body=None, kind=None):
    """Returns the text of a response, which must be a success."""
    request = urllib.request.Request(url, data=body, method=method, headers={"Content-Type": kind} if kind else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def form(*parts):
    """Returns the body of a form and its content type. Values are text or bytes."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            head += '; filename="file"'
        else:
            value = value.encode()
        body += head.encode() + b"\r\n\r\n" + value + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), "multipart/form-data; boundary=" + boundary


def tiles(n):
    """Returns the first image files of the normal tiles."""
    names = sorted(name for name in os.listdir(TILES) if name.endswith(".jpg"))[:n]
    for name in names:
        with open(os.path.join(TILES, name), "rb") as file:
            yield name, file.read()


class Seeds:
    """A stored model with feedback and two versions, and the job that has trained it."""

    def __init__(self, url):
        self.url = url
        self.job = self.version = self.image = None
        self.file = re.search(r'"\.?/?page/([^"]+)"', call("GET", url + "/"))[1]

    def plant(self):
        """Stores what is missing, or was removed by the requests of a round."""
        kept = json.loads(call("GET", self.url + "/jobs"))["jobs"]
        names = [m["name"] for m in json.loads(call("GET", self.url + "/models"))["models"]]
        if NAME not in names or self.job not in [j["id"] for j in kept]:
            self.job = self.train()
        model = self.url + "/models/" + NAME
        call("PATCH", model, b'{"threshold": 1, "note": "seed"}', "application/json")
        self.version = json.loads(call("GET", model + "/versions"))["versions"][-1]["sha256"]
        for _, image in tiles(1):
            self.image = json.loads(call("POST", model + "/feedback", *form(("imageFile", image), ("label", "normal"))))["id"]

    def train(self):
        """Trains the model as a job, and returns the job's id."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, image in tiles(12):
                archive.writestr(name, image)
        parts = ("zipFile", packed.getvalue()), ("level", "1"), ("image_size", "32"), ("name", NAME)
        job = json.loads(call("POST", self.url + "/jobs", *form(*parts)))
        deadline = time.monotonic() + TRAINING
        while job["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise SystemExit(f"the job of the seed is {job['state']} after {TRAINING} seconds")
            time.sleep(0.2)
            job = json.loads(call("GET", self.url + "/jobs/" + job["id"]))
        if job["state"] != "succeeded":
            raise SystemExit(f"the job of the seed: {job}")
        return job["id"]

    def config(self, description):
        """Returns the fuzzer's configuration with the values of parameters in paths."""
        lines = []
        for path in description["paths"]:
            own = {"name": NAME, "sha256": self.version, "version": "1",
                   "file": self.file,
                   "id": self.job if path.startswith("/jobs/") else self.image}
            values = [f'"path.{key}" = "{value}"' for key, value in own.items() if "{" + key + "}" in path]
            if values:
                lines += ["[[operations]]", f'include-path = "{path}"', "parameters = { " + ", ".join(values) + " }", ""]
        return "\n".join(lines)
