#!/bin/sh
# A job of two nodes that saves when Slurm warns it, and comes back: sbatch job.sh SCRIPT [ARGUMENTS]
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=8:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# One task a node: each is the agent of its node. The script finds quorate.deadline() once Slurm has sent USR1.
# exec, because Slurm also ends the shell of the script at the time limit, and what waits for srun would be gone with it.
exec srun quorate run --requeue "$@"
