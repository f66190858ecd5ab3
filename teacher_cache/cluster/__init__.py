"""Where the shards of a build are made.

`modes.py` holds the settings: in this process, in local worker processes, on a running Dask
cluster, in SLURM jobs, or one share of a job array. `run.py` runs shard tasks in the chosen mode,
`dask_workers.py` and `slurm.py` start the workers. The batch scripts are for `sbatch`.
"""
