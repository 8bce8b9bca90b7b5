#!/usr/bin/env bash
# A real server on a real port with a real model, asked by curl and by the packages `openai` and `anthropic`.
#
#   scripts/test-server.sh path/to/firebrick
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
model=$(./scripts/fetch-models.sh smollm2 | tail -1)
port=$((20000 + RANDOM % 20000))
url="http://127.0.0.1:$port"
log=$(mktemp)

python="$cache/client-venv/bin/python"
if ! "$python" -c 'import anthropic, openai' 2>/dev/null; then
  python3 -m venv "$cache/client-venv"
  "$cache/client-venv/bin/pip" install --quiet --disable-pip-version-check anthropic openai
fi

"$binary" serve "$model" --served-model-name smollm2 --port "$port" --device cpu --max-model-len 2048 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 300); do
  curl --silent --fail "$url/ready" >/dev/null && break
  kill -0 "$server" 2>/dev/null || { cat "$log"; echo "error: the server ended" >&2; exit 1; }
  sleep 0.2
done

answer=$(curl --silent --fail "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "smollm2", "temperature": 0, "max_tokens": 16,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}')
echo "$answer" | grep -q 'The capital of France is Paris\.' || { echo "unexpected answer: $answer" >&2; exit 1; }
echo "curl: $(echo "$answer" | python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])')"

"$python" tests/python/openai_client.py "$url/v1" smollm2
"$python" tests/python/anthropic_client.py "$url" smollm2

kill -TERM "$server"
wait "$server" || { cat "$log"; echo "error: the server did not drain and exit with 0" >&2; exit 1; }
echo "drained on SIGTERM with exit code 0"
