"""The groups of a config: the keys whose values are known, of whatever option is chosen. Each of them may be absent."""

from typing import Required

from typing_extensions import TypedDict

from vcd.schema import values


class Part(TypedDict, total=False):
    """A group of which others set a key or two: without an option of its own it is not whole."""

    _target_: Required[str]


class Data(TypedDict, total=False):
    root: values.Place
    val_images: values.Count
    val_batch_size: values.Count | None


class Dataset(TypedDict, total=False):
    name: values.Name
    path: values.Place | None
    size: values.Width
    channels: values.Few
    T: values.Levels
    latent: values.Width
    sigma_min: values.Positive
    flip: values.Flag
    skip_broken: values.Flag
    val_fraction: values.Fraction | None


class Space(TypedDict, total=False):
    ckpt: values.Place | None
    zero: values.Finite
    size: values.Width
    channels: values.Few


class Schedule(TypedDict, total=False):
    s: values.NotNegative
    clip: values.Fraction
    rate: values.Positive
    beta_start: values.Fraction
    beta_end: values.Fraction
    start: values.Finite
    end: values.Finite
    tau: values.Positive
    beta_min: values.NotNegative
    beta_max: values.Positive
    sigma_min: values.Positive
    sigma_max: values.Positive
    rho: values.Positive
    gamma_0: values.Finite
    gamma_1: values.Finite


class Kernel(TypedDict, total=False):
    T: values.Levels
    size: values.Width
    padding: values.Padding


class Dissipation(TypedDict, total=False):
    T: values.Levels
    sigma_max: values.Positive


class Degradation(TypedDict, total=False):
    T: values.Levels
    size: values.Width
    sigma_min: values.Positive
    sigma_max: values.NotNegative
    repeat_last: values.Flag
    kernel_size: values.Width
    padding: values.Padding
    floor: values.Fraction
    noise_min: values.Positive
    noise_max: values.Positive
    rise: values.Share
    blur: values.NotNegative | None
    published: values.Flag
    continuous: values.Flag
    zero: values.Finite
    parts: "dict[str, Degradation]"


class Perturbation(Part, total=False):
    sigma: values.NotNegative
    coherent: values.Flag
    p: values.Share
    p_warmup: values.Share
    true_share: values.Share
    warmup: values.CountOrZero
    anneal: values.CountOrZero
    longest: values.Count | None


class UNet(TypedDict, total=False):
    size: values.Width
    channels: values.Few
    dim: values.Width
    maps: values.Few
    mults: values.Multiples
    attention: values.Resolutions
    blocks: values.Few
    patch: values.Few
    dropout: values.BelowOne
    heads: values.Few
    film: values.Flag
    classes: values.Count | None
    context: values.CountOrZero
    shift: values.Flag
    fourier: values.Exponents
    residual: values.Flag
    self_conditioning: values.Flag
    outputs: values.Few


class Encoder(UNet, total=False):
    width: values.Positive
    latent: values.Width
    maps: values.Width
    grid: values.Width
    coarse: values.Flag


class Network(TypedDict, total=False):
    unet: UNet
    encoder: Encoder


class Injection(TypedDict, total=False):
    latent: values.Width
    nonlinear: values.Flag


class Gamma(TypedDict, total=False):
    gamma_0: values.Finite
    gamma_1: values.Finite
    width: values.Width


class Guess(TypedDict, total=False):
    drop: values.Share
    weight: values.Finite
    level: values.Levels | None
    tells_z: values.Flag


class Weight(TypedDict, total=False):
    gamma: values.Positive
    sd: values.Positive


class LevelSampler(TypedDict, total=False):
    mean: values.Finite
    std: values.Positive
    history: values.Count
    uniform: values.Share


class Prediction(TypedDict, total=False):
    sd: values.Positive
    mean: "Prediction"
    weight: values.Positive


class Model(TypedDict, total=False):
    beta: values.NotNegative
    annealing: values.CountOrZero
    calibrated: values.Flag
    free_bits: values.NotNegative
    unlabelled: values.Share
    steps: values.Count | None


class Prior(TypedDict, total=False):
    latent: values.Width
    components: values.Count
    shrinkage: values.Count
    images: values.Count
    passes: values.Count
    hidden: values.Width
    steps: values.Count
    batch: values.Count
    lr: values.Positive
    heun: values.Count


class Conditional(Part, total=False):
    latent: values.Width
    channels: values.Few
    size: values.Width
    T: values.Levels
    hidden: values.Width
    couplings: values.Count


class Start(Part, total=False):
    noise: values.NotNegative
    zero: values.Finite
    images: values.Count
    components: values.Count


class Sampler(Part, total=False):
    steps: values.Count | None
    delta: values.NotNegative
    power: values.AtLeastOne
    eta: values.Share
    clip: values.Flag
    v: values.Share | None
    churn: values.NotNegative
    sigma_min: values.NotNegative
    sigma_max: values.Positive | None
    inflation: values.Positive
    corrections: values.CountOrZero
    snr: values.Positive
    repeats: values.Count
    rate: values.Positive


class Optimizer(TypedDict, total=False):
    lr: values.Positive
    betas: values.Betas
    eps: values.NotNegative
    weight_decay: values.NotNegative
    fused: values.Flag


class Scheduler(TypedDict, total=False):
    warmup: values.CountOrZero
    steps: values.Steps
    floor: values.Share
    every: values.Steps
    factor: values.Positive


class Trainer(TypedDict, total=False):
    max_steps: values.Steps
    max_epochs: values.CountOrAll
    accelerator: values.Accelerator
    devices: values.Devices
    num_nodes: values.Few
    precision: values.Precision
    gradient_clip_val: values.Positive | None
    accumulate_grad_batches: values.Count
    val_check_interval: values.Steps
    check_val_every_n_epoch: values.Count | None
    num_sanity_val_steps: values.CountOrAll
    log_every_n_steps: values.Steps
    enable_progress_bar: values.Flag
    enable_model_summary: values.Flag
    enable_checkpointing: values.Flag
    estimate_memory: values.Flag
    compile: values.Backend


class Pictures(TypedDict, total=False):
    n: values.Count
    rows: values.Count


class Average(TypedDict, total=False):
    every: values.Count
    start: values.CountOrZero
    decay: values.BelowOne


class Callbacks(TypedDict, total=False):
    ema: Average
    pictures: Pictures


class Extractor(TypedDict, total=False):
    steps: values.Count
    batch_size: values.Count
    seed: values.Seed


class Launcher(TypedDict, total=False):
    processes: values.Few
    nodes: values.Few
    tasks_per_node: values.Few
    cpus_per_task: values.Few
    mem_gb: values.Positive | None
    timeout_min: values.Count
    signal_delay_s: values.Count
    max_num_timeout: values.CountOrZero
    array_parallelism: values.Count


class Hydra(TypedDict, total=False):
    launcher: Launcher
