"""Brings each runtime into a folder of its own, and starts its runner on a case.

What is there already is used again: each folder keeps the file that pins its versions, beside
a mark that it is complete, and is made anew when that file changes.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.path.abspath(os.path.join(HERE, "..", "..", ".cache", "interop"))
MINUTES = 60


class NotAvailable(Exception):
    """A tool that this machine does not have. It says what to install."""


class Failed(Exception):
    """A runtime that could not be brought, or whose runner gave no answer."""


def call(command, timeout, **more):
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise Failed(f"{os.path.basename(command[0])} took more than {timeout // MINUTES} minutes") from None
    if run.returncode:
        raise Failed(f"{os.path.basename(command[0])} ended with {run.returncode}: {last_line(run.stderr) or last_line(run.stdout)}")
    return run.stdout


def last_line(text):
    """The last line that says something: the tools end with advice on where their logs are."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]


def need(tool, how):
    found = shutil.which(tool)
    if not found:
        raise NotAvailable(f"{tool} is not installed; {how}")
    return found


def debian(packages, works):
    """Installs Debian's packages where that is possible and works() does not hold."""
    if works():
        return
    how = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotAvailable(f"needs {how}")
    print(f"bringing {' '.join(packages)}: {how}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "update", "-qq"], 10 * MINUTES, env=environment)
    call(how.split(), 30 * MINUTES, env=environment)
    if not works():
        raise Failed(f"{how} was run, and it is still not there")


def bring(name, pins, install):
    """The folder of a runtime, with a copy of the runner's own folder or pins, as install(folder)
    leaves it."""
    folder = os.path.join(CACHE, name)
    pins = os.path.join(HERE, pins)
    mark = os.path.join(folder, "ready")
    if not (os.path.exists(mark) and filecmp.cmp(mark, pins, shallow=False)):
        print(f"bringing {name} into {os.path.relpath(folder)} (some minutes, once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        shutil.copy(pins, folder)
        install(folder)
        shutil.copy(pins, mark)
    if os.path.dirname(os.path.relpath(pins, HERE)):
        shutil.copytree(os.path.dirname(pins), folder, dirs_exist_ok=True)
    return folder


def python(executable, script):
    return [executable, os.path.join(HERE, script)]


class Runtime:
    """A row of the table: how its runner is started, what it is expected to answer, and why it
    is not expected to answer the rest. plain: whether its errors are the network's own, the mean
    squared ones, of any model."""

    def __init__(self, name, prepare, expected=("tensor", "image"), why="", limit=15 * MINUTES, plain=False):
        self.name, self.prepare, self.expected, self.why, self.limit, self.plain = name, prepare, expected, why, limit, plain
        self.command = None

    def run(self, case):
        """The runner's answer on a case's folder."""
        if self.command is None:
            try:
                self.command = self.prepare()
            except (NotAvailable, Failed) as problem:
                self.command = problem
        if isinstance(self.command, Exception):
            raise self.command
        command, environment = self.command
        output = call([*command, case], self.limit, env={**os.environ, **environment})
        try:
            return json.loads(output)
        except ValueError:
            raise Failed(f"{os.path.basename(command[0])} printed no JSON: {output[:80]!r}") from None


def here(script):
    return lambda: (python(sys.executable, script), {})


DEBIAN_PYTHON = "/usr/bin/python3"


def debian_torch():
    """Debian's own Python with its PyTorch: 1.13 on Debian 12."""

    def works():
        check = [DEBIAN_PYTHON, "-c", "import torch, PIL, numpy"]
        return os.path.exists(DEBIAN_PYTHON) and subprocess.run(check, stderr=subprocess.DEVNULL).returncode == 0

    debian(["python3-torch", "python3-pil", "python3-numpy"], works)
    return DEBIAN_PYTHON


def opencv():
    def install(folder):
        call([sys.executable, "-m", "venv", folder], 5 * MINUTES)
        pip = [os.path.join(folder, "bin", "python"), "-m", "pip"]
        call([*pip, "install", "--quiet", "--only-binary=:all:", "-r", os.path.join(folder, "requirements-opencv.txt")], 15 * MINUTES)

    folder = bring("opencv", "requirements-opencv.txt", install)
    return python(os.path.join(folder, "bin", "python"), "opencv_errors.py"), {}


def javascript():
    need("node", "bring Node.js")
    npm = need("npm", "bring Node.js with npm")
    # Without the packages' scripts: onnxruntime-node's would bring CUDA's libraries.
    install = [npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    return bring("javascript", "javascript/package.json", lambda folder: call(install, 15 * MINUTES, cwd=folder))


def node():
    return ["node", os.path.join(javascript(), "node.mjs")], {}


def web():
    folder = javascript()

    def browser():
        return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

    debian(["chromium"], browser)
    return ["node", os.path.join(folder, "web.mjs")], {"CHROMIUM": browser()}


def tract():
    cargo = need("cargo", "bring Rust")
    folder = bring("tract", "tract/Cargo.toml", lambda folder: None)
    # Cargo knows by itself what is to be compiled again.
    call([cargo, "build", "--release", "--quiet"], 60 * MINUTES, cwd=folder)
    return [os.path.join(folder, "target", "release", "errors")], {}


def java():
    need("java", "bring a JDK")
    maven = need("mvn", "bring Maven")
    install = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"]
    folder = bring("java", "java/pom.xml", lambda folder: call(install, 15 * MINUTES, cwd=folder))
    return ["java", "-cp", os.path.join(folder, "lib", "*"), os.path.join(folder, "Errors.java")], {}


def runtimes(anomaly):
    """All of them, in the table's order. anomaly: the program, for the reading by onnx-go."""
    return [
        Runtime("PyTorch", here("torch_errors.py"), plain=True),
        Runtime("Debian's PyTorch", lambda: (python(debian_torch(), "torch_errors.py"), {}), plain=True),
        Runtime("predict.py, PyTorch", here("predict_errors.py"), plain=True),
        Runtime("predict.py, Debian's PyTorch", lambda: (python(debian_torch(), "predict_errors.py"), {}), expected=("tensor",), plain=True,
                why="its Pillow resizes otherwise, which the lines of Debian's PyTorch hold"),
        Runtime("ONNX Runtime for Python", here("onnxruntime_errors.py")),
        Runtime("ONNX Runtime for Node", node),
        Runtime("ONNX Runtime Web", web),
        Runtime("ONNX Runtime for Java", java),
        Runtime("OpenCV DNN", opencv, expected=("tensor",),
                why="its Resize takes the last two axes for height and width, and doesn't antialias"),
        Runtime("tract", tract, expected=("tensor",),
                why="its Resize takes bytes but cuts its results off where all others round them"),
        Runtime("onnx-go into Gorgonia", lambda: (python(sys.executable, "gorgonia_errors.py"), {"ANOMALY": anomaly}),
                expected=("tensor",), why="not given the file that takes images: Gorgonia has no Resize"),
    ]
