#!/usr/bin/env bash
# Builds the page and tests it in Chromium: with a real model on the processor (WebAssembly), where it is fast enough for
# conversations and the whole lesson; with a tiny model, from the hub and from folders, on a software WebGPU adapter that is
# lost again and again, and beside a running server that the page watches; and with the real model on the software adapter,
# where a token takes ten seconds. Some minutes, once it is built.
#
#   scripts/test-web.sh path/to/firebrick [FOLDER FOR SCREENSHOTS]
#
# LOSSES says how often the adapter is lost (5).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: scripts/test-web.sh path/to/firebrick [FOLDER FOR SCREENSHOTS]" >&2; exit 2; }
binary=$(realpath "$1")
pictures=${2:+$(realpath "$2")}
./scripts/install-web-tools.sh --browser
./scripts/build-web.sh "$(./scripts/fetch-models.sh smollm2 | tail -1)"
root=$PWD
cd web-demo/page
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Most of the time one core is at work: compiling shaders, and the model on one core. So the tiny model beside the others.
node test/tiny.mjs "$root" "$binary" ${pictures:+"$pictures"} >"$work/tiny" 2>&1 &
tiny=$!
failed=""
node test/cpu.mjs "$root" ${pictures:+"$pictures"} || failed+=" cpu.mjs"
node test/webgpu.mjs "$root" ${pictures:+"$pictures"} || failed+=" webgpu.mjs"
wait "$tiny" || failed+=" tiny.mjs"
cat "$work/tiny"
[ -z "$failed" ] || { echo "FAILED:$failed" >&2; exit 1; }
