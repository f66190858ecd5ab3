"""Where shards are made: this process, local workers, a running Dask, SLURM jobs."""
