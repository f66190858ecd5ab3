"""Ready scripts for SLURM."""

SCRIPTS = ("cache.sbatch", "cache_array.sbatch")
