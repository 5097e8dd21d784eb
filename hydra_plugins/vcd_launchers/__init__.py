"""Hydra's launchers for sweeps of vcd: the work is in vcd.submission. Hydra finds plugins in this namespace only."""
