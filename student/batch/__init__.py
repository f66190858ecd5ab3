"""Ready scripts for SLURM."""

SCRIPTS = ("train.sbatch",)
