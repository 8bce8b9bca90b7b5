#!/usr/bin/env bash
# Builds the page and tests it in Chromium: with a real model on the processor (WebAssembly), where it is fast enough for
# conversations and the whole lesson; with a tiny model, from the hub and from folders, on a software WebGPU adapter that is
# lost again and again, and beside a running server that the page watches; and with the real model on the software adapter,
# where a token takes ten seconds. Five to seven minutes, once it is built.
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
# shellcheck disable=SC2086  # no folder is no argument
{
  node test/cpu.mjs "$root" $pictures
  node test/tiny.mjs "$root" "$binary" $pictures
  node test/webgpu.mjs "$root" $pictures
}
