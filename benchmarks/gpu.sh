#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call of under ten minutes, without a network:
#
#   bash benchmarks/gpu.sh [CAMVID]
#
# the tests marked `gpu` (losses on the GPU against the CPU, and the waits of a step, for every
# method), steps of ten methods and of other settings, losses against the forms of public codes,
# evaluation, and a short training: on CamVid if its folder is given, on drawn streets otherwise. A
# part that fails or takes too long is cut off, and the others go on. It ends with a table of all
# parts; what was skipped is said there.
set -u
camvid=${1:+$(realpath "$1")} || exit 2
cd "$(dirname "$0")/.."
if [ -n "$camvid" ] && [ ! -d "$camvid" ]; then
  echo "$camvid: no such folder" >&2
  exit 2
fi
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "There is no CUDA device here: nothing was measured." >&2
  exit 2
}
out=$(mktemp -d)
table=$out/table
failed=0
limit=590 # seconds of all parts together

# part NAME SECONDS COMMAND...: runs a command, at most so long, and keeps a row of the table.
part() {
  local name=$1 most=$2 start=$SECONDS left result
  shift 2
  left=$((limit - SECONDS))
  if [ "$left" -lt 10 ]; then
    printf '%s\t0\tskipped: no time left\n' "$name" >>"$table"
    failed=1
    return
  fi
  printf '\n== %s: %s\n' "$name" "$*"
  timeout "$((left < most ? left : most))" "$@" 2>&1 | tee "$out/part.log"
  case ${PIPESTATUS[0]} in
    0) result=ok ;;
    124) result="cut off after $((SECONDS - start)) s" failed=1 ;;
    *) result=failed failed=1 ;;
  esac
  # pytest's last line counts what passed and what was skipped.
  if [ "$name" = tests ]; then result="$result: $(tail -n 1 "$out/part.log")"; fi
  printf '%s\t%d\t%s\n' "$name" $((SECONDS - start)) "$result" >>"$table"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
part tests 240 pytest -q -rs -p no:cacheprovider -m gpu
part steps 200 python benchmarks/gpu.py --repeats 5
part losses 60 python benchmarks/losses.py --repeats 5
part "kd and cwd" 40 python benchmarks/kd_losses.py --repeats 10
part "task loss" 40 python benchmarks/task_loss.py
part cirkd 40 python benchmarks/cirkd.py
part evaluation 40 python benchmarks/evaluation.py
part confusion 30 python benchmarks/confusion.py --device cuda
if [ -n "$camvid" ]; then
  part training 120 python train.py camvid/kd_cwd "common.data.root=$camvid" common.steps=200 \
    runs.teacher.steps=200 'only=[teacher,alone,kd_cwd]' out="$out/camvid"
else
  part training 120 python train.py streets/kd_cwd 'seeds=[0]' steps=200 eval.limit=50 out="$out/streets"
  printf 'CamVid\t0\tskipped: its folder was not given, the training is on drawn streets\n' >>"$table"
fi
printf '\n%-12s %8s  %s\n' part seconds result
while IFS=$'\t' read -r name seconds result; do
  printf '%-12s %8s  %s\n' "$name" "$seconds" "$result"
done <"$table"
rm -rf "$out"
exit $failed
