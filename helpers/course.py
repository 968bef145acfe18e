"""One place that knows where the course runs. `start()` is the first call of every notebook.

Two profiles, one code: `embedded` (shipped tiny models and data, two CPU cores, no network) and `gpu`
(Qwen2-0.5B-Instruct and the real TL;DR data from the Hugging Face Hub). The environment variable
COURSE_PROFILE chooses; notebooks never ask which one is on.
"""

import ast
import ipaddress
import os
import random
import sys
import warnings
from dataclasses import dataclass, field, replace
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
    `device`: where models compute, "cpu" or "cuda"; what a cell makes for a model goes there, too.
    `hardware`: the `TrainingArguments` that depend on the machine; see `fit`.
    `at_once`: how many completions may go through the model at once in training; `lora`: the rank of LoRA's matrices, where
    not all weights can be trained, else 0. Both by `helpers.memory`.
    `network`: whether a connection beyond this machine may be opened.
    """

    name: str
    models: dict
    dataset: str | None
    toxicity: str
    learning_rate: float
    network: bool
    device: str = "cpu"
    hardware: dict = field(default_factory=dict)
    at_once: int = 1024
    lora: int = 0

    def fit(self, settings, announce=True):
        """`GRPOConfig`'s fields for this machine: `settings` with the hardware's, and a batch that fits, in pieces if it must.

        `per_device_train_batch_size` times `gradient_accumulation_steps` stays what it was. announce: print the memory that it
        will take (in the gpu profile).
        """
        batch = settings.get("per_device_train_batch_size", 8)
        pieces = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= self.at_once)
        if pieces > 1:
            accumulated = pieces * settings.get("gradient_accumulation_steps", 1)
            settings = settings | dict(per_device_train_batch_size=batch // pieces, gradient_accumulation_steps=accumulated)
        if announce:
            self.announce(settings | self.hardware)
        return settings | self.hardware

    def announce(self, settings, model="Qwen2-0.5B"):
        """gpu profile: print what memory a run with these fields of `GRPOConfig` will take, by `helpers.memory`."""
        if self.network:
            from helpers import memory

            parts = memory.of_settings(settings, self.lora, shape=memory.shape_of(model))
            print(f"Estimated memory of a step ({model}, prompts of 600 tokens{', LoRA' if self.lora else ''}): {memory.report(parts)}")

    def with_lora(self, rank):
        """The same profile, but for training LoRA matrices of this rank, or all weights if it is 0.

        LoRA takes steps ten times as large (notebook 09), and on a GPU the frozen weights are in 16 bits.
        """
        hardware = {name: value for name, value in self.hardware.items() if name != "model_init_kwargs"}
        if rank and (hardware.get("bf16") or hardware.get("fp16")):
            hardware["model_init_kwargs"] = {"dtype": "bfloat16" if hardware["bf16"] else "float16"}
        rate = self.learning_rate * (10 if rank else 1) / (10 if self.lora else 1)
        return replace(self, lora=rank, learning_rate=rate, hardware=hardware)

    @property
    def peft_config(self):
        """For a trainer: None where all weights are trained, else LoRA."""
        return lora_config(self.lora) if self.lora else None


def lora_config(rank):
    """LoRA of this rank on every matrix of every layer, as peft wants it."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


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
    names = dict(models=models, dataset="trl-lib/tldr", toxicity="original", network=True)
    if not torch.cuda.is_available():  # slow, but it runs: that is how it is tested
        return Profile("gpu", **names, learning_rate=1e-5, hardware=dict(use_cpu=True, bf16=False, gradient_checkpointing=False))
    from helpers import memory

    card = torch.cuda.get_device_properties(0)
    plan = memory.plan(memory.QWEN2["Qwen2-0.5B"], card.total_memory)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)  # not on a T4, which does fp16 instead
    # Four checkpoints of 6 GB each are what notebook 04 compares; more would fill a rented disk.
    hardware = dict(bf16=bf16, fp16=not bf16, gradient_checkpointing=plan["checkpointing"], save_total_limit=4)
    return Profile("gpu", **names, learning_rate=1e-5, device="cuda", hardware=hardware, at_once=plan["batch"]).with_lora(plan["lora"])


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
    if active.network:
        _reachable(active)
        _report_verdicts()
    else:
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


# ---------------------------------------------------------------------------------------------------------
# The gpu profile: is the Hub there, and what if a statement about the small model does not hold for the large one?
# ---------------------------------------------------------------------------------------------------------
class HubOutOfReach(FileNotFoundError):
    """A model or data set of the gpu profile is neither in the cache nor to be downloaded."""

    def __init__(self, what, error):
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        super().__init__(
            f"{what} cannot be had: it is not in the cache ({cache}), and the Hugging Face Hub is out of reach ({type(error).__name__}: {str(error)[:200]}).\n"
            "With a network, the gpu profile downloads by itself. To prepare a machine without one, run this where there is one, and copy the cache:\n"
            "    hf download Qwen/Qwen2-0.5B-Instruct\n"
            "    hf download Qwen/Qwen2-0.5B\n"
            "    python -c \"import datasets, detoxify; datasets.load_dataset('trl-lib/tldr'); detoxify.Detoxify('original')\"\n"
            "(the last also fills torch's cache, ~/.cache/torch). To go on without any of it: unset COURSE_PROFILE and start Python again; "
            "the embedded profile brings its own models and data."
        )


def _reachable(active):
    import transformers

    try:
        transformers.utils.cached_file(active.models["sft"], "config.json")
    except OSError as error:
        raise HubOutOfReach(active.models["sft"], error) from None


class Verdicts(ast.NodeTransformer):
    """Turns a cell's `assert statement` into `verdict(statement, its text)`.

    The notebooks assert what they say about the embedded profile's models. Of another model it may not be true, and a reader
    should see that, and go on.
    """

    def visit_Assert(self, node):
        call = ast.Call(ast.Name("_verdict", ast.Load()), [node.test, ast.Constant(ast.unparse(node.test))], [])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))


def verdict(holds, statement):
    """Say so if a statement of a notebook does not hold in this profile."""
    if not holds:
        print(f"[otherwise in this profile: {statement}]")


def _report_verdicts():
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell and not any(isinstance(transformer, Verdicts) for transformer in shell.ast_transformers):
        shell.ast_transformers.append(Verdicts())
        shell.user_ns["_verdict"] = verdict


# ---------------------------------------------------------------------------------------------------------
# The embedded profile: no network
# ---------------------------------------------------------------------------------------------------------
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
