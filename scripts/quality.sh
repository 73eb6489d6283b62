#!/bin/sh
# Measures how well defects are found, by the program in bench/quality: `measure`, `quick`,
# `splits`, `ablation` on the data sets that DATASETS names (folders with train/good, test/good
# and test/<defect>) and on the drawn ones; `pictures` of one. What is measured is kept in
# .cache/quality, so that a run that was interrupted goes on from there. Further arguments go to
# the program.
set -eu
cd "$(dirname "$0")/.."
what=$1
shift
cache=.cache/quality
mkdir -p "$cache"
# Without the state of the repository in it, the program is another only when its code is.
"${GO:-go}" build -buildvcs=false -trimpath -o "$cache/quality" ./bench/quality
case $what in
measure)
	. scripts/bench-venv.sh
	exec "$cache/quality" measure ${DATASETS:-} --generated "$cache" --out "$cache/rows.jsonl" "$@"
	;;
quick)
	exec "$cache/quality" measure ${DATASETS:-} --generated "$cache" --out "$cache/rows.jsonl" \
		--configurations 1@128 --recipe '' --floors "$@"
	;;
splits | ablation)
	"$cache/quality" generate "$cache"
	exec "$cache/quality" "$what" ${DATASETS:-} "$cache/weave" "$cache/flange" "$cache/panel" --out "$cache/$what.jsonl" "$@"
	;;
*)
	exec "$cache/quality" "$what" "$@"
	;;
esac
