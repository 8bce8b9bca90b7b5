#!/usr/bin/env bash
# Installs what building the page needs and the machine lacks: a Rust compiler for wasm32-unknown-unknown, wasm-bindgen in
# the version of web-demo/Cargo.lock, and the page's npm packages. With --compiler only the compiler; with --browser also
# Chromium, for the tests.
#
#   scripts/install-web-tools.sh [--compiler | --browser]
#
# Everything is kept in ${XDG_CACHE_HOME:-~/.cache}/firebrick/web. Its file `toolchain` then holds the argument that makes
# cargo compile for wasm: empty, or the name of a toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firebrick/web"
target=wasm32-unknown-unknown
mkdir -p "$cache/page"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# A toolchain out of Debian's packages, for machines whose rustup cannot download: Debian's own newest compiler, unpacked
# and not installed, and a standard library that it compiles once for wasm.
debian_toolchain() {
  local folder="$cache/toolchain-debian" usr library host std llvm package
  usr="$folder/usr"
  if [ ! -e "$folder/.done" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/debs" "$folder/build/src"
    as_root apt-get update -qq || true
    # The names carry versions: apt knows them.
    std=$(apt-cache depends libstd-rust-web-dev | sed -n 's/.*Depends: \(libstd-rust-web-1[.0-9]*\).*/\1/p' | head -1)
    llvm=$(apt-cache depends "$std" rustc-web | sed -n 's/.*Depends: \(libllvm[0-9]*\).*/\1/p' | head -1)
    (cd "$folder/debs" && apt-get download -qq rustc-web rust-web-src libstd-rust-web-dev "$std" "$llvm")
    for package in "$folder"/debs/*.deb; do
      case "$package" in
        */rust-web-src_*)
          dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$folder" --wildcards './usr/src/rustc-*/library/*' './usr/lib/rustlib/src/*' ;;
        *) dpkg-deb -x "$package" "$folder" ;;
      esac
    done
    # rustup looks for the compiler's own libraries in lib/.
    for library in "$usr"/lib/x86_64-linux-gnu/*.so* "$usr"/lib/llvm-*/lib/*.so*; do
      [ ! -e "$library" ] || ln -sfr "$library" "$usr/lib/$(basename "$library")"
    done
    if [ ! -e "$usr/lib/rustlib/src/rust/library/Cargo.toml" ]; then
      rm -rf "$usr/lib/rustlib/src/rust"
      ln -sr "$(ls -d "$usr"/src/rustc-*)" "$usr/lib/rustlib/src/rust"
    fi
    host=$(env -u RUSTUP_TOOLCHAIN rustc --print sysroot)
    mkdir -p "$usr/lib/rustlib/x86_64-unknown-linux-gnu/bin"
    ln -sf "$host/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld" "$usr/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"
    ln -sf "$host/bin/cargo" "$usr/bin/cargo"
    # An empty crate, so that every library made belongs to the standard library.
    printf '[package]\nname="empty"\nversion="0.0.0"\nedition="2021"\n[workspace]\n' > "$folder/build/Cargo.toml"
    : > "$folder/build/src/lib.rs"
    (cd "$folder/build" && env -u CARGO_TARGET_DIR LD_LIBRARY_PATH="$usr/lib" RUSTC="$usr/bin/rustc" RUSTC_BOOTSTRAP=1 \
      cargo build --quiet --release --target "$target" -Zbuild-std=std,panic_abort)
    mkdir -p "$usr/lib/rustlib/$target/lib"
    cp "$folder/build/target/$target/release/deps/"lib*.rlib "$usr/lib/rustlib/$target/lib/"
    rm -f "$usr/lib/rustlib/$target/lib/"libempty-*.rlib
    rm -rf "$folder/build" "$folder/debs"
    touch "$folder/.done"
  fi
  rustup toolchain link firebrick-wasm "$usr"
}

# A toolchain that is there already is kept, so that what it has compiled is not compiled again.
if [ ! -e "$cache/toolchain-debian/.done" ] &&
  { rustup target list --installed 2>/dev/null | grep -q "^$target" || timeout 120 rustup target add "$target" 2>/dev/null; }; then
  : > "$cache/toolchain"
else
  debian_toolchain
  echo "+firebrick-wasm" > "$cache/toolchain"
fi

[ "${1:-}" != --compiler ] || exit 0

version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' web-demo/Cargo.lock)
if [ "$("$cache/tools/bin/wasm-bindgen" --version 2>/dev/null)" != "wasm-bindgen $version" ]; then
  cargo install --quiet --debug --no-default-features --root "$cache/tools" wasm-bindgen-cli --version "$version"
fi

command -v npm >/dev/null || { echo "error: no npm; install Node.js 20 or newer" >&2; exit 1; }
if ! cmp -s web-demo/page/package-lock.json "$cache/page/package-lock.json" || [ ! -d "$cache/page/node_modules" ]; then
  cp web-demo/page/package.json web-demo/page/package-lock.json "$cache/page/"
  (cd "$cache/page" && npm ci --silent --no-audit --no-fund)
fi
# The packages lie outside the repository; Node follows the link.
ln -sfn "$cache/page/node_modules" web-demo/page/node_modules

if [ "${1:-}" = --browser ] && ! command -v chromium >/dev/null; then
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi
