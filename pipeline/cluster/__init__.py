"""Runs tasks in this process, in local processes, on a Dask cluster, in SLURM jobs and job arrays.

A task is the work on one shard of a command's output, which any process can do. `tasks.py` says
which tasks a command or a job does, and in which order; `modes.py` holds the settings and runs
tasks, `dask_workers.py` and `slurm.py` start the workers, `cli_options.py` has the options of
commands, `lock.py` keeps two commands from working in one folder, and `batch_scripts.py` writes
scripts for `sbatch`.
"""
