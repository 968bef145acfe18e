"""One place that knows where the course runs. `start()` is the first call of every notebook.

Two profiles, one code: `embedded` (shipped tiny models and data, two CPU cores, no network) and `gpu`
(Qwen2-0.5B-Instruct and the real TL;DR data from the Hugging Face Hub). The environment variable
COURSE_PROFILE chooses; notebooks never ask which one is on.
"""

import ipaddress
import os
import random
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "data" / "models"
RUNS = Path(os.environ.get("COURSE_RUNS", ROOT / "data" / "runs"))  # what a reader trains: never shipped, never overwritten by `git pull`

# Before torch is imported: OpenMP threads that wait must not spin, or two of them on two busy cores are 20 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class Profile:
    """What differs between the profiles, and nothing else.

    `models`: the course's names for models -> folder or Hub id. `dataset`: a Hub id, or None for the shipped rows.
    `toxicity`: the folder of a classifier in Detoxify's format, or the name of one of Detoxify's own.
    `learning_rate`: a model of a million parameters takes, and needs, larger steps than one of 500 million.
    `hardware`: the `TrainingArguments` that depend on the machine; pass them as `GRPOConfig(**profile.hardware, …)`.
    `network`: whether a connection beyond this machine may be opened.
    """

    name: str
    models: dict
    dataset: str | None
    toxicity: str
    learning_rate: float
    network: bool
    hardware: dict = field(default_factory=dict)


ACTS = ("grpo-length", "grpo-length-coverage", "grpo-length-coverage-kl")


def _embedded():
    models = {name: str(MODELS / f"tiny-{name}") for name in ("base", "sft", "tags", *ACTS)}
    # torch trains in 32 bits on a CPU; TRL's defaults (bfloat16, gradient checkpointing) are made for GPUs.
    hardware = dict(use_cpu=True, bf16=False, gradient_checkpointing=False)
    return Profile("embedded", models, None, toxicity=str(MODELS / "tiny-toxicity"), learning_rate=2e-4, network=False, hardware=hardware)


def _gpu():
    import torch

    qwen = "Qwen/Qwen2-0.5B-Instruct"
    models = {"base": "Qwen/Qwen2-0.5B", "sft": qwen, "tags": qwen} | {name: str(RUNS / f"qwen2-{name}") for name in ACTS}
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)  # not on a T4, which does fp16 instead
    hardware = dict(use_cpu=not cuda, bf16=bf16, fp16=cuda and not bf16, gradient_checkpointing=cuda)
    return Profile("gpu", models, "trl-lib/tldr", toxicity="original", learning_rate=1e-5, network=True, hardware=hardware)


PROFILES = {"embedded": _embedded, "gpu": _gpu}
_active = None  # the profile of this process, once it is asked for
_guarded = False


def profile():
    """The active `Profile`, read once from COURSE_PROFILE (default: embedded).

    Raises ValueError for a name that is not one of the two.
    """
    global _active
    if _active is None:
        name = os.environ.get("COURSE_PROFILE", "embedded")
        if name not in PROFILES:
            raise ValueError(f"COURSE_PROFILE is {name!r}; the profiles are {' and '.join(map(repr, PROFILES))}. Set one of them, or unset the variable.")
        _active = PROFILES[name]()
    return _active


def start(seed=0):
    """Set up a notebook or script: profile, seeds, threads, quiet logs, network guard. Returns the `Profile`.

    In Google Colab it first installs what a runtime there lacks, and its hardware chooses the profile (helpers/colab.py).

    seed: for Python's, NumPy's and torch's generators.
    Raises ValueError for an unknown COURSE_PROFILE; in Colab, RuntimeError if pip fails or the session has to be restarted.
    """
    if "google.colab" in sys.modules:
        from helpers import colab

        colab.prepare()
    embedded = os.environ.get("COURSE_PROFILE", "embedded") == "embedded"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if embedded:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as fast as two for models this small, and the same digits everywhere
    active = profile()
    if not active.network:
        guard_network()

    import datasets
    import torch
    import transformers

    if embedded:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    random.seed(seed)
    transformers.set_seed(seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    return active


class NetworkForbidden(RuntimeError):
    """Something tried to leave this machine in the embedded profile."""


def _is_local(host):
    if host in ("", "localhost", None):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def guard_network():
    """From now on, in this process, any connection or name lookup beyond loopback raises `NetworkForbidden`.

    It stands on Python's audit events (PEP 578), which every use of Python's sockets passes, whatever library makes it.
    """
    global _guarded
    if _guarded:
        return
    _guarded = True

    def hook(event, args):
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            host = args[1][0] if isinstance(args[1], tuple) else None  # a path is a Unix socket
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = args[0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if not _is_local(host):
            raise NetworkForbidden(
                f"a connection to {host!r} was tried, but the embedded profile never leaves this machine: "
                "its models and data are in data/. To use the Hugging Face Hub, set COURSE_PROFILE=gpu before Python starts."
            )

    sys.addaudithook(hook)
