#!/bin/bash
# Caches activations on several machines that share a folder: sbatch --array=0-7 configs/slurm/cache_array.sh
# Killed or preempted tasks resume when they are submitted again, even in an array of another size. The last task to
# finish writes the manifest. If the machines share no folder, give each task its own --out and merge the parts afterwards:
# sae-lens-maira cache --merge part-* --out cache
#SBATCH --job-name=cache-activations
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=cache-%A-%a.log

set -euo pipefail

CONFIG=${CONFIG:-configs/cache_phantom.yaml}
OUT=${OUT:-out/cache}

srun sae-lens-maira cache --config "$CONFIG" --out "$OUT" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
    --workers "$SLURM_CPUS_PER_TASK"
