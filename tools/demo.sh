#!/usr/bin/env bash
# The whole job on simulated data: simulate, train, evaluate, detect, report. Called by `make demo`.
# DEMO=short runs every step on a few frames, to see that all is in place.
set -euo pipefail

case "${DEMO:-full}" in
  full) run=runs/demo data=data/simulated frames=720 val=120 options=() ;;
  short) run=runs/demo_short data=data/simulated_short frames=16 val=8 options=(train.epochs=1) ;;
  *) echo "DEMO must be full or short, not ${DEMO}" >&2; exit 2 ;;
esac
options+=("data.root=$data")
workers=$(getconf _NPROCESSORS_ONLN)

step() { printf '\n\033[1m%s\033[0m\n' "$1"; }

if [ -e "$run" ]; then
  kept="${run}_$(date -r "$run" +%Y%m%d_%H%M%S)"
  mv "$run" "$kept"
  echo "an earlier demo is kept as $kept"
fi

step "1/5 simulate $frames frames in KITTI's layout, $val of them for validation"
python tools/simulate.py "$data" --frames "$frames" --val-frames "$val" --seed 0 \
  --workers "$workers" --resume

step "2/5 train VoxelNet on the others, with their cars pasted into one another"
python tools/prepare_kitti.py "$data" --split train --gt-database --overwrite
python tools/train.py configs/demo.yaml "${options[@]}" --run "$run"

step "3/5 evaluate on the $val frames that it has not seen"
python tools/evaluate.py configs/demo.yaml "${options[@]}" \
  --checkpoint "$run/checkpoints/last.ckpt" --results "$run/results" --json "$run/ap.json"

step "4/5 detect and draw three of them"
mapfile -t shown < <(head -3 "$data/ImageSets/val.txt" | sed "s,.*,$data/training/velodyne/&.bin,")
python tools/detect.py configs/demo.yaml "${shown[@]}" \
  --checkpoint "$run/checkpoints/last.ckpt" -o "$run/detections" --png

step "5/5 report on the training, by the results of step 3"
python tools/report.py "$run" --results "$run/results" --json "$run/report.json"
