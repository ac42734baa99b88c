#!/bin/sh
# Distribution matching with FreD on an ImageNet subset. Without arguments: ImageNet-A at 128 px, ipc 1, as published.
#   IMAGENET=/path/to/imagenet sh ImageNet-abcde/scripts/run_DM_FreD.sh
#   DATASET=imagenet-imagenette DATA_PATH=/path/to/imagenette sh ImageNet-abcde/scripts/run_DM_FreD.sh --wait_eval
# Environment variables: DATASET, IPC, RES, DATA_PATH (or IMAGENET), SAVE_PATH, PYTHON, NPROC. Flags are passed to ImageNet-abcde/distill.py.
# The hyper-parameters are in common/recipes/ImageNet-abcde/DM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" ImageNet-abcde/distill.py imagenet-a 1 "IPC RES DATA_PATH SAVE_PATH" \
  --objective DM "$@"
