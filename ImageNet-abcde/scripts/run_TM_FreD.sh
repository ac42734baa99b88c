#!/bin/sh
# Trajectory matching with FreD on an ImageNet subset. Without arguments: ImageNet-A at 128 px, ipc 1, as published.
# Train the experts first: sh ImageNet-abcde/scripts/run_buffer.sh
#   IMAGENET=/path/to/imagenet sh ImageNet-abcde/scripts/run_TM_FreD.sh
# Environment variables: DATASET, IPC, RES, DATA_PATH (or IMAGENET), SAVE_PATH, BUFFER_PATH, PYTHON, NPROC. Flags are passed to
# ImageNet-abcde/distill.py. The hyper-parameters are in common/recipes/ImageNet-abcde/TM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" ImageNet-abcde/distill.py imagenet-a 1 \
  "IPC RES DATA_PATH SAVE_PATH BUFFER_PATH" --objective TM "$@"
