"""Wrong values are refused before anything starts, one clause each, and right ones are left alone."""

import pytest
from omegaconf import DictConfig, OmegaConf

from vcd import schema
from vcd.cli import CONF
from vcd.errors import UserError
from vcd.schema.verbs import VERBS

COUNT = "it must be a whole number of at least 1, and at most 10000000"
POSITIVE = "it must be a finite number greater than 0"
WRONG = {
    "train": {
        "optimizer.lr": [".nan", "-1", ".inf", "fast", "0", "null", "true", "[1]", "{a: 1}"],
        "optimizer.betas": ["[0.9]", "[1,0.9]", "0.9", "[a,b]"],
        "seed": ["-1", "abc", "4294967296", "1.5", "null", "true"],
        "ema_decay": ["abc", "2", "-0.1", ".nan", "1"],
        "checkpoint_every": ["0", "-5", "often", "2.5", "null"],
        "keep_every": ["0", "never"],
        "batch_size": ["0", "-1", "1.5", "1e12", "1000000000000"],
        "T": ["0", "-1", "2.5", "many", "1000000000"],
        "threads": ["0", "-1", "many", "1.5"],
        "model.beta": ["-1", ".nan", ".inf"],
        "model.annealing": ["-1", "0.5"],
        "prior.components": ["0", "-1", "2.5"],
        "prior.images": ["0"], "prior.shrinkage": ["0"],
        "network.unet.dim": ["0", "-8", "16.5", "1000000000"],
        "network.unet.mults": ["[]", "2", "[0,1]", "[.nan]"],
        "network.unet.attention": ["1", "[-1]", "[a]"],
        "network.unet.dropout": ["1", "-0.1", ".nan"],
        "network.encoder.latent": ["0", "2.5"],
        "trainer.max_steps": ["0", "-1", "1e3", "forever"],
        "trainer.val_check_interval": ["0", "-1", "0.5"],
        "trainer.log_every_n_steps": ["0"],
        "trainer.devices": ["abc", "0", "-2", "[]", "[a]", "1.5"],
        "trainer.precision": ["16-mixed", "16", "float32"],
        "trainer.accelerator": ["banana"],
        "trainer.gradient_clip_val": ["-1", "0", ".nan"],
        "trainer.enable_progress_bar": ["maybe", "1"],
        "scheduler.warmup": ["-1", "soon"],
        "perturbation.p": ["-0.1", "1.1", ".nan"],
        "perturbation.sigma": ["-1", ".nan", ".inf"],
        "sampler.delta": ["-1", ".nan", ".inf", "abc"],
        "sampler.steps": ["0", "2.5"],
        "schedule.s": [".nan", "-1"],
        "degradation.parts.blur.sigma_min": ["0", ".nan"],
        "dataset.size": ["0", "8.5"],
        "callbacks.pictures.n": ["0", "many"],
        "callbacks.ema.decay": ["2"],
        "start.noise": ["-1", ".nan"],
    },
    "sample": {
        "n": ["many", "2.5", "1e12", "0", "-1", "null"], "rows": ["-1", "all", "1.5"], "delta": ["-1", ".nan", "abc"],
        "device": ["banana", "cuda:x", "0", "null"], "batch_size": ["0"], "raw": ["maybe"], "out": ["1.5", "[a]"],
    },
    "control": {
        "temperatures": ["[.nan]", "[]", "[hot]", "-1", ".inf"], "levels": ["0", "2.5", "[1]", "[1,2,3]", "all"],
        "posterior": [".nan", "-1"], "variations": ["0"], "weights": ["0", "1.5"], "images": ["2.5", "{a: 1}"],
    },
    "evaluate": {"split": ["test"], "processes": ["0", "2.5"], "restored": ["0"], "metrics": ["3", "null", "[1]"],
                 "extractor.steps": ["0"], "ckpt": ["3", "[a]"]},
    "compare": {"seconds": ["-1", ".nan", "0"], "common": ["seed"], "processes": ["0"], "latex": ["pdf"], "train": ["[a]"]},
    "report": {"n": ["0"], "pairs": ["0", "two"], "run": ["1.5"]},
    "degrade": {"T": ["0"], "seed": ["-1"], "out": ["null"]},
}  # fmt: skip
RIGHT = {
    "train": [
        "optimizer.lr=1", "keep_every=5", "threads=null", "trainer.devices=auto", "trainer.devices=[0,2]", "trainer.devices=-1",
        "trainer.gradient_clip_val=null", "trainer.precision=bf16-mixed", "sampler.steps=3", "sampler.delta=0",
        "network.unet.attention=[]", "network.unet.mults=[1,1.5]", "perturbation.longest=null", "runs=2024", "T=1000",
        "seed=4294967295", "ema_decay=0", "trainer.compile=true", "trainer.compile=aot_eager", "optimizer.lr=${model.beta}",
        "anything=else", "mine.sigma_max=.inf", "callbacks.mine={_target_: mine.Callback, at: -1}",
    ],
    "sample": ["ckpt=runs/x/last.ckpt", "n=1", "delta=0.1", "device=cuda:1", "rows=0", "out=3"],
    "control": ["temperatures=0.5", "temperatures=[0,2]", "levels=3", "levels=[5,2]", "ckpt=[a,b]", "images=3"],
    "evaluate": ["metrics=distribution", "metrics=[]", "split=val", "images=photos"],
    "compare": ["runs=a", "runs=[a,b]", "leave_out=psnr", "evaluate=[\"n=500\"]", "train={a: [\"seed=1\"]}", "seconds=9.5"],
    "report": ["run=a", "run=[a,b]"],
    "restore": ["images=photo.png", "images=[a,b]", "level=3", "ways=direct", "degraded=true"],
    "refit": ["ckpt=runs/x/last.ckpt", "raw=true", "out=3"],
    "export": ["ckpt=runs/x/last.ckpt", "push=user/name", "format=diffusers", "private=true", "half=true"],
    "degrade": ["T=7", "dataset.val_fraction=null"],
}  # fmt: skip


