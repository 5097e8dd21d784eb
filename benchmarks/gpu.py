"""python benchmarks/gpu.py --packed IMAGES: a day on a GPU, in steps of less than eight minutes, the most telling first.

A step whose result is whole is skipped, another goes on where it was, so the same command can be given again and again.
Results are small files (JSON, PNG) in --out; runs and unpacked images are in --work and stay there. On a machine
without a network, first: bash scripts/carry.sh --install WHEELS SITE; export PYTHONPATH=SITE
Afterwards: python benchmarks/tables.py
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from kept import UNFINISHED

LEAST = 20  # seconds left for a step to begin
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


WHAT = {  # in the order of their worth
    "parity": "Every degradation, loss and sampler, CPU against GPU: ||a - b|| / ||a||",
    "resume": "An interrupted training against one without a break, deterministic",
    "tests": "The fast tests where there is a GPU",
    "train": "A training step of every model at every published size",
    "sample": "A sampling pass of every model",
    "reference": "The original on the same GPU",
    "profile": "Where the time of a step goes",
    "compiled": "VWD compiled, and with CUDA graphs",
    "auto": "What trainer=auto chooses, against what was fastest",
    "lightning": "The whole step of vcd.train, and its parts",
    "degrade": "A batch degraded, beside a step of training",
    "data": "Images unpacked",
    "mnist": "How near after so many seconds: MNIST, published sizes, bf16",
    "colour": "The same on 32x32 colour images (CIFAR-10's as JPEG of quality 75: not comparable with published numbers)",
    "animals": "VCD's published AFHQ setting on 64x64 animals of Tiny ImageNet, which are not AFHQ, as long as it lasted",
}


@dataclass(frozen=True)
class Step:
    """A script beside this one. `tiny`: what is other in the rehearsal; `seconds`: it is stopped after so many."""

    script: str
    arguments: list[str]
    tiny: list[str]
    seconds: int = 480
    stops: bool = True  # the script takes --seconds, and stops in time by itself


def steps(options: argparse.Namespace) -> dict[str, Step]:
    """By name, in the order of WHAT; without a checkout of the original none for it."""
    quality = ["--data", str(options.work / "data"), "--work", str(options.work)]
    long, short = (
        ["--budget", "60", "--processes", "4"],
        ["--budget", "2", "--points", "1", "--n", "300", "--models", "1", "--precision", "32-true"],
    )
    tiny, beside = ["--sizes", "tiny"], ["--reference", str(options.reference), "--parts", "training", "sampling"]
    animals, unpacked = ["--table", "animals", *quality], ["--table", "data", "--packed", str(options.packed), *quality]

    def speed(table: str, *smaller: str) -> Step:
        return Step("gpu_speed", ["--table", table], ["--table", table, *tiny, *smaller])

    def distance(name: str) -> Step:
        return Step(
            "gpu_quality", ["--table", name, *quality, *long], ["--table", "digits", *quality, *short], stops=False
        )

    found = {
        "parity": Step("gpu_parity", [], ["--few"]),
        "resume": Step("gpu_checks", ["--table", "resume"], ["--table", "resume", "--few"]),
        "tests": Step("gpu_checks", ["--table", "tests"], ["--table", "tests", "--few"]),
        "train": speed("train", "--models", "vwd", "vdm", "--repeats", "1", "--batches", "32"),
        "sample": speed("sample", "--models", "vwd", "--batch", "8"),
        "reference": Step("bench_reference", [*beside, "--steps", "10"], beside, stops=False),
        "profile": speed("profile"),
        "compiled": speed("compiled", "--batch", "8", "--repeats", "1", "--quick"),
        "auto": speed("auto"),
        "lightning": Step("bench_train", ["--sizes", "mnist", "cifar10", "afhq", "--steps", "15", "trainer.precision=bf16-mixed"],
                          [*tiny, "--models", "vwd", "--repeats", "1", "--steps", "2"], stops=False),
        "degrade": Step("bench_degrade", ["--steps", "28", "32", "64"], ["--sizes", "28", "--batch", "2", "--repeats", "1", "--steps"],
                        stops=False),
        "data": Step("gpu_quality", unpacked, [*unpacked, "--rehearse"], stops=False),
        "mnist": distance("mnist"),
        "colour": distance("colour"),
        "animals": Step("gpu_quality", [*animals, "--budget", "400"], [*animals, "--budget", "15", "--precision", "32-true", "--rehearse"],
                        stops=False),
    }  # fmt: skip
    return {name: found[name] for name in WHAT if name != "reference" or options.reference}


def finished(result: Path) -> bool:
    return result.exists() and json.loads(result.read_text()).get("finished", True)


def run(name: str, step: Step, options: argparse.Namespace, seconds: float) -> str:
    """finished, unfinished or failed; what the step says is in OUT/logs."""
    result, log = options.out / f"{name}.json", options.out / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    seconds = min(seconds, step.seconds)
    line = [sys.executable, str(HERE / f"{step.script}.py"), *(step.tiny if options.rehearse else step.arguments), "--out", str(result),
            *(["--device", "cpu"] if options.rehearse else []), *(["--seconds", f"{0.9 * seconds:.0f}"] if step.stops else [])]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "VCD_DATA": str(options.work / "data")}
    if options.rehearse:
        environment |= {"VCD_REHEARSAL": "1", "OMP_NUM_THREADS": "1"}
    with open(log, "a") as file:
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = stop(process)
    log.write_text("".join(log.read_text(errors="replace").splitlines(keepends=True)[-200:]))
    return "unfinished" if code == UNFINISHED else "finished" if code == 0 and finished(result) else "failed"


def stop(process: subprocess.Popen) -> int:
    """Told to stop, the runs of a step save themselves; what does not end in 30 s is ended."""
    for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue
    return UNFINISHED


def pack(out: Path, archive: Path) -> None:
    """All results in one file, which tar xzf unpacks in benchmarks/results."""
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:gz") as tar:
        tar.add(out, arcname="gpu")
    part.replace(archive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="say which steps there are, and which are finished")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, in this order")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so many; the last step may be cut short"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="all of it on the CPU at tiny size, in under five minutes"
    )
    parser.add_argument(
        "--packed", type=Path, default=ROOT / "shared" / "data", help="the packed images; see gpu_quality.py"
    )
    parser.add_argument("--reference", type=Path, help="a checkout of the original, to be measured beside")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--pack", type=Path, metavar="FILE.tgz", help="after every step, all results in one file")
    options = parser.parse_args()
    for name in ("packed", "out", "work", "reference"):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, path.resolve())
    known = steps(options)
    if unknown := set(options.only or []) - known.keys():
        sys.exit(f"there is no step {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = {name: known[name] for name in options.only or known}
    if options.list:
        for name in chosen:
            print(f"{'done' if finished(options.out / f'{name}.json') else '':5} {name:10} {WHAT[name]}")
        return
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here: --rehearse runs all of it on the CPU at tiny size")
    ends, failed = time.monotonic() + 60 * options.minutes, []
    for name, step in chosen.items():
        if finished(options.out / f"{name}.json"):
            print(f"{name}: there already", flush=True)
            continue
        if (left := ends - time.monotonic()) < LEAST:
            print(f"{name}: no time left; the same command goes on here", flush=True)
            break
        began = time.monotonic()
        state = run(name, step, options, left)
        print(f"{name}: {state} after {time.monotonic() - began:.0f} s", flush=True)
        if state == "failed":
            failed.append(name)
            said = (options.out / "logs" / f"{name}.txt").read_text().splitlines()[-5:]
            print("".join(f"    {line}\n" for line in said), end="", flush=True)
        if options.pack:
            pack(options.out, options.pack)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their logs are in {options.out / 'logs'}")


if __name__ == "__main__":
    main()
