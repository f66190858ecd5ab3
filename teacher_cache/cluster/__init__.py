"""Where the shards of a build are made.

`modes.py` holds the settings and runs shard tasks: in this process, in local worker processes, on a
running Dask cluster, in SLURM jobs, or one share of a job array. `dask_workers.py` and `slurm.py`
start the workers. The batch scripts are for `sbatch`.
"""
