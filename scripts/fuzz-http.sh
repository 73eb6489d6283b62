#!/bin/sh
# Sends REQUESTS requests to the HTTP service, which schemathesis generates from the OpenAPI
# document. pip installs schemathesis into .cache/venv-http; FUZZ_HTTP_PYTHON names a Python
# that has it already.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${FUZZ_HTTP_PYTHON:-}" ]; then
	FUZZ_HTTP_PYTHON=$(pwd)/.cache/venv-http/bin/python
	want='schemathesis==4.32.5'
	if [ "$(cat .cache/venv-http/ready 2>/dev/null)" != "$want" ]; then
		command -v python3 >/dev/null 2>&1 || {
			echo "python3 is not installed, but schemathesis needs it: install it, or set FUZZ_HTTP_PYTHON" >&2
			exit 1
		}
		rm -rf .cache/venv-http
		mkdir -p .cache
		python3 -m venv .cache/venv-http
		"$FUZZ_HTTP_PYTHON" -m pip install --quiet "$want"
		echo "$want" >.cache/venv-http/ready
	fi
fi
exec "$FUZZ_HTTP_PYTHON" scripts/fuzz_http.py bin/anomaly "${REQUESTS:-20000}"
