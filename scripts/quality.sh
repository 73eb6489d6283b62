#!/bin/sh
# Measures detection quality with the program in bench/quality: `measure`, `quick`, `splits`
# and `ablation` on the data sets in DATASETS (folders with train/good, test/good and
# test/<defect>) and on the generated ones; `pictures` of one data set. Results are kept in
# .cache/quality, where an interrupted run continues. Further arguments are passed to the
# program.
set -eu
cd "$(dirname "$0")/.."
what=$1
shift
cache=.cache/quality
mkdir -p "$cache"
# -buildvcs=false: without the commit in it, the program changes only when its code does.
"${GO:-go}" build -buildvcs=false -trimpath -o "$cache/quality" ./bench/quality
case $what in
measure)
	. scripts/bench-venv.sh
	exec "$cache/quality" measure ${DATASETS:-} --generated "$cache" --out "$cache/rows.jsonl" "$@"
	;;
quick)
	exec "$cache/quality" measure ${DATASETS:-} --generated "$cache" --out "$cache/rows.jsonl" \
		--configurations 1@256 --brief --recipe '' --floors "$@"
	;;
splits | ablation)
	"$cache/quality" generate "$cache"
	exec "$cache/quality" "$what" ${DATASETS:-} "$cache/weave" "$cache/flange" "$cache/panel" --out "$cache/$what.jsonl" "$@"
	;;
*)
	exec "$cache/quality" "$what" "$@"
	;;
esac
