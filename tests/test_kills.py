"""Twenty kills at random moments: every file of the runs is as if nobody had killed them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROLLOUT, TINY
from test_train import only_run
from test_training import unequal

from vcd.cli import CONF

KILLS = 20
ARGUMENTS = [
    *TINY, *ROLLOUT, "trainer.max_steps=40", "checkpoint_every=6", "keep_every=12", "trainer.val_check_interval=15",
    "trainer.log_every_n_steps=4", "data.val_images=60", "trainer.accelerator=cpu", "ema_decay=0.9", "prior=mixture",
    "prior.images=300", "prior.components=2",
]  # fmt: skip


def start(cwd: Path) -> subprocess.Popen:
    cwd.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    with open(cwd / "said.txt", "a") as said:
        line = [sys.executable, "-m", "vcd.train", *ARGUMENTS]
        return subprocess.Popen(line, cwd=cwd, env=environment, stdout=said, stderr=subprocess.STDOUT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_runs_that_are_killed_at_random_moments_are_like_one_that_is_not(tmp_path):
    """Each is killed until it finishes; the moments and signals are drawn, and fall into start, training and end."""
    began = time.monotonic()
    assert start(tmp_path / "straight").wait() == 0
    lasts = time.monotonic() - began
    straight = only_run(tmp_path / "straight")
    draw, kills, runs = random.Random(14), 0, 0
    while kills < KILLS:
        runs += 1
        cwd = tmp_path / f"killed{runs}"
        while True:
            process, moment = start(cwd), draw.uniform(0.3, 1.1) * lasts
            signum = draw.choice([signal.SIGKILL, signal.SIGTERM])
            try:
                code = process.wait(moment if kills < KILLS else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signum)
                code = process.wait()
                kills += 1
            if code == 0:
                break
            assert code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), (cwd / "said.txt").read_text()
        assert not unequal(straight, only_run(cwd)), (runs, kills)
