#!/usr/bin/env bash
# Installs what building and testing need and the machine lacks. Debian and Ubuntu; needs root or sudo for packages.
set -euo pipefail

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

packages=()
command -v cc >/dev/null || packages+=(build-essential)
command -v python3 >/dev/null || packages+=(python3)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
command -v curl >/dev/null || packages+=(curl)
command -v npm >/dev/null || packages+=(nodejs npm)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
[ -e /usr/share/vulkan/icd.d/lvp_icd.x86_64.json ] || packages+=(mesa-vulkan-drivers libvulkan1)
if [ "${#packages[@]}" -gt 0 ]; then
  echo "installing ${packages[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# Renders what chat templates are compared with.
python3 -c 'import jinja2' 2>/dev/null || python3 -m pip install --quiet --break-system-packages jinja2 ||
  python3 -m pip install --quiet jinja2

command -v cargo >/dev/null || { echo "error: no cargo; install Rust (stable) from https://rustup.rs" >&2; exit 1; }
rustup component list --installed 2>/dev/null | grep -q '^clippy' || rustup component add clippy rustfmt
command -v cargo-nextest >/dev/null || cargo install --quiet cargo-nextest
