#!/bin/sh
# Experts for trajectory matching on an ImageNet subset. Without arguments: ImageNet-A at 128 px, 100 experts trained for 50 epochs.
#   IMAGENET=/path/to/imagenet sh ImageNet-abcde/scripts/run_buffer.sh
#   DATASET=imagenet-imagenette DATA_PATH=/path/to/imagenette sh ImageNet-abcde/scripts/run_buffer.sh --keep_epochs 11
# Environment variables: DATASET, RES, DATA_PATH (or IMAGENET), BUFFER_PATH, PYTHON, NPROC. Flags are passed to ImageNet-abcde/buffer.py.
# Experts that are already in the buffer are not trained again.
exec sh "$(dirname -- "$0")/../../common/run.sh" ImageNet-abcde/buffer.py imagenet-a "" "RES DATA_PATH BUFFER_PATH" "$@"
