#!/bin/sh
# Distribution matching with FreD on 3D-MNIST, 16x16x16 voxels. Without arguments: ipc 1 with the published settings.
#   DATA_PATH=/path/to/data sh 3D-MNIST/scripts/run_DM_FreD.sh
# Environment variables: IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags are passed to 3D-MNIST/distill.py (see its --help).
# The hyper-parameters are in common/recipes/DM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" 3D-MNIST/distill.py 3D-MNIST 1 "IPC DATA_PATH SAVE_PATH" "$@"
