"""Every yaml in conf/ composes, says when to use it and builds what it names; every combination that fits takes a step."""

from functools import cache

import hydra
import pytest
import torch
from conftest import TINY, composition
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from test_diffusevae import save

from vcd import checkpoints, schema, stages, stored, training
from vcd.batch import Degraded
from vcd.cli import CONF
from vcd.data.base import ImageData
from vcd.degradations.base import Degradation
from vcd.degradations.gaussian import GaussianDegradation, Noisy
from vcd.degradations.soft import Soft
from vcd.errors import UserError
from vcd.models.base import Diffusion
from vcd.resolvers import register_resolvers

YAMLS = sorted(CONF.rglob("*.yaml"))
ENTRIES = [path.stem for path in YAMLS if path.parent == CONF]
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
NEEDS = {
    ("dataset", "folder"): ["dataset.path=somewhere"],
    **{("prediction", name): ["degradation=noise"] for name in ("eps", "v")},
    **{("sampler", name): ["degradation=black_blur"] for name in ("exact", "sequential")},
    ("prediction", "edm"): ["degradation=noise", "T=18"],
    ("prediction", "eps_variance"): ["model=ddpm"],
    **{("schedule", name): ["degradation=noise"] for name in ("ve", "edm")},  # they keep the image, and cannot fade
    **{("degradation", name): ["dataset.channels=3"] for name in ("decolour", "decolour_lab")},
    ("perturbation", "none"): ["model=plain"],
    **{("perturbation", name): ["model=vwd"] for name in ("gaussian", "gaussian_published")},
    **{
        ("sampler", name): ["model=ddpm"]
        for name in ("ddim", "ancestral", "large", "dpm", "euler", "heun", "langevin", "pc", "reverse_sde")
    },
    ("sampler", "learned"): ["model=ddpm", "prediction=eps_variance"],
    ("sampler", "momentum"): ["model=ddpm", "schedule=ve"],
    ("guess", "vae_z"): ["model=ddpm"],
    **{("gamma", name): ["model=vdm"] for name in ("fixed", "learned_linear", "learned_net")},
    **{("sampler", name): ["prediction=x0"] for name in ("cold", "naive", "one_shot")},
}


