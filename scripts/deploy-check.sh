#!/bin/sh
# Validates what is in deploy with the programs that read it: the compose files, NATS's and
# the proxy's configuration, Prometheus's with its alerts and their unit tests, the
# dashboard's expressions, and the Helm chart's manifests against the schemas of Kubernetes,
# KEDA and the Prometheus operator. They are fetched into .cache/deploy.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
kubernetes=1.37.0
tools=$PWD/.cache/deploy
bin=$tools/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$bin"

# install PACKAGE@VERSION NAME, outside of this module.
install() {
	[ -x "$bin/$2" ] && [ "$(cat "$bin/$2.version" 2>/dev/null)" = "$1" ] && return
	echo "building $2"
	mkdir -p "$work/bin"
	(cd "$work" && GOFLAGS=-trimpath GOBIN="$work/bin" CGO_ENABLED=0 $GO install "$1" 2>"$work/log") || {
		cat "$work/log" >&2
		return 1
	}
	mv "$work"/bin/* "$bin/$2"
	echo "$1" >"$bin/$2.version"
}
# module PATH VERSION prints its folder.
module() {
	(cd "$work" && $GO mod download -json "$1@$2") | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p'
}

install github.com/compose-spec/compose-go/v2/cmd@v2.16.2 compose
install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0 kubeconform
install helm.sh/helm/v3/cmd/helm@v3.22.0 helm
install github.com/prometheus/prometheus/cmd/promtool@v0.316.0 promtool
install github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9 caddy
schemas=$tools/kubernetes-$kubernetes
if [ ! -e "$schemas/ready" ]; then
	python3 -m venv "$work/venv"
	"$work/venv/bin/python" -m pip install --quiet --no-deps "kubernetes-validate==$kubernetes"
	rm -rf "$schemas"
	mkdir "$schemas"
	# Their references are to addresses; kubeconform reads files.
	python3 - "$work"/venv/lib/python*/site-packages/kubernetes_validate/kubernetes-json-schema/"v$kubernetes-local-strict" "$schemas" <<'EOF'
import json, pathlib, sys
for path in pathlib.Path(sys.argv[1]).glob("*.json"):
    text = path.read_text().replace('"/api/_definitions.json#', '"_definitions.json#')
    schema = json.loads(text)
    schema.pop("$id", None)
    (pathlib.Path(sys.argv[2]) / path.name).write_text(json.dumps(schema))
EOF
	touch "$schemas/ready"
fi

echo 'compose files'
deploy/secrets.sh "$work/secrets" >/dev/null 2>&1
"$bin/compose" deploy/compose.yaml >"$work/compose.yaml"
# DeepMed's definition of the service, as far as compose merges it.
cat >"$work/docker-compose.yml" <<'EOF'
services:
  anomaly-detection-service:
    build: {context: ., dockerfile: Dockerfile}
    ports: ["5029:5029"]
    restart: unless-stopped
    volumes: ["./service.py:/app/service.py"]
    shm_size: 4gb
    environment: [PORT=5029]
    networks: [deepmed-network]
networks:
  deepmed-network: {driver: bridge}
EOF
"$bin/compose" "$work/docker-compose.yml" deploy/compose.deepmed.yaml >"$work/deepmed.yaml"
for gone in service.py 'build:' shm_size; do
	if grep -q "$gone" "$work/deepmed.yaml"; then
		echo "deploy/compose.deepmed.yaml leaves $gone of the Python service" >&2
		exit 1
	fi
done
for kept in deepmed-network 'published: "5029"' 'target: 5029'; do
	grep -q "$kept" "$work/deepmed.yaml" || { echo "deploy/compose.deepmed.yaml loses $kept" >&2; exit 1; }
done

echo 'NATS and the proxy'
sed "s#/run/secrets/#$work/secrets/#; s#store_dir: /data#store_dir: $work/nats#" deploy/nats/nats.conf >"$work/nats.conf"
$GO run github.com/nats-io/nats-server/v2 --name nats-1 --config "$work/nats.conf" -t
"$bin/caddy" validate --adapter caddyfile --config deploy/caddy/Caddyfile 2>"$work/log" || { cat "$work/log" >&2; exit 1; }

echo 'Prometheus and the dashboard'
"$bin/promtool" check config --lint=all --lint-fatal deploy/prometheus/prometheus.yml
"$bin/promtool" test rules deploy/prometheus/alerts_test.yml
$GO run ./deploy/check rules deploy/grafana/dashboard.json >"$work/dashboard-rules.yml"
"$bin/promtool" check rules "$work/dashboard-rules.yml"

echo 'the Helm chart'
keda=$(module github.com/kedacore/keda/v2 v2.21.0)
operator=$(module github.com/prometheus-operator/prometheus-operator v0.85.0)
crd() { # FILE NAME
	$GO run ./deploy/check schema "$1" >"$work/$2.json"
}
crd "$keda/config/crd/bases/keda.sh_scaledobjects.yaml" scaledobject
crd "$operator/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml" podmonitor
crd "$operator/example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml" prometheusrule
chart=deploy/helm/anomaly
"$bin/helm" lint --strict --kube-version "$kubernetes" $chart -f $chart/ci/everything.yaml >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
for values in values.yaml ci/everything.yaml ci/prometheus.yaml; do
	"$bin/helm" template release $chart --kube-version "$kubernetes" -f "$chart/$values" 2>"$work/log" >"$work/manifests.yaml" || { cat "$work/log" >&2; exit 1; }
	echo "$values"
	"$bin/kubeconform" -strict -summary -schema-location "$schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json" \
		-schema-location "$work/{{ .ResourceKind }}.json" "$work/manifests.yaml"
done
for values in 'nats.url=' 'nats.certKey=a,nats.secret=b' 'nats.caKey=a'; do
	if "$bin/helm" template release $chart --kube-version "$kubernetes" --set "$values" >/dev/null 2>&1; then
		echo "the chart accepts $values" >&2
		exit 1
	fi
done
echo 'all of deploy is valid'
