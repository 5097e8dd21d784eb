"""How good samples are after so many seconds of training: trained and evaluated by `vcd.train` and `vcd.evaluate`.

Seconds are steps times the time of a step, which is measured for all variants in turns, so that a busy machine does not
favour one; the steps of every variant follow from it. On a CPU they are seconds of processor time, of one thread.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_train import Subject
from measure import interleaved
from variants import config, model

from vcd.comparison import making
from vcd.randomness import PerImage


@dataclass(frozen=True)
class Plan:
    """variants: name -> overrides of `vcd.train`; common: of all; seconds: of training; points: checkpoints on the way,
    the last included; n: samples that are compared."""

    out: Path
    data: Path
    variants: dict[str, list[str]]
    common: list[str]
    evaluate: list[str]
    seconds: float
    points: int
    n: int
    device: str
    processes: int = 1

    def pace(self, rounds: int, steps: int = 4) -> dict[str, dict[str, float]]:
        """{variant: ms a step, seconds for 1,000 samples, millions of parameters}; measured once and kept."""
        kept = self.out / "pace.json"
        if kept.exists() and (found := json.loads(kept.read_text())).keys() >= self.variants.keys():
            return {name: found[name] for name in self.variants}
        cfgs = {name: config(*self.common, *o) for name, o in self.variants.items()}
        subjects = {name: Subject(cfg, model(cfg, self.device)) for name, cfg in cfgs.items()}
        gpu = self.device.startswith("cuda")
        now = time.perf_counter if gpu else time.process_time
        for _ in range(rounds):
            for subject in subjects.values():
                subject.train(steps, "gpu" if gpu else "cpu", now)
        batch = 256 if gpu else 32
        models = {name: subject.model.to(self.device).eval() for name, subject in subjects.items()}
        calls = {name: lambda m=m: m.sample(PerImage(0, range(batch), m.device), keep=2) for name, m in models.items()}
        drawn = interleaved(calls, rounds, self.device, now=now)
        found = {
            name: {"ms a step": 1e3 * statistics.median(subject.steps), "s per 1,000": 1e3 * statistics.median(drawn[name]) / batch,
                   "M parameters": sum(p.numel() for p in models[name].parameters()) / 1e6}
            for name, subject in subjects.items()
        }  # fmt: skip
        self.out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        return found

    def steps(self, pace: dict[str, dict[str, float]]) -> dict[str, int]:
        """Steps that `seconds` hold, a multiple of `points`."""
        return {
            name: self.points * max(1, int(1e3 * self.seconds / found["ms a step"] / self.points))
            for name, found in pace.items()
        }

    def run(self, rounds: int = 3) -> list[dict[str, Any]]:
        """Train and evaluate what is not there yet; a row for every checkpoint."""
        pace = self.pace(rounds)
        steps = self.steps(pace)
        quick = ["+trainer.limit_val_batches=0", "callbacks.pictures.n=16", f"data.root={self.data}"]
        variants = {
            name: [*overrides, f"trainer.max_steps={steps[name]}", f"keep_every={steps[name] // self.points}",
                   f"trainer.log_every_n_steps={max(1, steps[name] // 20)}", f"trainer.val_check_interval={steps[name]}"]
            for name, overrides in self.variants.items()
        }  # fmt: skip
        folders = making.train(variants, [*self.common, *quick], self.out / "runs", 1)
        asked = [
            "metrics=[distribution]",
            f"n={self.n}",
            f"data.root={self.data}",
            f"device={self.device}",
            *self.evaluate,
        ]
        making.evaluate(folders, asked, self.processes)
        return [
            row for name, folder in zip(variants, folders, strict=True) for row in self._rows(name, folder, pace[name])
        ]

    def _rows(self, name: str, folder: Path, pace: dict[str, float]) -> list[dict[str, Any]]:
        rows = []
        for path in [*sorted(folder.glob("metrics-step-*.json")), folder / "metrics.json"]:
            found = json.loads(path.read_text())
            subject, numbers = found["subject"], {k: v["value"] for k, v in found["metrics"].items()}
            step = subject["steps"]
            rows.append({
                "variant": name, "steps": step, "seconds": step * pace["ms a step"] / 1e3, **pace,
                "fcd": numbers[f"fcd_{self.n}"], "fcd of held-out images": numbers[f"fcd_{self.n}_heldout"],
                "precision": numbers.get(f"precision_{self.n}"), "recall": numbers.get(f"recall_{self.n}"),
                "real images": found["metrics"][f"fcd_{self.n}"]["floor"],
            })  # fmt: skip
        return rows


def frontier(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of the points (cost, distance) that no other is both cheaper and nearer than, from cheap to dear."""
    best, found = float("inf"), []
    for name, (_, distance) in sorted(points.items(), key=lambda item: item[1]):
        if distance < best:
            best = distance
            found.append(name)
    return found
