"""How much memory a GRPO step takes on a GPU, part by part, and which settings fit a card. Arithmetic over the architecture, no measurement.

python -m helpers.memory     the parts for Qwen2-0.5B, and what fits on some cards

Notebook 09 derives the formulas and checks them. Memory is in bytes; GB are 10^9 of them. P is the number of weights.
"""

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
TILE = 4096 * 32768  # TRL computes logits in tiles of so many tokens times so many entries of the vocabulary (trl/kernels/chunked_logprob.py)


def estimate(shape, batch, prompt, completion, *, half=True, checkpointing=True, lora=0, reference=False, generated=None):
    """Part -> bytes for one step of TRL's `GRPOTrainer` with AdamW; "peak" is the largest sum that is needed at one time.

    batch: completions that go through the model at once (`per_device_train_batch_size`). generated: those that are generated at
    once; by default the same. prompt, completion: tokens of each. half: bf16 or fp16 by autocast, over weights in 32 bits.
    checkpointing: keep one activation a layer and compute the others again. lora: the rank, 0 to train all weights; the
    frozen weights are in 16 bits then. reference: whether a second model is kept, for a KL divergence (LoRA needs none).
    """
    P, layers, h, i, q, kv = shape.weights, shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    trained = shape.lora_weights(lora) if lora else P
    tokens = batch * (prompt + completion)
    of_layer = tokens * ((26 * h + 8 * i + 4 * q + 4 * kv) if half else (24 * h + 16 * i + 8 * q + 8 * kv))  # what the backward pass of one layer needs
    frozen = P * (2 if half else 4) if lora else 0
    parts = {
        "weights": 4 * trained + frozen,
        "optimizer": 8 * trained,
        "reference": 4 * P if reference and not lora else 0,
        "gradients": 4 * trained,
        "copies in 16 bits": 2 * shape.layer_weights if half and not lora else 0,
        "activations": tokens * 4 * h * layers + of_layer if checkpointing else of_layer * layers,
        "logits": 2 * 4 * min(batch * completion * shape.vocab_size, TILE),
        "KV cache": 2 * layers * kv * (2 if half else 4) * (generated or batch) * (prompt + completion),
    }
    always = parts["weights"] + parts["optimizer"] + parts["reference"]
    # Copies and gradients are all there at the same time only if the activations are kept: else the copies are made again, layer by layer.
    copies_and_gradients = (max if checkpointing else sum)((parts["gradients"], parts["copies in 16 bits"]))
    training = copies_and_gradients + parts["activations"] + parts["logits"]
    generating = parts["KV cache"] + parts["copies in 16 bits"] + 4 * (generated or batch) * shape.vocab_size
    return parts | {"peak": always + max(training, generating)}


def of_settings(settings, lora=0, prompt=600, shape=QWEN2["Qwen2-0.5B"]):
    """The `estimate` for fields of `GRPOConfig`; what is missing has TRL's default."""
    batch, pieces = settings.get("per_device_train_batch_size", 8), settings.get("gradient_accumulation_steps", 1)
    half = settings.get("bf16", not settings.get("fp16", False)) or settings.get("fp16", False)
    other = dict(half=half, checkpointing=settings.get("gradient_checkpointing", True), reference=settings.get("beta", 0) != 0, lora=lora)
    return estimate(shape, batch, prompt, settings.get("max_completion_length", 512), generated=batch * pieces, **other)


LORA = 16  # the rank that is taken where not all weights can be trained
ROOM = 0.9  # the share of a card that is planned with: CUDA, kernels and fragments take the rest


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


def main():
    shape = QWEN2["Qwen2-0.5B"]
    print("Qwen2-0.5B, 8 completions of 300 tokens after prompts of 600:", report(estimate(shape, 8, 600, 300)))
    for name, gigabytes in {"8 GB": 8, "T4, 16 GB": 15.8, "24 GB": 24, "40 GB": 40}.items():
        print(f"{name:10}", plan(shape, gigabytes * 1e9))


if __name__ == "__main__":
    main()
