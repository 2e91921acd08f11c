#!/bin/bash
# Trains on two machines of eight GPUs each, with a process for each GPU: sbatch slurm.sh
#SBATCH --job-name=longformer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# SIGTERM, five minutes before the time is over, lets the run save.

config=enwik8_small
workdir=$HOME/runs/enwik8_small # on a file system of all machines

srun longformer-train --config="$config" --workdir="$workdir" --distributed
status=$?

# Another start resumes from the last checkpoint, unless the run has come to its end, or has met bad input (2); up to
# twenty times, as a run that diverges would diverge each time.
if [ ! -d "$workdir/model" ] && [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
