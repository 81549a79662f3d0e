#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call of under ten minutes, without a network:
#
#   bash benchmarks/gpu.sh [CAMVID]
#
# the tests marked `gpu` (losses on the GPU against the CPU, for every method), steps of ten methods,
# losses against the forms of public codes, and a short training: on CamVid if its folder is given,
# on drawn streets otherwise. A part that fails is named at the end, and the others go on.
set -u
cd "$(dirname "$0")/.."
camvid=${1:-}
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "There is no CUDA device here: nothing was measured." >&2
  exit 2
}
out=$(mktemp -d)
failed=()
part() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  "$@" || failed+=("$name")
  printf '(%d s)\n' $((SECONDS - start))
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
part tests pytest -q -m gpu
part steps python benchmarks/gpu.py
part overhead python benchmarks/distillation_step.py --repeats 3
part losses python benchmarks/losses.py
part "kd and cwd" python benchmarks/kd_losses.py
part "task loss" python benchmarks/task_loss.py
if [ -n "$camvid" ]; then
  part training python train.py camvid/kd_cwd "common.data.root=$camvid" common.steps=200 out="$out/camvid"
else
  echo "No folder of CamVid was given: the short training is on drawn streets."
  part training python train.py streets/kd_cwd 'seeds=[0]' steps=200 eval.limit=50 out="$out/streets"
fi
rm -rf "$out"
if [ ${#failed[@]} -gt 0 ]; then
  printf '\nfailed: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nall parts ran\n'
