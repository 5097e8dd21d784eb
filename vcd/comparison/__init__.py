"""Runs side by side: made, measured, in one table and drawn."""
