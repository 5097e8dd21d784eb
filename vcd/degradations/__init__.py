"""Degradations D(x0, t). A new one is one file here (or anywhere importable) and one yaml in conf/degradation."""
