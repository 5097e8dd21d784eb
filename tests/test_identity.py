"""A run's identity: what is trained, and nothing else; the runs of version 0.1 are found again."""

import json
from pathlib import Path

import pytest
from conftest import ROLLOUT, SHORT
from omegaconf import DictConfig, OmegaConf

from vcd import identity, migrations, stages
from vcd.errors import UserError
from vcd.migrations import migrate_config
from vcd.runs import read_status

OLD = {old["command"]: old for old in json.loads((Path(__file__).parent / "v0_1" / "configs.json").read_text())}
RENAMED = {"prediction=residual": "prediction=eps"}  # today's names of choices
MENDED = (  # which train what was published, since 0.2
    "experiment=vcd_mnist", "experiment=vwd_cifar10", "experiment=rissanen_afhq", "experiment=bansal_afhq",
)  # fmt: skip


def today(command: str) -> list[str]:
    """The same choices in today's words; what was left to the default of 0.1, too."""
    parts = command.split()
    own = any(part.startswith(("degradation=", "experiment=", "model=")) for part in parts)
    cold = [] if own else ["degradation=black_blur"]
    cold += ["T=8", "network.encoder.latent=32"] if "dataset=folder" in parts else []
    return [*cold, *(RENAMED.get(part, part) for part in parts)]


@pytest.fixture
def digests(compose):
    """digests("key=value", ...) of today's command line."""
    return lambda *overrides: identity.digest(compose(*SHORT, *ROLLOUT, *overrides))


@pytest.mark.parametrize("key", ["runs=elsewhere", "data.root=elsewhere", "data.val_images=7", "data.val_batch_size=3", "threads=2",
                                 "callbacks.pictures.n=9", "~callbacks.pictures", "~callbacks.progress", "seed=5", "logger=both",
                                 "trainer.log_every_n_steps=7", "trainer.val_check_interval=7", "trainer.devices=2",
                                 "checkpoint_every=7", "keep_every=7", "model.beta=0.020", "optimizer.lr=3e-3"])  # fmt: skip
def test_where_a_run_is_and_how_it_is_watched_does_not_count(digests, key):
    assert digests(key) == digests()


OTHERS = ["model.beta=7", "T=4", "trainer.max_steps=21", "batch_size=17", "optimizer.lr=0.004", "perturbation.p=0.25", "dataset.flip=true",
          "network.unet.dim=16", "degradation=blur", "ema_decay=0.5", "callbacks.ema.decay=0.5", "~callbacks.ema",
          "trainer.precision=bf16-mixed", "sampler.steps=2", "level_sampler=uniform"]  # fmt: skip


def test_every_value_that_decides_what_is_trained_counts(digests):
    found = {key: digests(key) for key in OTHERS}
    assert found["ema_decay=0.5"] == found["callbacks.ema.decay=0.5"]  # two ways to say it
    assert len({digests(), *found.values()}) == len(OTHERS)


def test_what_no_part_of_the_model_refers_to_does_not_count(compose):
    """The encoder's settings, where there is no encoder."""
    assert identity.digest(compose("model=ddpm")) == identity.digest(compose("model=ddpm", "network.encoder.latent=3"))


def test_numbers_count_by_their_value(digests, compose):
    cfg = compose(*SHORT, *ROLLOUT)
    cfg.model.beta = 1.0
    assert identity.digest(cfg) == digests("model.beta=1")
    cfg.dataset.flip = 1  # but a truth value is not a number
    assert identity.digest(cfg) != digests("model.beta=1", "dataset.flip=true")


def test_moving_or_renaming_a_class_changes_no_identity(digests, monkeypatch):
    moved = "optimizer._target_"
    assert digests(f"{moved}=somewhere.else.Adam") == digests() != digests(f"{moved}=torch.optim.SGD")
    monkeypatch.setitem(migrations.RENAMED, "somewhere.else.Adamant", "torch.optim.Adam")
    assert digests(f"{moved}=somewhere.else.Adamant") == digests()


def test_a_new_key_that_means_what_was_before_changes_no_identity(digests, monkeypatch):
    new = [
        f"+{where}={value}"
        for where, value in (("model.warp", 0), ("network.unet.fold", "{_target_: a.b.Flat, size: 2}"))
    ]
    assert digests(new[0]) != digests() != digests(new[1])
    monkeypatch.setitem(identity.NEUTRAL, "*.warp", 0)
    monkeypatch.setitem(identity.NEUTRAL, "model.network.fold", {"_target_": "Flat", "size": 2})
    assert digests(*new) == digests() != digests("+model.warp=1")


def test_a_network_by_its_name_and_by_its_values_is_the_same_run(digests):
    assert digests("network=fast") == digests("network=small", "network.unet.patch=2") != digests("network=small")


