"""The packages of vcd; all else is in pyproject.toml. conf/ lies beside vcd/ in a checkout and inside it when installed."""

from setuptools import find_namespace_packages, setup

CONF = [f"vcd.{package}" for package in find_namespace_packages(include=["conf", "conf.*"])]

setup(
    packages=[*find_namespace_packages(include=["vcd", "vcd.*"]), *CONF, "hydra_plugins.vcd_launchers"],
    package_dir={"vcd.conf": "conf"},
    package_data={
        "vcd": ["py.typed", "*.pyi", "*.jinja", "pretrained/*/*", "metrics/*.json"],
        **dict.fromkeys(CONF, ["*.yaml"]),
    },
)
