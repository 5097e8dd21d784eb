"""launcher=local, processes and slurm; of the last two every job is `python -m vcd.train` in a process of its own."""

from collections.abc import Sequence
from typing import final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from vcd import compat

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ModuleNotFoundError:  # without vcd[slurm]: launcher=slurm says so before anybody makes one
    SlurmLauncher = Launcher  # type: ignore[misc, assignment]


def _needs_values(config: DictConfig) -> bool:
    """Whether the sweeper looks at the outcome, as Optuna's does, or only wants the jobs started."""
    return not config.hydra.sweeper._target_.endswith(".BasicSweeper")


def _compose_fast(context: HydraContext) -> None:
    from vcd.sweeps.compositions import Compositions

    context.config_loader.load_sweep_config = Compositions(context.config_loader)  # type: ignore[method-assign]  # on this loader alone


@final
class Local(compat.basic_launcher()):  # type: ignore[misc]  # a class all the same
    """One run after the other, in this process. (Hydra's own, which would find a wrong value when its turn comes.)"""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        _compose_fast(hydra_context)


@final
class Processes(Launcher):
    """Several runs at once on this machine; waits for them. processes: how many; CPU threads and GPUs are shared out."""

    def __init__(self, *, processes: int) -> None:
        self.processes = processes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        _compose_fast(hydra_context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vcd.sweeps import jobs, processes

        prepared = jobs.prepare(self.context.config_loader, self.config, job_overrides)
        processes.run(prepared, processes=self.processes, strict=not _needs_values(self.config))
        return jobs.outcomes(prepared)


@final
class Slurm(SlurmLauncher):
    """A job array through submitit; returns as soon as it is submitted, so that nothing waits on the login node.

    (SLURM itself starts, requeues and ends the jobs, and every run says in its folder how far it is. The launcher
    it derives from waits for the results, which needs a process that lives as long as the sweep.)
    Sweepers that need the results, such as Optuna's, do wait.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        _compose_fast(hydra_context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from vcd.sweeps import jobs, rows, slurm

        prepared = jobs.prepare(
            self.hydra_context.config_loader, self.config, job_overrides, trains=False
        )  # a login node is not for training
        slurm.submit(prepared, settings=self.params, sweep=self.config.hydra.sweep.dir)
        if not _needs_values(self.config):
            return []
        rows.wait(prepared[0].folder.parent, {job.folder for job in prepared})
        return jobs.outcomes(prepared)