# --- version 0.1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [c for c in OLD if c not in MENDED])
def test_the_same_command_has_the_identity_of_the_run_that_it_began_in_0_1(compose, command):
    """Where this fails, what was changed orphans runs: see `identity.NEUTRAL`, and vcd.migrations."""
    assert identity.digest(migrate_config(OLD[command]["config"])) == identity.digest(
        compose(*today(command), "run_dir=run")
    )


def test_the_commands_of_0_1_are_different_runs():
    assert len({identity.digest(migrate_config(old["config"])) for old in OLD.values()}) == len(OLD)


@pytest.fixture
def old_run(tmp_path):
    """old_run(command, name, **status): the folder of a run of version 0.1."""

    def old_run(command: str, name: str, **status: object) -> Path:
        folder = tmp_path / "runs" / name.format(OLD[command]["digest"])
        folder.mkdir(parents=True)
        OmegaConf.save(OLD[command]["config"], folder / "config.yaml")
        said = {"identity": f"{OLD[command]['digest']}-seed0", "state": "preempted"}
        (folder / "status.json").write_text(json.dumps(said | status))
        return folder

    return old_run


COMMAND = "model=vwd degradation=pixelate"


@pytest.fixture
def new_config(compose, tmp_path):
    """new_config("key=value", ...): the config of today's command."""

    def new_config(*overrides: str) -> DictConfig:
        cfg = compose(*COMMAND.split(), *overrides)
        cfg.run_dir = f"{tmp_path}/runs/digits-vwd-pixelate-{identity.digest(cfg)}-seed{cfg.seed}"
        return cfg

    return new_config


@pytest.fixture
def new_run(new_config):
    """new_run("key=value", ...): its run folder."""
    return lambda *overrides: stages.ready(new_config(*overrides))


@pytest.mark.parametrize("name", ["digits-vwd-pixelate-{}-seed0", "digits-warm-blocks-{}-seed0"])
def test_the_run_that_0_1_began_goes_on(old_run, new_config, new_run, caplog, name):
    """Also where choices had other names."""
    caplog.set_level("INFO")
    folder = old_run(COMMAND, name, step=7)
    cfg = new_config()
    run = stages.ready(cfg).open("")
    assert run.path == folder and f"an earlier version of vcd began this run: going on in {folder}" in caplog.text
    assert cfg.run_dir == cfg.callbacks.pictures.folder == str(folder)
    run.set_status("running")
    assert read_status(folder)["identity"] == run.identity and read_status(folder)["step"] == 7
    assert new_run().path == folder  # again, although version 0.2 has been there


def test_of_several_runs_the_one_that_came_furthest_goes_on(old_run, new_run):
    folders = [old_run(COMMAND, f"digits-vwd-pixelate-0000000{i}-seed0", step=step) for i, step in enumerate((3, 9, 5))]
    assert new_run().path == folders[1]


@pytest.mark.parametrize("change", ["model.beta=7", "seed=1"])
def test_another_run_is_another_folder(old_run, new_run, change):
    old_run(COMMAND, "digits-vwd-pixelate-{}-seed0")
    assert not new_run(change).path.exists()


def test_an_old_run_that_cannot_be_read_is_not_in_the_way(old_run, new_run):
    for name, text in (("status.json", "{"), ("config.yaml", "a: [")):
        (old_run(COMMAND, f"digits-vwd-{name[0]}-00000000-seed0") / name).write_text(text)
    assert not new_run().path.exists()


def test_a_folder_that_was_named_by_hand_is_known_by_its_config(old_run, compose):
    folder = old_run(COMMAND, "mine")
    assert stages.ready(compose(*COMMAND.split(), f"run_dir={folder}")).claim().path == folder
    with pytest.raises(UserError, match=r"belongs to another configuration \(model.beta is 0.02 there, here 7\)"):
        stages.ready(compose(*COMMAND.split(), "model.beta=7", f"run_dir={folder}")).claim()
    (folder / "config.yaml").unlink()  # what differs cannot be said, and that it does is known
    with pytest.raises(UserError, match=r"\([0-9a-f]{8}-seed0, this one is [0-9a-f]{8}-seed0\)"):
        stages.ready(compose(*COMMAND.split(), "model.beta=7", f"run_dir={folder}")).claim()


@pytest.mark.parametrize(("then", "now"), [(20_000, 60_000), (5_000, 5_000)])
def test_a_run_whose_mixture_had_few_directions_is_found_again(compose, then, now):
    """The default of 20,000 latents was what is 60,000 now; a number of one's own stays."""
    cfg = compose("model=vcd", f"prior.images={now}", "run_dir=run")
    old = OmegaConf.to_container(cfg, resolve=True)
    prior = old["model"]["prior"]
    assert prior.pop("shrinkage") == 30
    prior["images"] = then
    assert identity.digest(migrate_config(old)) == identity.digest(cfg)
