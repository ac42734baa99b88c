#!/bin/sh
# Experts for trajectory matching. Without arguments: CIFAR-10, 100 experts trained for 50 epochs, as published.
#   DATASET=digits sh TM/scripts/run_buffer.sh
#   sh TM/scripts/run_buffer.sh --num_experts 10 --keep_epochs 6
# Environment variables: DATASET, DATA_PATH, BUFFER_PATH, PYTHON, NPROC. Flags are passed to TM/buffer.py (see its --help).
# Experts that are already in the buffer are not trained again.
exec sh "$(dirname -- "$0")/../../common/run.sh" TM/buffer.py CIFAR10 "" "DATA_PATH BUFFER_PATH" "$@"
