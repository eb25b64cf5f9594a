#!/bin/sh
# Jobs of an array, each on two nodes: sbatch --array=0-9 sweep.sh SCRIPT; the script reads SLURM_ARRAY_TASK_ID.
#SBATCH --job-name=sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%A_%a.out

exec srun quorate run "$@"
