"""Installs each runtime in its own folder, and starts its runner on a case.

Existing folders are reused: each has a copy of the file that pins its versions, and a marker that
the installation is complete, and is rebuilt when that file changes.
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
    """A tool is missing on this machine. The message says what to install."""


class Failed(Exception):
    """A runtime could not be installed, or its runner gave no answer."""


def call(command, timeout, **more):
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired:
        raise Failed(f"{os.path.basename(command[0])} took more than {timeout // MINUTES} minutes") from None
    if run.returncode:
        raise Failed(f"{os.path.basename(command[0])} ended with {run.returncode}: {last_line(run.stderr) or last_line(run.stdout)}")
    return run.stdout


def last_line(text):
    """Returns the last error line, or the last non-empty line: tools end with the location of their logs."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1]


def need(tool, how):
    found = shutil.which(tool)
    if not found:
        raise NotAvailable(f"{tool} is not installed; {how}")
    return found


def debian(packages, works):
    """Installs Debian packages, unless works() is true, if the machine permits it."""
    if works():
        return
    how = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotAvailable(f"needs {how}")
    print(f"installing {' '.join(packages)}: {how}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "update", "-qq"], 10 * MINUTES, env=environment)
    call(how.split(), 30 * MINUTES, env=environment)
    if not works():
        raise Failed(f"{how} succeeded, but the package does not work")


def installed(name, pins, install):
    """Returns the folder of a runtime, after install(folder), with a copy of the pins or of the runner's
    folder."""
    folder = os.path.join(CACHE, name)
    pins = os.path.join(HERE, pins)
    mark = os.path.join(folder, "ready")
    if not (os.path.exists(mark) and filecmp.cmp(mark, pins, shallow=False)):
        print(f"installing {name} in {os.path.relpath(folder)} (some minutes, once)", file=sys.stderr)
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
    """A row of the table: the command of its runner, the expected parts of the answer, and why other
    parts are not expected. plain: whether its errors are always mean squared errors."""

    def __init__(self, name, prepare, expected=("tensor", "image"), why="", limit=15 * MINUTES, plain=False):
        self.name, self.prepare, self.expected, self.why, self.limit, self.plain = name, prepare, expected, why, limit, plain
        self.command = None

    def run(self, case):
        """Returns the runner's answer for a case's folder."""
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
    """Returns Debian's Python, with its PyTorch: 1.13 on Debian 12."""

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

    folder = installed("opencv", "requirements-opencv.txt", install)
    return python(os.path.join(folder, "bin", "python"), "opencv_errors.py"), {}


def javascript():
    need("node", "install Node.js")
    npm = need("npm", "install Node.js with npm")
    # Without install scripts: onnxruntime-node's downloads CUDA libraries.
    install = [npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    return installed("javascript", "javascript/package.json", lambda folder: call(install, 15 * MINUTES, cwd=folder))


def node():
    return ["node", os.path.join(javascript(), "node.mjs")], {}


def web():
    folder = javascript()

    def browser():
        return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

    debian(["chromium"], browser)
    return ["node", os.path.join(folder, "web.mjs")], {"CHROMIUM": browser()}


def tract():
    cargo = need("cargo", "install Rust")
    folder = installed("tract", "tract/Cargo.toml", lambda folder: None)
    # Cargo rebuilds only what changed.
    call([cargo, "build", "--release", "--quiet"], 60 * MINUTES, cwd=folder)
    return [os.path.join(folder, "target", "release", "errors")], {}


def java():
    need("java", "install a JDK")
    maven = need("mvn", "install Maven")
    install = [maven, "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"]
    folder = installed("java", "java/pom.xml", lambda folder: call(install, 15 * MINUTES, cwd=folder))
    return ["java", "-cp", os.path.join(folder, "lib", "*"), os.path.join(folder, "Errors.java")], {}


def runtimes(anomaly):
    """Returns all runtimes in table order. anomaly: path of the program, for the import by onnx-go."""
    return [
        Runtime("PyTorch", here("torch_errors.py"), plain=True),
        Runtime("Debian's PyTorch", lambda: (python(debian_torch(), "torch_errors.py"), {}), plain=True),
        Runtime("predict.py, PyTorch", here("predict_errors.py"), plain=True),
        Runtime("predict.py, Debian's PyTorch", lambda: (python(debian_torch(), "predict_errors.py"), {}), expected=("tensor",), plain=True,
                why="its Pillow resizes differently; see the rows of Debian's PyTorch"),
        Runtime("ONNX Runtime for Python", here("onnxruntime_errors.py")),
        Runtime("ONNX Runtime for Node", node),
        Runtime("ONNX Runtime Web", web),
        Runtime("ONNX Runtime for Java", java),
        Runtime("OpenCV DNN", opencv, expected=("tensor",),
                why="its Resize treats the last two axes as height and width, and does not antialias"),
        Runtime("tract", tract, expected=("tensor",),
                why="its Resize truncates bytes instead of rounding"),
        Runtime("onnx-go into Gorgonia", lambda: (python(sys.executable, "gorgonia_errors.py"), {"ANOMALY": anomaly}),
                expected=("tensor",), why="autoencoder_image.onnx is not run: Gorgonia has no Resize"),
    ]
