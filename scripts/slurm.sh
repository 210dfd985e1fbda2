#!/bin/sh
# A run over several nodes under Slurm.
#
#     sbatch scripts/slurm.sh --data books.tok --out runs/a --dp 2 --sp 2
#     sbatch --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 scripts/slurm.sh ...      a process per GPU, with PROGRAM=./train_gpt2_spcu
#
# srun tells each process its place (SLURM_PROCID, SLURM_NTASKS) and the nodes of the step, of which the first is the master; the port
# comes from the job's number. Two minutes before the time is up all processes get SIGTERM: they save and end with 0, and the same
# sbatch, or the requeued job, goes on from there. --out and --data must be on a file system that all nodes see.
#SBATCH --job-name=gpt2_sp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -eu
cd "${SLURM_SUBMIT_DIR:-.}"
exec srun --kill-on-bad-exit=1 "${PROGRAM:-./train_gpt2_sp}" train "$@"
