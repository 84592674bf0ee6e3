#!/usr/bin/env bash
# Run native/selftest.cpp: native/check.sh asan | tsan | neon (Debian: apt-get install qemu-user g++-aarch64-linux-gnu)
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
compiling=() compiler=${CXX:-g++} run=() common=(-std=c++20 -O1 -g -pthread -Wno-maybe-uninitialized)
case ${1:-} in
  asan) common+=(-fsanitize=address,undefined -fno-sanitize-recover=all) ;;
  # what a late thread reads may change meanwhile, by design, and is thrown away: no repeats under ThreadSanitizer
  tsan) common+=(-fsanitize=thread -Wno-tsan) && export OPENAFM_NO_REPEAT=1 ;;
  neon) compiler=aarch64-linux-gnu-g++ run=(qemu-aarch64 -L /usr/aarch64-linux-gnu) ;;
  *) echo "usage: native/check.sh asan|tsan|neon" >&2 && exit 2 ;;
esac
avx2=(-mavx2 -mfma -mf16c)
avx512=("${avx2[@]}" -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
flags_of() {
  case $1:$compiler in
    neon:aarch64*) echo -march=armv8.2-a+dotprod+fp16 ;;
    *:aarch64*) ;;
    avx2:*) echo "${avx2[@]}" ;;
    avxvnni:*) echo "${avx2[@]}" -mavxvnni ;;
    avx512:*) echo "${avx512[@]}" ;;
    avx512vbmi:*) echo "${avx512[@]}" -mavx512vbmi ;;
  esac
}
for source in *.cpp; do
  name=${source%.cpp}
  [ "$name" = module ] && continue
  while (($(jobs -rp | wc -l) >= ${JOBS:-$(nproc)})); do wait -n; done
  # shellcheck disable=SC2046  # several words
  "$compiler" "${common[@]}" $(flags_of "$name") -c "$source" -o "$out/$name.o" &
  compiling+=($!)
done
for process in "${compiling[@]}"; do wait "$process"; done
"$compiler" "${common[@]}" "$out"/*.o -o "$out/selftest"
"${run[@]}" "$out/selftest"
