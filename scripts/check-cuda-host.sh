#!/usr/bin/env bash
# Runs everything around the CUDA kernels where there is no GPU, on a driver that runs no kernels (tests/null_cuda): small
# models with random weights, prompts, decode steps of one to 200 sequences as recorded graphs; a real model as on older
# cards, and twice in one process; and with kernels that were built ahead, where nothing can be compiled. Kernels are
# compiled as they are asked for, launches are checked against what an H200 grants. What tokens come out says nothing.
#
#   scripts/check-cuda-host.sh path/to/firebrick [COMMAND...]
#
# COMMAND runs tests that need no results of kernels: it, too, finds the driver and the compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
binary="$1"
# Burn's own kernels include headers of the toolkit.
compiler=$(./scripts/fetch-cuda-compiler.sh)
model=$(./scripts/fetch-models.sh smollm2 | tail -1)

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cc -shared -fPIC -O1 -w -o "$work/libcuda.so" tests/null_cuda/driver.c
cc -shared -fPIC -O1 -w -o "$work/libcublasLt.so" tests/null_cuda/cublaslt.c
mkdir -p "$work/cache" "$work/none"

fail() {
  cat "$work/log"
  echo "error: $*" >&2
  exit 1
}
# Firebrick with this compiler (a folder) and these arguments, on the driver.
with() {
  CUDA_PATH="$1" LD_LIBRARY_PATH="$work:$1/lib" XDG_CACHE_HOME="$work/cache" NULL_CUDA_MEMORY="$work/memory" \
    "$binary" "${@:2}" >"$work/log" 2>&1
}
granted() { ! grep "null CUDA driver" "$work/log" || fail "$* asks the driver for what a GPU does not grant"; }

# suite OPTION...: every load of every model must end, the driver must have nothing to say, and memory must be as planned: 0.9 of
# 20 GiB, recorded steps and everything else included, and 1.5 % that allocators leave unused.
suite() {
  with "$compiler" bench suite --device cuda --workloads tests/null_cuda/workloads.json --max-num-batched-tokens 2048 "$@" ||
    fail "bench suite $* failed without a GPU"
  granted bench suite "$@"
  [ "$(grep -c 'output tok/s' "$work/log")" = 18 ] || fail "bench suite $* left loads out"
  [ "$(cat "$work/memory")" -le 18708 ] || fail "bench suite $* takes $(cat "$work/memory") MiB instead of 18432"
}
[ $# = 1 ] || CUDA_PATH="$compiler" LD_LIBRARY_PATH="$work:$compiler/lib" FIREBRICK_TEST_BACKENDS=cuda "${@:2}" >"$work/log" 2>&1 ||
  fail "${*:2} fails without a GPU"
[ $# = 1 ] || ! grep -q "ok. 0 passed" "$work/log" || fail "${*:2} runs no test"
suite
suite --enforce-eager
suite --deterministic
suite --kv-cache-dtype fp8
suite --quantization fp8

# some COMPILER OPTION...: a few requests to the real model.
some() {
  with "$1" bench throughput "$model" --device cuda --input-len 50 --output-len 8 --num-prompts 40 "${@:2}"
}
for architecture in sm_75 sm_80; do
  some "$compiler" --cuda-arch-path "$architecture" || fail "the real model does not run as on $architecture"
  granted "--cuda-arch-path $architecture"
done

# Two models in one process, whose steps are recorded while the other's are recorded and run.
CUDA_PATH="$compiler" LD_LIBRARY_PATH="$work:$compiler/lib" XDG_CACHE_HOME="$work/cache" \
  "$binary" serve "$model" "$model" --served-model-name one two --device cuda --port 0 >"$work/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
address=""
until curl --silent --fail "$address/v1/models" | grep -q '"two"'; do
  kill -0 "$server" 2>/dev/null || fail "the server of two models ends"
  sleep 0.1
  address=$(sed -n 's/.*listening on \(http[^;]*\);.*/\1/p' "$work/log")
done
for length in 40 90 300; do
  loads=()
  for name in one two; do
    "$binary" bench serve --base-url "$address" --model "$name" --num-prompts 60 --random-input-len "$length" \
      --random-output-len 20 --random-range-ratio 0.5 >"$work/$name" 2>&1 &
    loads+=($!)
  done
  for load in "${loads[@]}"; do wait "$load" || fail "a load on one of two models fails: $(cat "$work"/{one,two})"; done
  [ "$(cat "$work"/{one,two} | grep -c "^Failed requests: *0$")" = 2 ] || fail "requests fail: $(cat "$work"/{one,two})"
done
kill -TERM "$server"
wait "$server" || fail "the server of two models does not end well"
granted "serve with two models"
! grep -E "could not be recorded|ERROR" "$work/log" || fail "two models disturb each other"

with "$compiler" kernels build "$model" --arch sm_90a --output "$work/kernels" || fail "kernels are not built"
export FIREBRICK_KERNELS="$work/kernels"
some "$work/none" || fail "built kernels do not suffice where there is no compiler"
# refused EXPECTED OPTION...: what needs a compiler is refused with a message that says so.
refused() {
  ! some "$work/none" "${@:2}" || fail "${*:2} starts without a compiler"
  grep -q "$1" "$work/log" || fail "the message does not say \"$1\""
}
refused 'firebrick kernels build MODEL --arch sm_90a' --quantization fp8
refused 'firebrick kernels build MODEL --arch sm_90a' --block-size 32
with "$compiler" kernels build "$model" --arch sm_90a --quantization fp8 --output "$work/kernels" || fail "FP8 kernels are not built"
some "$work/none" --quantization fp8 || fail "built kernels do not suffice for FP8 where there is no compiler"

echo "CUDA without a GPU: 18 loads of three models in five ways; a real model as on two older cards, twice in one process, and without"
echo "a compiler"