def names(group: str) -> list[str]:
    """What can be chosen; what lies deeper, or has an underscore in front, is part of these."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


@cache
def defaults_of(entry: str) -> dict:
    """The groups of an entry point, by its defaults."""
    listed = OmegaConf.to_container(OmegaConf.load(CONF / f"{entry}.yaml"))["defaults"]
    return {key: value for item in listed if isinstance(item, dict) for key, value in item.items()}


def chosen(group: str, option: str) -> tuple[str, list[str]]:
    """(entry point, overrides) that put this option over the default config."""
    entry = next((e for e in ("train", *ENTRIES) if group in defaults_of(e)), "train")
    override = f"{group}={option}" if group in defaults_of(entry) or group == "gamma" else f"+{group}={option}"
    whole = entry != "train" or group in ("experiment", "sweep", "debug")
    tiny = [] if whole else ["dataset=digits", "network=tiny"]
    return entry, [*(o for o in tiny if not o.startswith(f"{group}=")), override, *NEEDS.get((group, option), [])]


def test_every_yaml_says_when_to_use_it():
    for path in YAMLS:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# ") and len(lines[0]) > 10 and path.read_text().endswith("\n"), path


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_point_has_a_config(compose, entry):
    assert (CONF.parent / "vcd" / f"{entry}.py").exists()
    compose(config=entry)


@pytest.fixture(scope="module")
def trained_parts(compose, tmp_path_factory):
    """What some options build on: a VAE, and an autoencoder."""
    folder = tmp_path_factory.mktemp("parts")
    for name, chosen in (("stage1", "experiment=vae_digits"), ("ae", "model=autoencoder")):
        cfg = compose(chosen, "dataset=digits", "network.unet.dim=8", "run_dir=nowhere")
        save(cfg, folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in names(group)])
def test_every_option_composes_and_builds_what_it_names(group, option, tmp_path, monkeypatch, trained_parts):
    monkeypatch.setenv("VCD_DATA", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    register_resolvers()
    entry, overrides = chosen(group, option)
    if entry == "train":
        overrides += [f"runs={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(entry, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        if entry == "train":  # the parts of vcd.sample, for instance, are completed by the checkpoint's config
            if cfg.guess is not None:
                cfg.stage1 = str(trained_parts / "stage1.ckpt")
            if "ckpt" in cfg.space:
                cfg.space.ckpt = str(trained_parts / "ae.ckpt")
            stages.ready(cfg)
            own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
            plain = OmegaConf.to_container(own, resolve=True)
            if not option.startswith("compare_"):
                schema.check(entry, cfg)
                schema.check_parts(own)
                checkpoints._planned(plain, stored.Reader("x"))  # a checkpoint may name all that the command line names
            build(cfg, group, option)
    finally:
        HydraConfig.instance().cfg = None


def build(cfg: DictConfig, group: str, option: str) -> None:
    """What the option names, and with it the model, its optimiser and its schedule."""
    if group == "dataset":
        data = instantiate(cfg.dataset.source)
        assert isinstance(data, ImageData) and (data.size, data.channels) == (cfg.dataset.size, cfg.dataset.channels)
    elif group == "logger":
        assert all(logger(config={"seed": 0}, resumed=False) for logger in instantiate(cfg.logger).values())
    elif group == "callbacks":
        assert instantiate(cfg.callbacks)
    elif group == "trainer":
        chosen = {"precision": "32-true"} if cfg.trainer.precision == "auto" else {}  # by vcd.train
        trainer = instantiate(cfg.trainer, _partial_=True)(
            logger=False, accelerator="cpu", enable_progress_bar=False, **chosen
        )
        assert trainer.max_steps == cfg.trainer.max_steps
    else:
        if group == "experiment":  # at full size it is slow to build, and adds nothing
            cfg.network.unet.dim, cfg.network.encoder.latent = 8, 4
        model = training.build(cfg)
        assert isinstance(model, Diffusion)
        (optimizer,), (schedule,) = model.configure_optimizers()
        assert optimizer.param_groups[0]["lr"] <= cfg.optimizer.lr and schedule["interval"] == "step"
        # what optimisers are given, they keep in checkpoints (torch 2.9 as it is)
        assert all(type(value) in (int, float, bool, list, type(None)) for value in model.optimizer.keywords.values())


@pytest.mark.parametrize("option", names("experiment"))
def test_published_experiments_are_what_their_names_say(compose, option):
    model, _, dataset = option.partition("_")
    if model not in names("model") or dataset not in names("dataset") or dataset == "digits":
        pytest.skip("not named by model and data set")
    cfg = compose(f"experiment={option}")
    assert cfg.dataset.name == dataset and cfg.network.unet.size == cfg.dataset.size
    made = {"diffusevae": "ddpm"}.get(model, model)  # a refiner of stage 1
    assert cfg.model._target_.rpartition(".")[2].lower() == made
    assert cfg.trainer.max_steps * cfg.batch_size > 10_000_000


def test_experiments_change_the_keys_of_the_root_too(compose):
    assert compose("experiment=vcd_afhq").batch_size == 32
    assert (compose("experiment=rissanen_cifar10").T, compose("experiment=rissanen_cifar10").ema_decay) == (200, 0.999)
    assert compose("experiment=ablation/without_encoder").T == 6
    changed = compose("experiment=vcd_afhq", "optimizer.lr=7", "batch_size=2", "T=5")
    assert (changed.optimizer.lr, changed.batch_size, changed.T) == (7, 2, 5)


# --- one step of every combination ------------------------------------------------------------------------------------

COMPOSED = ("diffusevae", "autoencoder")  # of other models or networks: they have tests of their own
MODELS = [name for name in names("model") if name not in COMPOSED]
PREDICTIONS, DEGRADATIONS = names("prediction"), names("degradation")


@cache
def shapes() -> dict[str, DictConfig]:
    """The data sets' settings, one of each kind: size, channels, T and kernel."""
    nodes = {name: OmegaConf.load(CONF / "dataset" / f"{name}.yaml") for name in names("dataset")}
    kernels = {name: str(OmegaConf.load(CONF / "kernel" / f"{name}.yaml")) for name in nodes}
    kinds = {(node.size, node.channels, node.T, kernels[name]): name for name, node in nodes.items()}
    return {name: nodes[name] for name in sorted(kinds.values())}


@cache
def degradation_for(name: str, dataset: str) -> Degradation:
    needs = NEEDS.get(("dataset", dataset), [])
    return instantiate(composition(f"degradation={name}", f"dataset={dataset}", *needs).degradation)


