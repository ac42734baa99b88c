#!/bin/sh
# Gradient matching with FreD. Without further words: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DC/scripts/run_DC_FreD.sh
#   IPC=1 sh DC/scripts/run_DC_FreD.sh --num_eval 3
# Environment: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags go on to DC/distill.py (see --help there).
# The hyper-parameters themselves are in common/recipes/DC.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" DC/distill.py CIFAR10 2 "IPC DATA_PATH SAVE_PATH" "$@"
