#!/usr/bin/env bash
# deploy/ and the description of the API against a live server: Prometheus' own tools check metrics, rules and their
# tests; a real Prometheus scrapes the server and answers every query of the dashboard; schemathesis fuzzes every route.
#
#   scripts/test-deploy.sh path/to/scripted_server      (an example of crates/server, built by `cargo test`)
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
work=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
url="http://127.0.0.1:$port"
processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
fail() { echo "error: $1" >&2; exit 1; }
if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
fi
tools="$cache/schemathesis-venv/bin"
if ! [ -x "$tools/schemathesis" ]; then
  python3 -m venv "$cache/schemathesis-venv"
  "$tools/pip" install --quiet --disable-pip-version-check 'schemathesis==4.*'
fi

echo "== rules and their tests"
promtool check rules deploy/prometheus/alerts.yml
promtool check config deploy/prometheus/prometheus.yml >/dev/null
promtool test rules deploy/prometheus/alerts_test.yml

echo "== a live server"
"$binary" "$port" >"$work/server.log" 2>&1 &
processes+=($!)
for _ in $(seq 100); do curl --silent --fail "$url/ready" >/dev/null && break; sleep 0.1; done
body='{"model": "tiny", "prompt": "Once upon a time there was a server", "max_tokens": 8}'
for _ in 1 2 3; do curl --silent --fail "$url/v1/completions" -H 'Content-Type: application/json' -d "$body" >/dev/null; done

echo "== the exposition, by promtool"
# Colons belong to vLLM's names; everything else that promtool says is an error.
curl --silent --fail "$url/metrics" >"$work/metrics.txt"
promtool check metrics <"$work/metrics.txt" >"$work/lint.txt" 2>&1 || true
python3 - "$work/lint.txt" <<'PYTHON'
import sys
# vLLM's own names: with colons, and a histogram that ends like a counter.
given = ("metric names should not contain ':'", "vllm:iteration_tokens_total non-counter")
unknown = [line for line in open(sys.argv[1]) if line.strip() and not any(part in line for part in given)]
sys.exit("promtool objects:\n" + "".join(unknown) if unknown else 0)
PYTHON

echo "== a real Prometheus with the dashboard's queries"
prometheus_port=$((port + 1))
sed "s/firebrick:9090/127.0.0.1:$port/; s/interval: 5s/interval: 1s/" deploy/prometheus/prometheus.yml >"$work/prometheus.yml"
cp deploy/prometheus/alerts.yml "$work/"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --log.level=error \
  --web.listen-address="127.0.0.1:$prometheus_port" >"$work/prometheus.log" 2>&1 &
processes+=($!)
sleep 4
for _ in 1 2 3; do curl --silent --fail "$url/v1/completions" -H 'Content-Type: application/json' -d "$body" >/dev/null; done
sleep 3
python3 - "http://127.0.0.1:$prometheus_port" "$work/metrics.txt" <<'PYTHON'
import json, re, sys, urllib.parse, urllib.request

prometheus, metrics = sys.argv[1], open(sys.argv[2]).read()
families = set(re.findall(r"^# TYPE (\S+)", metrics, re.M))

def get(path):
    with urllib.request.urlopen(prometheus + path) as reply:
        return json.load(reply)["data"]

def known(name):
    return name in families or re.sub(r"_(bucket|sum|count)$", "", name) in families

dashboard = json.load(open("deploy/grafana/firebrick.json"))
queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
rules = [rule for group in get("/api/v1/rules")["groups"] for rule in group["rules"]]
asked = [query.replace("$model_name", "tiny").replace("$__rate_interval", "30s") for query in queries]
empty = 0
for query in asked + [rule["query"] for rule in rules]:
    names = re.findall(r"\b(?:vllm|firebrick)[:_]\w+|\bprocess_\w+", query)
    assert names or "up{" in query, query
    for name in names:
        assert known(name), f"{name} is not among the metrics: {query}"
for query in asked:
    empty += not get("/api/v1/query?" + urllib.parse.urlencode({"query": query}))["result"]
targets = get("/api/v1/targets")["activeTargets"]
assert [target["health"] for target in targets] == ["up"], targets
assert all(rule["health"] == "ok" for rule in rules), rules
firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
assert not firing, firing
assert empty <= 1, f"{empty} queries of the dashboard have no answer"
print(f"{len(asked)} queries of the dashboard, {len(rules)} rules, {len(families)} families, no alert")
PYTHON

echo "== schemathesis over /openapi.json"
# Ranges of numbers and limits that depend on the model are not part of the schema, so that valid bodies may be refused.
# In a folder of its own: it leaves notes where it runs.
fuzz() {
  (cd "$work" && HYPOTHESIS_STORAGE_DIRECTORY="$work/hypothesis" "$tools/schemathesis" run "$url/openapi.json" \
    --exclude-checks positive_data_acceptance --max-examples 20 --seed 1 --no-color)
}
fuzz >"$work/schemathesis.txt" 2>&1 || { cat "$work/schemathesis.txt"; fail "schemathesis found something"; }
grep -E 'generated,|Tested:' "$work/schemathesis.txt"

if command -v systemd-analyze >/dev/null; then
  echo "== the systemd unit"
  sed 's,/usr/local/bin/firebrick,/bin/true,' deploy/firebrick.service >"$work/firebrick.service"
  # What it says of other units is the machine's affair.
  problems=$(systemd-analyze verify "$work/firebrick.service" 2>&1 | grep firebrick || true)
  [ -z "$problems" ] || fail "$problems"
fi
echo "deploy: done"
