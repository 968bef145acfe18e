"""How much memory a GRPO step takes on a GPU, part by part, and which settings fit a card. Arithmetic over the architecture, no measurement.

python -m helpers.memory     the parts for Qwen2-0.5B, and what fits on some cards; --help for other models and sizes

Notebook 09 derives the formulas and checks them. Memory is in bytes; GB are 10^9 of them. P is the number of weights.
"""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """What of a Qwen2 model's `config.json` decides its memory; `Shape.of(config)` reads it from a transformers config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    head_dim: int | None = None  # by default hidden_size / num_attention_heads

    @classmethod
    def of(cls, config):
        return cls(**{name: getattr(config, name, None) for name in cls.__dataclass_fields__})

    @property
    def query_size(self):
        """Numbers in the queries of one token in one layer."""
        return (self.head_dim or self.hidden_size // self.num_attention_heads) * self.num_attention_heads

    @property
    def key_size(self):
        """Numbers in the keys of one token in one layer, and as many in its values."""
        return (self.head_dim or self.hidden_size // self.num_attention_heads) * self.num_key_value_heads

    @property
    def matrices(self):
        """(inputs, outputs) of each matrix in a layer: q, k, v, o of the attention; gate, up, down behind it."""
        h, i, q, kv = self.hidden_size, self.intermediate_size, self.query_size, self.key_size
        return (h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)

    @property
    def layer_weights(self):
        """Weights of all layers together, without embedding and head."""
        h = self.hidden_size
        one = sum(a * b for a, b in self.matrices) + (self.query_size + 2 * self.key_size) + 2 * h  # biases of q, k, v; two norms
        return self.num_hidden_layers * one

    @property
    def weights(self):
        """P: the weights of the model."""
        embedding = self.vocab_size * self.hidden_size
        return self.layer_weights + self.hidden_size + embedding * (1 if self.tie_word_embeddings else 2)

    def lora_weights(self, rank):
        """Weights of LoRA's two matrices of this rank, beside every matrix of every layer."""
        return self.num_hidden_layers * rank * sum(a + b for a, b in self.matrices)


# From the config.json of each model on the Hugging Face Hub.
QWEN2 = {
    "Qwen2-0.5B": Shape(896, 4864, 24, 14, 2, 151936, True),
    "Qwen2-1.5B": Shape(1536, 8960, 28, 12, 2, 151936, True),
    "Qwen2-7B": Shape(3584, 18944, 28, 28, 4, 152064, False),
}
CARDS = {"8 GB": 8, "T4, 16 GB": 15.8, "24 GB": 24, "A100, 40 GB": 40, "80 GB": 80}  # 10^9 bytes; of a T4 that many can be used
TILE = 4096, 32768  # TRL computes logits in tiles: so many tokens, so many entries of the vocabulary (trl/kernels/chunked_logprob.py)


def saved_by_a_layer(shape, half=True):
    """Bytes that the backward pass of one layer needs of one token, all in 32 bits or with 16-bit computation by autocast."""
    h, i, q, kv = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    return 26 * h + 8 * i + 4 * q + 4 * kv if half else 24 * h + 16 * i + 8 * q + 8 * kv


