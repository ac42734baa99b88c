#!/bin/sh
# Distribution matching with FreD on 3D-MNIST, 16x16x16 voxels. Without arguments: ipc 1 with the published settings.
#   DATA_PATH=/path/to/data sh 3D-MNIST/scripts/run_DM_FreD.sh
# Environment variables: IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags are passed to 3D-MNIST/distill.py (see its --help).
# The hyper-parameters are in common/recipes/DM.toml.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" 3D-MNIST/distill.py 3D-MNIST 1 "IPC DATA_PATH SAVE_PATH" "$@"
