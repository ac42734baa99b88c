#!/bin/sh
# Experts for trajectory matching on an ImageNet subset. Without arguments: ImageNet-A at 128 px, 100 experts trained for 50 epochs.
#   IMAGENET=/path/to/imagenet sh ImageNet-abcde/scripts/run_buffer.sh
#   DATASET=imagenet-imagenette DATA_PATH=/path/to/imagenette sh ImageNet-abcde/scripts/run_buffer.sh --keep_epochs 11
# Environment variables: DATASET, RES, DATA_PATH (or IMAGENET), BUFFER_PATH, PYTHON, NPROC. Flags are passed to ImageNet-abcde/buffer.py.
# Experts that are already in the buffer are not trained again.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" ImageNet-abcde/buffer.py imagenet-a "" "RES DATA_PATH BUFFER_PATH" "$@"
