#!/usr/bin/env bash
# Builds the page: static files in web-demo/page/dist that any web server can serve.
#
#   scripts/build-web.sh [model.gguf …]        models are linked into dist/models and listed there
#
# Build results are kept in ${FIREBRICK_WEB_TARGET:-~/.cache/firebrick/web/target}.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/web"
./scripts/install-web-tools.sh

toolchain=$(cat "$cache/toolchain")
export CARGO_TARGET_DIR="${FIREBRICK_WEB_TARGET:-$cache/target}" CARGO_TERM_COLOR=never
# shellcheck disable=SC2086  # an empty toolchain is no argument
(cd web-demo && cargo $toolchain build --release --quiet)
"$cache/tools/bin/wasm-bindgen" --target web --remove-name-section --remove-producers-section --out-dir web-demo/page/pkg \
  "$CARGO_TARGET_DIR/wasm32-unknown-unknown/release/firebrick_web.wasm"
(cd web-demo/page && npm run --silent build)

mkdir -p web-demo/page/dist/models
python3 - "$@" <<'PYTHON'
import hashlib, json, os, sys
folder = "web-demo/page/dist/models"
entries = []
for path in sys.argv[1:]:
    name = os.path.basename(path)
    link = os.path.join(folder, name)
    if os.path.lexists(link):
        os.remove(link)
    os.symlink(os.path.abspath(path), link)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    entries.append({"name": name, "file": "models/" + name, "bytes": os.path.getsize(path), "sha256": digest})
with open(os.path.join(folder, "models.json"), "w") as file:
    json.dump(entries, file, indent=1)
PYTHON
# Servers that can send compressed files find them beside the others.
for file in web-demo/page/dist/assets/*.wasm web-demo/page/dist/assets/*.js; do gzip -9 --keep --force --no-name "$file"; done
size=$(cat web-demo/page/dist/assets/*.wasm.gz | wc -c)
echo "web-demo/page/dist is built; its program has $size bytes compressed"
