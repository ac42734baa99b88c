#!/bin/sh
# Experts for trajectory matching. Without further words: CIFAR-10, 100 experts of 50 epochs, as published.
#   DATASET=digits sh TM/scripts/run_buffer.sh
#   sh TM/scripts/run_buffer.sh --num_experts 10 --keep_epochs 6
# Environment: DATASET, DATA_PATH, BUFFER_PATH, PYTHON, NPROC. Flags go on to TM/buffer.py (see --help there).
# Experts that are in the buffer already are not trained again.
exec sh "$(dirname -- "$0")/../../common/run.sh" TM/buffer.py CIFAR10 "" "DATA_PATH BUFFER_PATH" "$@"