@pytest.fixture(scope="module")
def with_values(compose):
    """with_values("train", "key=value", ...): a config with these values in it, whether or not the keys are there."""
    composed = {}

    def make(verb: str, *values: str) -> DictConfig:
        if verb not in composed:
            composed[verb] = compose(config=verb)
        cfg = composed[verb].copy()
        OmegaConf.set_struct(cfg, False)
        for key, _, value in (text.partition("=") for text in values):
            OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}")._get_node("v"), merge=False)
        return cfg

    return make


@pytest.mark.parametrize("verb", WRONG)
def test_a_wrong_value_is_named_with_what_it_must_be(with_values, verb):
    for key, value in ((key, value) for key, values in WRONG[verb].items() for value in values):
        with pytest.raises(UserError) as caught:
            schema.check(verb, with_values(verb, f"{key}={value}"))
        sentence = str(caught.value)
        assert sentence.startswith(f"{key}=") and ": it must be " in sentence and "\n" not in sentence, (
            key,
            value,
            sentence,
        )


def test_the_sentences_say_range_and_value(with_values):
    def said(*values: str) -> str:
        with pytest.raises(UserError) as caught:
            schema.check("train", with_values("train", *values))
        return str(caught.value)

    assert said("optimizer.lr=fast") == f"optimizer.lr=fast: {POSITIVE}"
    assert said("batch_size=0") == f"batch_size=0: {COUNT}"
    assert said("seed=null") == "seed=null: it must be a whole number of at least 0, and at most 4294967295"
    assert said("network.unet.mults=[1,.nan]").startswith("network.unet.mults=[1,nan]: it must be a list of finite")
    assert said("seed=-1", "optimizer.lr=0", "mine.power=.nan") == (
        "seed=-1: it must be a whole number of at least 0, and at most 4294967295; "
        f"optimizer.lr=0: {POSITIVE}; mine.power=nan: it must be a number"
    )
    assert said("mine.widths=[1,.nan]") == "mine.widths=[1,nan]: it must be a number"
    assert said("T=90000", "dataset.size=512") == (
        "T=90000: matrices of 512x512 for so many levels do not fit into memory; set T=4095 or less"
    )


def test_a_group_without_an_option_is_said_so(with_values):
    cfg = with_values("train")
    del cfg.sampler._target_  # ~sampler leaves what perturbations set of it
    with pytest.raises(UserError, match="sampler has no option: choose one, such as sampler=ancestral"):
        schema.check("train", cfg)


@pytest.mark.parametrize("verb", VERBS)
def test_right_values_are_left_alone(with_values, verb):
    schema.check(verb, with_values(verb))
    for value in RIGHT[verb]:
        schema.check(verb, with_values(verb, value))


def test_every_command_has_a_schema_that_knows_its_keys():
    for verb in (path.stem for path in CONF.glob("*.yaml")):
        keys = set(OmegaConf.load(CONF / f"{verb}.yaml")) - {"defaults", "task", "weight"}  # found by name; any part
        assert keys <= set(VERBS[verb].__annotations__), verb


def test_keys_of_another_command_are_refused_but_not_ones_own(with_values):
    with pytest.raises(UserError, match="vcd.sample has no keys temperatures: is the experiment one of vcd.control"):
        schema.check("sample", with_values("sample", "temperatures=[1]"))
    schema.check("sample", with_values("sample", "mine=3"))


def test_a_value_has_the_type_that_its_part_takes(with_values):
    """Also of parts that no schema names, such as one's own."""

    def said(*values: str) -> str:
        with pytest.raises(UserError) as caught:
            schema.check_parts(with_values("train", *values))
        return str(caught.value)

    assert said("sampler.steps=abc") == "sampler.steps=abc: it must be a valid integer"
    assert said("network.unet.mults=[a]", "space.zero=a") == (
        "space.zero=a: it must be a valid number; network.unet.mults=[a]: it must be a valid number"
    )
    assert said("mine={_target_: datetime.nope}").startswith("datetime.nope cannot be imported (")
    assert said("mine={_target_: torch.nn.Dropout, p: high}") == "mine.p=high: it must be a valid number"
    assert said("mine={_target_: torch.nn.Dropout, inplace: 1}") == "mine.inplace=1: it must be a valid boolean"
    assert said("sampler.power={a: 1}") == "sampler.power={a: 1}: it must be a valid number"
    schema.check_parts(with_values("train", "mine={_target_: torch.nn.Dropout, p: 1, unknown: -1}"))


# --- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["local", "processes", "slurm"])
def test_a_sweep_with_a_wrong_value_does_not_begin(here, tmp_path, launcher):
    said = here("train", "--multirun", f"launcher={launcher}", "dataset=digits", "seed=0,1,-1", "trainer.max_steps=1")
    assert said.sentence.startswith("seed=-1: it must be a whole number")
    assert not list(tmp_path.rglob("status.json"))
