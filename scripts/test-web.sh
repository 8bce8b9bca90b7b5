#!/usr/bin/env bash
# Builds the page and tests it in Chromium with a real model: on the processor (WebAssembly), where it is fast enough for
# conversations and the whole lesson, and on a software WebGPU adapter, where answers are short.
#
#   scripts/test-web.sh [FOLDER FOR SCREENSHOTS]
set -euo pipefail
cd "$(dirname "$0")/.."
pictures=${1:+$(realpath "$1")}
./scripts/install-web-tools.sh --browser
./scripts/build-web.sh "$(./scripts/fetch-models.sh smollm2 | tail -1)"
cd web-demo/page
node test/cpu.mjs "$PWD/../.." $pictures
node test/webgpu.mjs "$PWD/../.." $pictures
