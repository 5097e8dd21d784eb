"""The keys of each `python -m vcd.<verb>`."""

from typing_extensions import TypedDict

from vcd.schema import parts, values


class Verb(TypedDict, total=False):
    """What several of them know."""

    seed: values.Seed
    threads: values.Threads
    device: values.Device
    data: parts.Data
    hydra: parts.Hydra


class Degraded(Verb, total=False):
    """Images at T levels."""

    T: values.Levels
    space: parts.Space
    schedule: parts.Schedule
    sampler: parts.Sampler
    prediction: parts.Prediction
    degradation: parts.Degradation
    kernel: parts.Kernel
    ihd: parts.Dissipation
    dataset: parts.Dataset


class Train(Degraded, total=False):
    batch_size: values.Count
    ema_decay: values.BelowOne
    checkpoint_every: values.Steps
    keep_every: values.Steps | None
    runs: values.Place
    run_dir: values.Place
    level_sampler: parts.LevelSampler
    weight: parts.Weight | None
    guess: parts.Guess | None
    conditional: parts.Conditional | None
    stage1: values.Place | values.Overrides | None
    gamma: parts.Gamma
    perturbation: parts.Perturbation
    network: parts.Network
    injection: parts.Injection
    model: parts.Model
    prior: parts.Prior
    start: parts.Start
    optimizer: parts.Optimizer
    scheduler: parts.Scheduler
    trainer: parts.Trainer
    callbacks: parts.Callbacks


class Degrade(Degraded, total=False):
    out: values.Place


class Sample(Verb, total=False):
    ckpt: values.Place | None
    n: values.Count
    batch_size: values.Count
    out: values.Place | None
    label: values.Labels | None
    delta: values.NotNegative | None
    guidance: values.Finite | None
    temperature: values.NotNegative | None
    raw: values.Flag
    png: values.Flag
    rows: values.CountOrZero
    compile: values.Backend
    prior: parts.Prior
    sampler: parts.Sampler
    trust: values.Names


class Control(Verb, total=False):
    ckpt: values.Places | None
    n: values.Count
    images: values.Places | None
    sources: values.Places | None
    levels: values.Range | None
    place: values.Region | None
    posterior: values.NotNegative
    temperatures: values.Numbers
    variations: values.Count
    weights: values.Count
    raw: values.Flag
    out: values.Place | None
    trust: values.Names


class Evaluate(Verb, total=False):
    ckpt: values.File | None
    images: values.File | None
    metrics: values.Names
    n: values.Count
    delta: values.NotNegative | None
    guidance: values.Finite | None
    temperature: values.NotNegative | None
    split: values.Split
    batch_size: values.Count
    processes: values.Few
    restored: values.Count
    levels: values.Count
    raw: values.Flag
    prefetch: values.Flag
    out: values.Place | None
    extractor: parts.Extractor
    dataset: parts.Dataset
    prior: parts.Prior
    sampler: parts.Sampler
    trust: values.Names


class Compare(Verb, total=False):
    runs: values.Places | None
    below: values.Place | None
    train: values.Variants | None
    common: values.Overrides
    evaluate: values.Overrides | None
    seconds: values.Positive | None
    leave_out: values.Names
    processes: values.Few
    out: values.Place
    latex: values.Flag
    n: values.Count
    trust: values.Names


class Report(Verb, total=False):
    run: values.Places | None
    out: values.Place | None
    n: values.Count
    pairs: values.Few
    trust: values.Names


class Restore(Degraded, total=False):
    ckpt: values.Place | None
    images: values.Places | None
    degraded: values.Flag
    level: values.Levels | None
    ways: values.Names | None
    samples: values.Count
    trust: values.Names
    raw: values.Flag
    out: values.Place | None


class Export(Verb, total=False):
    ckpt: values.Place | None
    format: values.Format
    out: values.Place | None
    push: values.Repository | None
    private: values.Flag | None
    license: values.Name
    half: values.Flag
    raw: values.Flag
    trust: values.Names


class Refit(Verb, total=False):
    ckpt: values.Place | None
    dataset: parts.Dataset | None
    prior: parts.Prior
    trust: values.Names
    raw: values.Flag
    out: values.Place | None


VERBS = {
    "train": Train, "degrade": Degrade, "sample": Sample, "control": Control, "evaluate": Evaluate, "compare": Compare,
    "report": Report, "restore": Restore, "refit": Refit, "export": Export,
}  # fmt: skip
