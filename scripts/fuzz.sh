#!/bin/sh
# Runs each fuzz target of the module for FUZZTIME. An interesting input is shortened by ten
# attempts: by default, one slow input would take up to a minute.
set -eu
cd "$(dirname "$0")/.."
targets=$(find . -name '*_test.go' -not -path './.*' -exec grep -HoE '^func Fuzz[A-Za-z0-9_]+' {} + | sed 's/:func / /')
if [ -z "$targets" ]; then
	echo "no fuzz targets"
	exit 0
fi
printf '%s\n' "$targets" | sort | while read -r file name; do
	echo "$name in $(dirname "$file") for ${FUZZTIME:-30s}"
	${GO:-go} test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-30s}" -fuzzminimizetime 10x "$(dirname "$file")" </dev/null
done
