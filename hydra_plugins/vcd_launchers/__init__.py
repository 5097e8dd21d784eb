"""Hydra's launchers for sweeps of vcd: the work is in vcd.sweeps. Hydra finds plugins in this namespace only."""
