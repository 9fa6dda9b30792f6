"""Runs made side by side, one on each GPU, stage by stage; what follows does not wait for what failed.

Used by `ablation.py` and by `track.py run`. Every stage is a process of its own (`python -m bitgolf STAGE RUN`) that
sees one GPU; its output goes to RUN.txt beside the run directory. A line is printed when a stage begins or fails.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitgolf.config import load_config
from bitgolf.errors import BitgolfError
from bitgolf.run.directory import RunDirectory


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        run: its directory; must not exist.
        preset: name or TOML file.
        settings: dotted overrides.
        branch: RUN or RUN@STEP to begin from, or "".
        stages: in order.
    """

    run: Path
    preset: str
    settings: dict[str, str] = field(default_factory=dict)
    branch: str = ""
    stages: tuple[str, ...] = ("train", "pack", "score", "audit", "report")


def work_off(jobs: Sequence[Job], gpus: Sequence[str], data: Path) -> list[Job]:
    """Make all `jobs` on text that is prepared in `data`, as many at a time as there are `gpus`; those that failed.

    Args:
        gpus: values for CUDA_VISIBLE_DEVICES, one a worker; "" runs on the CPU.
        data: folder that `bitgolf prepare` wrote.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    failed: list[Job] = []

    def worker(gpu: str) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done = _make(job, gpu, data)
            except (BitgolfError, OSError) as error:
                _say(job, gpu, str(error))
                done = False
            if not done:
                failed.append(job)

    workers = [threading.Thread(target=worker, args=(gpu,)) for gpu in gpus]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return failed


def _make(job: Job, gpu: str, data: Path) -> bool:
    config = load_config(job.preset, job.settings)
    run = RunDirectory.create(job.run, config)
    shutil.copytree(data, run / "data")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    with job.run.with_suffix(".txt").open("w") as log:
        for stage in job.stages:
            _say(job, gpu, stage)
            branch = ["--branch", job.branch] if job.branch and stage == "train" else []
            command = [sys.executable, "-m", "bitgolf", stage, str(job.run), *branch]
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
                _say(job, gpu, f"{stage} failed, see {log.name}")
                return False
    _say(job, gpu, "done")
    return True


def _say(job: Job, gpu: str, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} [{gpu or 'cpu'}] {job.run.name}: {what}", flush=True)