OF_NOISE = ("eps", "v", "edm", "eps_variance")


def takes(model: str, prediction: str, D: Degradation) -> bool:
    """Whether the mathematics allows it."""
    noise = isinstance(D, GaussianDegradation)
    plain = noise and D.signal.ndim == 1  # the same in every frequency
    allowed = {
        "ddpm": isinstance(D, Noisy) and prediction in (*OF_NOISE, "x0", "difference"),
        "vdm": plain and prediction == "eps",
        "bansal": prediction == "x0",
        "rissanen": prediction in ("xt", "vxt"),
    }
    sampled = D.readable or prediction not in ("x0", "difference")  # sampler=cold reads the draw back from the image
    return (
        sampled
        and allowed.get(model, True)
        and (noise or prediction not in OF_NOISE)
        and (plain or prediction not in ("edm", "eps_variance"))
        and (model == "ddpm" or prediction != "eps_variance")
        and not (isinstance(D, Soft) and prediction == "eps")  # it erases
    )


def combinations() -> list:
    """All of them; fast are the grey digits, with every third degradation, another third for the next prediction, and one
    of a coloured set."""
    every = [(model, prediction, dataset) for model in MODELS for prediction in PREDICTIONS for dataset in shapes()]
    third = [(model, prediction, "digits", 3) for model in MODELS for prediction in PREDICTIONS]
    fast = ("vcd", "xt", "cifar10")
    return [*third, *(pytest.param(*c, 1, marks=[] if c == fast else pytest.mark.long) for c in every)]


@pytest.mark.parametrize(("model", "prediction", "dataset", "nth"), combinations())
def test_every_combination_takes_a_step(compose, model, prediction, dataset, nth):
    """Model x prediction x data set x degradation: losses, backward, and a step of the optimiser."""
    overrides = [o for o in TINY if not o.startswith(("dataset=", "T="))]
    mults, attention = ("[1]", "[]") if nth == 3 else ("[1,1,1,1]", "[3]")
    overrides += [f"network.unet.mults={mults}", f"network.unet.attention={attention}", "network.unet.blocks=1"]
    needs = [need for need in NEEDS.get(("prediction", prediction), []) if not need.startswith("model=")]
    cfg = compose(*overrides, f"model={model}", f"prediction={prediction}", *needs)
    cfg.dataset = shapes()[dataset]
    torch.manual_seed(0)
    n, served = 2, 0
    walk = "cold" if prediction in ("x0", "difference", *OF_NOISE) else "sequential"
    cfg.sampler = compose(f"model={model}", f"sampler={walk}").sampler
    parts = {k: instantiate(v) if isinstance(v, DictConfig) else v for k, v in cfg.model.items() if k != "_target_"}
    for i, name in enumerate(DEGRADATIONS):
        if name.startswith("decolour") and cfg.dataset.channels == 1:
            continue
        D = degradation_for(name, dataset)
        try:
            diffusion = get_class(cfg.model._target_)(degradation=D, **parts).train()
        except UserError as error:
            assert not takes(model, prediction, D), error
            continue
        assert takes(model, prediction, D)
        served += 1
        if (i + PREDICTIONS.index(prediction)) % nth:
            continue
        (optimizer,), _ = diffusion.configure_optimizers()
        x0 = torch.rand(n, cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size) * 2 - 1
        t = torch.arange(n) * (D.T - 1) // (n - 1) + 1
        s, eps = diffusion.prediction.level(t), D.draw(x0)
        batch = Degraded(x0, t, s, D(x0, t, eps), D(x0, s, eps), eps, torch.zeros(n, dtype=torch.long))
        before = [p.detach().clone() for p in diffusion.parameters()]
        losses = diffusion.losses(batch)
        assert losses.total.isfinite() and all(v.shape == (n,) and v.isfinite().all() for v in losses.terms.values())
        losses.total.backward()
        optimizer.step()
        assert any((p != b).any() for p, b in zip(diffusion.parameters(), before, strict=True))
        assert all(p.isfinite().all() for p in diffusion.parameters())
    assert (
        served
        or prediction == "eps_variance"
        or (model, prediction) in {(m, p) for m in ("ddpm", "vdm", "bansal", "rissanen") for p in PREDICTIONS}
    )