def estimate(shape, batch, prompt, completion, *, half=True, checkpointing=True, lora=0, reference=False, generated=None, padding=True):
    """Part -> bytes for one step of TRL's `GRPOTrainer` with AdamW; "peak" is the largest sum that is needed at one time.

    batch: completions that go through the model at once (`per_device_train_batch_size`). generated: those of a whole step; by
    default the same. prompt, completion: tokens of each. half: bf16 or fp16 by autocast, over weights in 32 bits.
    checkpointing: keep one activation a layer and compute the others again. lora: the rank, 0 to train all weights; the
    frozen weights are then in 16 bits, if half. reference: whether a second model is kept, for a KL divergence (LoRA needs
    none). padding: whether texts in a batch differ in length; transformers then keeps a mask, and repeats keys and values.
    """
    P, layers, h, V = shape.weights, shape.num_hidden_layers, shape.hidden_size, shape.vocab_size
    number = 2 if half else 4  # bytes of what layers compute
    trained = shape.lora_weights(lora) if lora else P
    length = prompt + completion
    tokens, of_layer = batch * length, saved_by_a_layer(shape, half)
    if padding:
        of_layer += 2 * number * (shape.query_size - shape.key_size) + number * length
    rows, columns = min(batch * completion, TILE[0]), min(V, TILE[1])
    generated = generated or batch
    parts = {
        "weights": 4 * trained + (number * P if lora else 0),
        "optimizer": 8 * trained,
        "reference": 4 * P if reference and not lora else 0,
        "gradients": 4 * trained,
        "copies in 16 bits": 2 * shape.layer_weights if half and not lora else 0,
        "activations": tokens * (4 * h * layers + of_layer) if checkpointing else tokens * of_layer * layers,
        "logits": number * rows * columns + 4 * h * (rows + columns),  # a tile; the gradients of what makes it
        "KV cache": 2 * layers * shape.key_size * (number if lora else 4) * generated * length,
    }
    always = parts["weights"] + parts["optimizer"] + parts["reference"]
    accumulated = parts["gradients"] if generated > batch else 0
    learning = [  # what is there when the backward pass begins, in its midst, and when it ends
        parts["copies in 16 bits"] + parts["activations"] + parts["logits"] + (accumulated if checkpointing else parts["gradients"]),
        parts["gradients"] + parts["activations"] if checkpointing else 0,
        parts["gradients"] + (8 * V * h if shape.tie_word_embeddings and not lora else 0),  # two gradients of one matrix, and then their sum
    ]
    head = 2 * V * h if half and not lora else 0
    generating = parts["KV cache"] + parts["copies in 16 bits"] + head + 4 * generated * V
    return parts | {"peak": always + max(*learning, generating)}


def of_settings(settings, lora=0, prompt=600, shape=QWEN2["Qwen2-0.5B"]):
    """The `estimate` for fields of `GRPOConfig`; what is missing has TRL's default."""
    batch, pieces = settings.get("per_device_train_batch_size", 8), settings.get("gradient_accumulation_steps", 1)
    half = settings.get("fp16", False) or settings.get("bf16", True)
    other = dict(half=half, checkpointing=settings.get("gradient_checkpointing", True), reference=settings.get("beta", 0) != 0, lora=lora)
    return estimate(shape, batch, prompt, settings.get("max_completion_length", 512), generated=batch * pieces, **other)


LORA = 16  # the rank that is taken where not all weights can be trained
ROOM = 0.8  # the share of a card that is planned with: CUDA's own needs, fragments, and what the estimate misses take the rest


def plan(shape, card, half=True, batch=8, prompt=600, completion=300, reference=True):
    """What fits a card of `card` bytes, the fastest that does: `{"checkpointing": bool, "lora": rank, "batch": completions at once, "peak": bytes}`.

    It gives up, in this order: keeping all activations; all completions at once; training all weights.
    Raises ValueError if not even one completion fits with LoRA.
    """
    at_once = [batch // pieces for pieces in range(1, batch + 1) if batch % pieces == 0]
    rungs = [(False, 0, batch)] + [(True, 0, rows) for rows in at_once] + [(True, LORA, rows) for rows in at_once]
    for checkpointing, lora, rows in rungs:
        peak = estimate(shape, rows, prompt, completion, half=half, checkpointing=checkpointing, lora=lora, reference=reference, generated=batch)["peak"]
        if peak <= ROOM * card:
            return dict(checkpointing=checkpointing, lora=lora, batch=rows, peak=peak)
    raise ValueError(
        f"{shape.weights / 1e9:.1f} billion weights do not fit a card of {card / 1e9:.0f} GB, not even with LoRA and one completion at a time: "
        f"that takes an estimated {peak / 1e9:.1f} GB. Take a smaller model, a larger card, or set COURSE_PROFILE=embedded."
    )


def report(parts):
    """One line of the parts that take a hundredth of the peak or more.

    >>> report({"weights": 2e9, "KV cache": 1e6, "peak": 2.001e9})
    '2.0 GB at the peak: weights 2.0'
    """
    shown = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if name != "peak" and size >= parts["peak"] / 100)
    return f"{parts['peak'] / 1e9:.1f} GB at the peak: {shown}"


