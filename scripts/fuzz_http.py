"""Fuzzes a service from its OpenAPI document with schemathesis.

    python scripts/fuzz_http.py bin/anomaly 20000

starts the service on a free port of the loopback address, sends at least that many
requests, and fails if a response has status 500 or does not match the document, or
if the service exits, uses more than MAX_MB, or is unhealthy afterwards.
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

MAX_MB = 1024
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


def requests(metrics):
    return sum(v for k, v in metrics.items() if k.startswith("anomaly_http_requests_total"))


def main(binary, wanted):
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        log = open(os.path.join(folder, "log"), "w+")
        uploads = os.path.join(folder, "uploads")
        os.mkdir(uploads)
        service = subprocess.Popen(
            [binary, "serve", "--addr", "127.0.0.1:0", "--log-format", "json", "--temp-dir", uploads,
             "--models", os.path.join(folder, "models")], stderr=log)
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
            before = samples(get(url + "/metrics")[1])
            most = [resident(service.pid)]
            ended = threading.Event()

            def watch():
                while not ended.wait(0.5) and service.poll() is None:
                    most.append(resident(service.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            operations = sum(len(o) for o in json.loads(get(url + "/openapi.json")[1])["paths"].values())
            seed, sent, rounds = 1, 0, 0
            # One worker: Python 3.11 shares the AST recursion counter between threads, and the fuzzer,
            # which parses its own source, fails if two threads do so concurrently.
            while sent < wanted and rounds < 100 and not failures and service.poll() is None:
                examples = min(math.ceil((wanted - sent) / operations), 500)
                run = subprocess.run(
                    [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", url + "/openapi.json", "--url", url, "--checks", CHECKS, "-n", str(examples),
                     "--seed", str(seed), "--workers", "1", "--continue-on-failure", "--no-shrink", "--suppress-health-check", "all",
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
            by_status = {}
            for name, count in after.items():
                if name.startswith("anomaly_http_requests_total"):
                    code = re.search(r'status="(\d+)"', name)[1]
                    by_status[code] = by_status.get(code, 0) + int(count)
            if by_status.get("500") or after["anomaly_panics_total"]:
                failures.append(f"{by_status.get('500', 0)} responses with status 500, {after['anomaly_panics_total']:.0f} panics")
            if max(most) > MAX_MB:
                failures.append(f"the service used {max(most):.0f} MB, expected at most {MAX_MB}")
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
