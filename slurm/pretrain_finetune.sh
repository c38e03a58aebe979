#!/usr/bin/env bash
# Queue a fine-tuning after its pretraining:  slurm/pretrain_finetune.sh PRETRAIN.yaml FINETUNE.yaml [options of sbatch ...]
# The second job starts when the first has finished its run; its recipe names what the first publishes (`init.from`).
set -euo pipefail
here=$(dirname "$0") pretrain=$1 finetune=$2
shift 2
first=$(sbatch --parsable "$@" "$here/train.sbatch" "$pretrain")
second=$(sbatch --parsable --dependency="afterok:$first" --kill-on-invalid-dep=yes "$@" "$here/train.sbatch" "$finetune")
echo "job $first pretrains, job $second fine-tunes after it"
