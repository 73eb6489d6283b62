"""Fuzzes a service from its OpenAPI document with schemathesis.

    python scripts/fuzz_http.py bin/anomaly 20000

starts the service on a free port of the loopback address, sends at least that many
requests, and fails if a response has status 500 or does not match the document, or
if the service exits, uses more than MAX_MB, or is unhealthy afterwards. It also fails
if an endpoint was not reached, if one that needs no image never succeeded, or if more
jobs are left than the service may keep.

In every second round, the parameters of paths are the names and ids of a model, a job, a
version and an image of the feedback that exist, and nothing is removed. The other rounds
generate them.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import fuzz_seed

MAX_MB = 1024
MAX_JOBS = 4
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,"
          "response_headers_conformance,response_schema_conformance,unsupported_method,missing_required_header")


def get(url):
    """Returns the status and the text of a response."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text):
    """Returns the samples of /metrics by name and labels."""
    return {m[1]: float(m[2]) for m in re.finditer(r"^([^#\s]\S*) (\S+)$", text, re.M)}


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


def answered(metrics):
    """Returns the number of requests by method, route and status."""
    found = {}
    for name, count in metrics.items():
        if name.startswith("anomaly_http_requests_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            found[labels["method"], labels["route"], int(labels["status"])] = int(count)
    return found


def uncovered(found, description):
    """Returns a sentence for each endpoint that was not reached, or must succeed and never did."""
    failures = []
    for path, methods in description["paths"].items():
        route = re.sub(r"{(\w+)}", r":\1", path)
        for method in methods:
            statuses = [s for (m, r, s) in found if (m, r) == (method.upper(), route)]
            if not statuses:
                failures.append(f"{method.upper()} {path} was not reached")
            elif not any(s < 400 for s in statuses) and fuzz_seed.must_succeed(method, path):
                failures.append(f"{method.upper()} {path} never succeeded: {sorted(set(statuses))}")
    return failures


def requests(metrics):
    return sum(v for k, v in metrics.items() if k.startswith("anomaly_http_requests_total"))


def main(binary, wanted):
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        log = open(os.path.join(folder, "log"), "w+")
        uploads, data = os.path.join(folder, "uploads"), os.path.join(folder, "data")
        os.mkdir(uploads)
        service = subprocess.Popen(
            [binary, "serve", "--addr", "127.0.0.1:0", "--log-format", "json", "--temp-dir", uploads,
             "--data", data, "--max-jobs", str(MAX_JOBS), "--max-job-bytes", str(1 << 30),
             "--max-train-time", "20s", "--versions", "3", "--max-feedback", "20", "--max-models", "50"], stderr=log)
        try:
            url = None
            for _ in range(600):
                with open(log.name) as lines:
                    found = re.search(r'"msg":"listening","address":"([^"]+)"', lines.read())
                if found:
                    url = "http://" + found[1]
                    break
                time.sleep(0.1)
            if url is None:
                sys.exit("the service is not listening: " + open(log.name).read())
            seeds = fuzz_seed.Seeds(url)
            seeds.plant()
            before = samples(get(url + "/metrics")[1])
            most = [resident(service.pid)]
            ended = threading.Event()

            def watch():
                while not ended.wait(0.5) and service.poll() is None:
                    most.append(resident(service.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            description = json.loads(get(url + "/openapi.json")[1])
            operations = sum(len(o) for o in description["paths"].values())
            seed, sent, rounds = 1, 0, 0
            # One worker: Python 3.11 shares the AST recursion counter between threads, and the fuzzer,
            # which parses its own source, fails if two threads do so concurrently.
            while (sent < wanted or rounds < 2) and rounds < 100 and not failures and service.poll() is None:
                # Both kinds of rounds take place, however few requests are wanted.
                examples = max(1, min(math.ceil((wanted - sent) / operations / 2), 500))
                options, own = [], []
                if rounds % 2:
                    seeds.plant()
                    config = os.path.join(folder, "seeded.toml")
                    with open(config, "w") as file:
                        file.write(seeds.config(description))
                    options, own = ["--config-file", config], ["--exclude-method", "DELETE"]
                run = subprocess.run(
                    [os.path.join(os.path.dirname(sys.executable), "schemathesis"), *options, "run", url + "/openapi.json", "--url", url,
                     "--checks", CHECKS, "-n", str(examples), *own, "--seed", str(seed), "--workers", "1", "--continue-on-failure", "--no-shrink", "--suppress-health-check", "all",
                     "--request-timeout", "60", "--warnings", "off"],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
                if run.returncode != 0:
                    failures.append("schemathesis:\n" + run.stdout[-8000:])
                seed, rounds = seed + 1, rounds + 1
                if service.poll() is None:
                    sent = int(requests(samples(get(url + "/metrics")[1])) - requests(before))
                    print(f"round {rounds}: {sent} requests, {resident(service.pid):.0f} MB", flush=True)
            ended.set()
            watcher.join()
            if service.poll() is not None:
                sys.exit(f"the service exited with {service.returncode}: " + open(log.name).read()[-4000:])
            after = samples(get(url + "/metrics")[1])
            status, health = get(url + "/health")
            if status != 200 or json.loads(health)["status"] != "healthy":
                failures.append(f"/health after the test: status {status}: {health}")
            found, by_status = answered(after), {}
            for (_, _, code), count in found.items():
                by_status[str(code)] = by_status.get(str(code), 0) + count
            if not failures:  # else rounds are missing
                failures += uncovered(found, description)
            kept = sum(v for k, v in after.items() if k.startswith("anomaly_jobs{"))
            if kept > MAX_JOBS:
                failures.append(f"{kept:.0f} jobs are kept, expected at most {MAX_JOBS}")
            if by_status.get("500") or after["anomaly_panics_total"]:
                failures.append(f"{by_status.get('500', 0)} responses with status 500, {after['anomaly_panics_total']:.0f} panics")
            if max(most) > MAX_MB:
                failures.append(f"the service used {max(most):.0f} MB, expected at most {MAX_MB}")
            temporary = [name for _, _, names in os.walk(data) for name in names if name.startswith(".anomaly-")]
            if temporary:
                failures.append(f"temporary files are left: {temporary}")
            kept = sum(len(files) for _, _, files in os.walk(uploads))
            if kept:
                failures.append(f"{kept} uploads left")
            print(f"{sent} requests; by status {dict(sorted(by_status.items()))}; memory {most[0]:.0f} MB before, {max(most):.0f} at most, "
                  f"{resident(service.pid):.0f} after; goroutines {before['go_goroutines']:.0f} before, {after['go_goroutines']:.0f} after")
        finally:
            service.send_signal(signal.SIGTERM)
            if service.wait(60) != 0:
                failures.append(f"the service exited with {service.returncode}")
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
