#!/usr/bin/env bash
# Trains on GPUs with SLURM, and goes on after a preemption or a time limit. Run it from the repository root:
#
#   VENV=~/venv WORKDIR=/shared/runs/b16 DATA=/shared/imagenet sbatch --nodes=2 launch/slurm.sh \
#       --config=configs/vitb16.py --config.teacher.chunk=8
#
# Set three variables:
#   VENV     a Python environment with `pip install '.[cuda]'`, on every machine
#   WORKDIR  folder of the run, on a file system that all machines share
#   DATA     folder of the images (--config.data.root), on every machine
# The other arguments go to main.py. Options of sbatch on its command line win over those below. See docs/launch.md.
#SBATCH --job-name=zeroseg
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
: "${VENV:?set it to a Python environment with the package}"
: "${WORKDIR:?set it to a folder that all machines share}"
: "${DATA:?set it to the folder of the images}"
[ $# -gt 0 ] || { echo "give the arguments of main.py, such as --config=configs/vitb16.py" >&2; exit 2; }

tasks=${SLURM_NTASKS_PER_NODE:-} gpus=${SLURM_GPUS_ON_NODE:-}
if [ -n "$tasks" ] && [ -n "$gpus" ] && [ "$tasks" != "$gpus" ]; then
  echo "a machine has $gpus GPUs and $tasks tasks, but JAX takes one task for each GPU;" \
    "give sbatch --gpus-per-node=$gpus --ntasks-per-node=$gpus" >&2
  exit 2
fi

# One process for each GPU; each sees all GPUs of its machine, as JAX expects. One that fails ends the others itself.
# Since SLURM 22.05 srun does not take over --cpus-per-task.
export JAX_COMPILATION_CACHE_DIR=$WORKDIR/jax_cache # a restart does not compile again
status=0
srun --label --gpu-bind=none --wait=120 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" "$VENV/bin/python" main.py --distributed --preempted_status=75 \
  --workdir="$WORKDIR" --config.data.root="$DATA" "$@" || status=$?
if [ "$status" -eq 75 ]; then
  echo "stopped and saved; the job goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
