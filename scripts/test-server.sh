#!/usr/bin/env bash
# A real server on a real port with a real model, asked by curl and by the packages `openai` and `anthropic`; and one whose
# pool is too small, asked for a hundred answers that must follow a JSON schema.
#
#   scripts/test-server.sh path/to/firebrick
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
model=$(./scripts/fetch-models.sh smollm2 | tail -1)
python="$cache/client-venv/bin/python"
if ! "$python" -c 'import anthropic, jsonschema, openai' 2>/dev/null; then
  python3 -m venv "$cache/client-venv"
  "$cache/client-venv/bin/pip" install --quiet --disable-pip-version-check anthropic jsonschema openai
fi

log=$(mktemp)
server=
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT

# Starts a server of the model with these flags, and waits until it is ready; its address is in $url.
start() {
  local port=$((20000 + RANDOM % 20000))
  url="http://127.0.0.1:$port"
  "$binary" serve "$model" --served-model-name smollm2 --port "$port" --device cpu "$@" >"$log" 2>&1 &
  server=$!
  for _ in $(seq 300); do
    curl --silent --fail "$url/ready" >/dev/null && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
  done
  cat "$log"
  echo "error: the server is not ready" >&2
  exit 1
}

# Ends it, as an operator would.
drain() {
  kill -TERM "$server"
  wait "$server" || { cat "$log"; echo "error: the server did not drain and exit with 0" >&2; exit 1; }
  echo "drained on SIGTERM with exit code 0"
}

start --max-model-len 2048
answer=$(curl --silent --fail "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "smollm2", "temperature": 0, "max_tokens": 16,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}')
echo "$answer" | grep -q 'The capital of France is Paris\.' || { echo "unexpected answer: $answer" >&2; exit 1; }
echo "curl: $(echo "$answer" | python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])')"

"$python" tests/python/openai_client.py "$url/v1" smollm2
"$python" tests/python/anthropic_client.py "$url" smollm2

drain

start --max-model-len 512 --num-gpu-blocks-override 40
"$python" tests/python/structured_answers.py "$url/v1" smollm2
drain
