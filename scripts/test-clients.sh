#!/usr/bin/env bash
# Real clients against the real binary: installs them into ~/.cache/firebrick/clients, once, and runs each.
#
#   scripts/test-clients.sh path/to/firebrick [client ...]
#
# Needs root or sudo for nginx and prometheus, where they are not there. Versions are fixed, so that a release of somebody
# else breaks nothing here; tests/clients/requirements.in says how to move them.
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
shift
folder="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/clients"
mkdir -p "$folder/node"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
command -v nginx >/dev/null || packages+=(nginx-light)
command -v prometheus >/dev/null || packages+=(prometheus)
command -v node >/dev/null || packages+=(nodejs npm)
command -v curl >/dev/null || packages+=(curl)
if [ "${#packages[@]}" -gt 0 ]; then
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# Installed again only when the list of packages changes, and then from nothing.
installed() { cmp --silent "$1" "$folder/$(basename "$1").installed"; }
done_with() { cp "$1" "$folder/$(basename "$1").installed"; }

if ! installed tests/clients/requirements.txt; then
  rm -rf "$folder/python"
  python3 -m venv "$folder/python"
  # The list is complete: nothing is to be resolved, and nothing else comes along.
  "$folder/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-compile --requirement tests/clients/requirements.txt
  # vLLM's source without its engine: 47 MB instead of ten gigabytes, enough for the client of `vllm bench serve`.
  VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=0.33.0 PYTHONPATH="$PWD/tests/clients/stand_in" "$folder/python/bin/pip" install \
    --quiet --disable-pip-version-check --no-deps --no-compile --no-build-isolation --no-binary vllm vllm==0.33.0
  done_with tests/clients/requirements.txt
fi
if ! installed tests/clients/package-lock.json; then
  cp tests/clients/package.json tests/clients/package-lock.json "$folder/node/"
  npm ci --prefix "$folder/node" --silent --no-audit --no-fund
  done_with tests/clients/package-lock.json
fi

python3 tests/clients/run.py "$binary" "$folder" "$@"
