#!/usr/bin/env bash
# One training on the GPUs of one or more nodes. Options of sbatch before the script, of jaxcxr after it; from this
# repository's folder:
#
#   sbatch --nodes=2 launch/slurm.sh train --config configs/roentgen.py:h100-8 --workdir runs/roentgen
#   sbatch --nodes=2 --ntasks-per-node=1 launch/slurm.sh train ...     a process a node, in place of one a GPU
#
# Before its time limit, and when it is preempted, the job saves and goes back into the queue.
#SBATCH --job-name=jaxcxr
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# This script alone gets SIGTERM, three minutes ahead of the limit: time for the slowest step and a checkpoint.
#SBATCH --signal=B:TERM@180
set -euo pipefail

if [ $# -eq 0 ] || [ "$1" = --help ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi

# shellcheck source=launch/flags.sh
source launch/flags.sh gpu # Slurm runs a copy of this script, in the folder that it was submitted from

# Every task sees all GPUs of its node and takes its share: NCCL joins those of a node without leaving it. A task that
# dies takes the others with it, in place of leaving them to wait.
srun --gpu-bind=none --kill-on-bad-exit=1 jaxcxr "$@" &
step=$!
stopped=""
# To the tasks and not to srun, which would end them.
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
code=0
while :; do
  wait "$step" && code=0 || code=$?
  kill -0 "$step" 2>/dev/null || break # else it was the signal that ended the wait
done

# Preemption tells the tasks, not this script.
if scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then stopped=1; fi
if [ -n "$stopped" ] && [ "$code" = 0 ]; then
  echo "stopped and saved; queued again"
  trap - TERM # which ends this turn; if the script ended by itself, so would the job
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
fi
exit "$code"
