"""The packages of vcd; all else is in pyproject.toml. conf/ lies beside vcd/ in a checkout and inside it when installed."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["vcd", "vcd.*"]), "vcd.conf", "hydra_plugins.vcd_launchers"],
    package_dir={"vcd.conf": "conf"},
    package_data={"vcd": ["py.typed", "*.jinja", "metrics/*.json"], "vcd.conf": ["**/*.yaml"]},
)
