#!/bin/sh
# Gradient matching with FreD on an ImageNet subset. Without arguments: ImageNet-A at 128 px, ipc 1, as published.
#   IMAGENET=/path/to/imagenet sh ImageNet-abcde/scripts/run_DC_FreD.sh
#   DATASET=imagenet-imagenette DATA_PATH=/path/to/imagenette sh ImageNet-abcde/scripts/run_DC_FreD.sh --wait_eval
# Environment variables: DATASET, IPC, RES, DATA_PATH (or IMAGENET), SAVE_PATH, PYTHON, NPROC. Flags are passed to ImageNet-abcde/distill.py.
# The hyper-parameters are in common/recipes/ImageNet-abcde/DC.toml.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" ImageNet-abcde/distill.py imagenet-a 1 "IPC RES DATA_PATH SAVE_PATH" \
  --objective DC "$@"
