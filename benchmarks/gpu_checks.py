"""python benchmarks/gpu_checks.py --table resume: an interrupted training ends where one without a break does, to the bit.

Deterministic algorithms, on the device. --table tests: the fast tests, on a machine that has the device.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from measure import arguments, parse

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "vwd": ["model=vwd"],
    "vcd": ["model=vcd", "perturbation.warmup=5"],
    "vcd, bf16": ["model=vcd", "perturbation.warmup=5", "trainer.precision=bf16-mixed"],
    "ddpm, patches": ["model=ddpm", "network.unet.patch=2"],
}
QUICK = ["tests/test_levels.py", "tests/test_schedules.py"]


def trained(overrides: list[str], folder: Path, device: str, steps: int, *more: str) -> Path:
    """last.ckpt of `vcd.train`, which may be told to stop on the way."""
    line = [
        sys.executable, "-m", "vcd.train", "dataset=digits", "prior=independent", *overrides, *more, f"run_dir={folder}",
        f"trainer.max_steps={steps}", "trainer.log_every_n_steps=5", f"trainer.val_check_interval={steps}", "callbacks.pictures.n=4",
        "+trainer.deterministic=true", f"trainer.accelerator={'gpu' if device.startswith('cuda') else 'cpu'}",
    ]  # fmt: skip
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": str(ROOT)}
    said = subprocess.run(line, env=environment, cwd=folder.parent, capture_output=True, text=True)
    if said.returncode != (143 if more else 0):
        raise RuntimeError(f"exit code {said.returncode}: {(said.stderr.strip() or said.stdout).splitlines()[-1]}")
    return folder / "last.ckpt"


def weights(path: Path) -> torch.Tensor:
    saved = torch.load(path, weights_only=True, map_location="cpu")
    return torch.cat([v.double().flatten() for _, v in sorted(saved["state_dict"].items()) if v.is_floating_point()])


def resume(overrides: list[str], device: str, steps: int = 30) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        straight = weights(trained(overrides, Path(scratch) / "straight", device, steps))
        broken = Path(scratch) / "broken"
        stop = ("+callbacks.stop._target_=benchmarks.first.StopAt", f"+callbacks.stop.step={steps // 2}")
        halfway = weights(trained(overrides, broken, device, steps, *stop))
        resumed = weights(trained(overrides, broken, device, steps))
    return {"the same": torch.equal(straight, resumed), "largest difference": float((straight - resumed).abs().max()),
            "of": float((straight - halfway).abs().max())}  # fmt: skip


def tests(few: bool, processes: int) -> dict[str, Any]:
    """How many passed, and which did not."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "tests.xml"
        line = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *(QUICK if few else ["tests"]),
                *(["-n", str(processes)] if processes > 1 else []), "-p", "no:cacheprovider"]  # fmt: skip
        said = subprocess.run(
            line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        if not report.exists():
            raise RuntimeError((said.stderr.strip() or said.stdout.strip()).splitlines()[-1])
        cases = list(ElementTree.parse(report).iter("testcase"))
    bad = {f"{c.get('classname')}::{c.get('name')}": (found.get("message") or "").splitlines()[0][:200] for c in cases
           for found in [*c.iter("failure"), *c.iter("error")]}  # fmt: skip
    skipped = sum(next(c.iter("skipped"), None) is not None for c in cases)
    return {"passed": len(cases) - len(bad) - skipped, "failed": len(bad), "skipped": skipped, "which": bad}


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repeats=1)
    parser.add_argument("--table", default="resume", choices=["resume", "tests"])
    parser.add_argument("--few", action="store_true", help="one run, two files of tests")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.set_defaults(out=Path("checks.json"))
    options = parse(parser)
    kept = Kept(f"{options.table} on {options.device}", options.out, seconds=options.seconds)
    if options.table == "tests":
        spare = 1 if options.few or not shutil.which("pytest") else min(12, os.cpu_count() or 1)
        kept.measure({"what": "fast tests"}, lambda: tests(options.few, spare))
    else:
        for name, overrides in list(RUNS.items())[: 1 if options.few else None]:
            kept.measure({"model": name}, lambda o=overrides: resume(o, options.device))
    rows = kept.finish()
    sys.exit(1 if any("error" in row or row.get("failed") or row.get("the same") is False for row in rows) else 0)


if __name__ == "__main__":
    main()
