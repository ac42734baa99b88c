#!/bin/sh
# Gradient matching with FreD. Without arguments: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DC/scripts/run_DC_FreD.sh
#   IPC=1 sh DC/scripts/run_DC_FreD.sh --num_eval 3
# Environment variables: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags are passed to DC/distill.py (see its --help).
# The hyper-parameters are in common/recipes/DC.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" DC/distill.py CIFAR10 2 "IPC DATA_PATH SAVE_PATH" "$@"