# ---------------------------------------------------------------------------------------------------------
# Checks of the estimate: they run (or pretend to run) what it calculates
# ---------------------------------------------------------------------------------------------------------
def make_model(shape):
    """A `Qwen2ForCausalLM` of this shape with random weights, in training mode."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    known = {name: value for name, value in vars(shape).items() if value is not None}
    return Qwen2ForCausalLM(Qwen2Config(**known | dict(head_dim=shape.query_size // shape.num_attention_heads))).train()


def saved_bytes(shape, texts, length, *, half=True, checkpointing=False, padding=False):
    """Bytes that the layers of a model of this shape keep for the backward pass, told by PyTorch while they run on a CPU."""
    import torch

    model, kept = make_model(shape), {}
    if checkpointing:
        model.gradient_checkpointing_enable(dict(use_reentrant=False))
    own = {weights.untyped_storage().data_ptr() for weights in model.parameters()}

    def pack(tensor):  # called with everything that is kept
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # each only once, and held, so that its place is not used again
        return tensor

    ids = torch.zeros(texts, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[:, :5] = not padding
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def simulated_peak(shape, batch, length, checkpointing, half=True):
    """Bytes at the peak of a training step of all weights, without logits and padding, by PyTorch's tracker of memory on fake tensors.

    Fake tensors have shapes and no content, so models of any size can be "trained" in seconds.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        fake = make_model(shape)
        if checkpointing:
            fake.gradient_checkpointing_enable(dict(use_reentrant=False))
        optimizer, tracker = torch.optim.AdamW(fake.parameters(), fused=True), MemTracker()
        tracker.track_external(fake, optimizer)
        ids = torch.zeros(batch, length, dtype=torch.long)
        with tracker:
            for step in range(2):  # the optimizer's memory is there from its first step on
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                    loss = fake(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits.float().mean()
                loss.backward()
                if step == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    tracker.reset_mod_stats()
    (parts,) = tracker.get_tracker_snapshot("peak").values()
    return parts["Total"]


def shape_of(model):
    """The `Shape` of a model: a name in `QWEN2`, a folder or a Hub id."""
    if model in QWEN2:
        return QWEN2[model]
    from transformers import AutoConfig

    return Shape.of(AutoConfig.from_pretrained(model))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m helpers.memory", description="What memory a GRPO step takes, and what fits which card.")
    parser.add_argument("--model", default="Qwen2-0.5B", help=f"{', '.join(QWEN2)}, a folder or a Hub id; for others than Qwen2 a rough guess (default: Qwen2-0.5B)")
    parser.add_argument("--batch", type=int, default=8, help="completions at once (default: 8)")
    parser.add_argument("--prompt", type=int, default=600, help="tokens of a prompt (default: 600)")
    parser.add_argument("--completion", type=int, default=300, help="tokens of a completion (default: 300)")
    options = parser.parse_args(arguments)
    shape, size = shape_of(options.model), (options.batch, options.prompt, options.completion)
    print(f"{options.model}, {shape.weights / 1e9:.2f} billion weights, {options.batch} completions of {options.completion} tokens after prompts of {options.prompt}:")
    for name, other in {"all activations kept": dict(checkpointing=False), "checkpointing": {}, f"LoRA of rank {LORA}": dict(lora=LORA)}.items():
        print(f"  {name:21}", report(estimate(shape, *size, **other)))
    print(f"What fits, with a reference model and {1 - ROOM:.0%} of the card left free:")
    for name, gigabytes in CARDS.items():
        try:
            rung = plan(shape, gigabytes * 1e9, batch=options.batch, prompt=options.prompt, completion=options.completion)
            print(f"  {name:21}", f"{'LoRA' if rung['lora'] else 'all weights'}, checkpointing {'on' if rung['checkpointing'] else 'off'}, {rung['batch']} at once")
        except ValueError:
            print(f"  {name:21}", "nothing")


if __name__ == "__main__":
    main()
