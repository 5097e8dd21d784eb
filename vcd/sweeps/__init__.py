"""A folder of runs: prepared, started on this machine or by SLURM, watched, stopped and resumed."""
