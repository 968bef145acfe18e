"""Completions without the overhead: the loop of `generate` for a small Qwen2, written for speed. The answer to "why do people use vLLM?".

A small model on a CPU spends most of a GRPO step in `generate`, and most of that in Python: for each token dozens of
modules are called, a cache grows by copying, masks are built anew. Here the weights are read once, projections of the
same input are joined into one matrix, keys and values are written into a cache of full size, and a completion that has
ended leaves the batch. vLLM does the same and more, on a GPU. Used by `python -m helpers.train --fast`.
"""

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu


class Sampler:
    """Generates with the weights of `model`, a `Qwen2ForCausalLM`, as they are when `generate` is called.

    Raises TypeError for another architecture: its layers do other things.
    """

    def __init__(self, model):
        if model.config.model_type != "qwen2":
            raise TypeError(f"Sampler computes the layers of Qwen2 itself, but this model is a {model.config.model_type!r}. Use model.generate.")
        self.model = model

    @torch.no_grad()
    def generate(self, prompt_ids, max_new_tokens, temperature, eos_token_ids):
        """Complete each prompt, a list of token ids; greedily where temperature is 0. Returns a list of lists of ids, with the end if there is one."""
        model, config = self.model, self.model.config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads  # D, of one head
        device, epsilon = model.device, config.rms_norm_eps
        layers = [_joined(layer) for layer in model.model.layers]
        embedding, head, last_norm = model.model.embed_tokens.weight, model.lm_head.weight, model.model.norm.weight

        longest, B = max(map(len, prompt_ids)), len(prompt_ids)
        total = longest + max_new_tokens  # T
        ids = torch.zeros(B, longest, dtype=torch.long, device=device)
        mask = torch.zeros(B, total, dtype=torch.bool, device=device)  # what may be looked at
        for row, prompt in enumerate(prompt_ids):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) : longest] = True
        positions = (mask[:, :longest].cumsum(1) - 1).clamp(min=0)  # (B, P)

        # The prompts, at once, by the model itself; its cache goes into ours.
        out = model(input_ids=ids, attention_mask=mask[:, :longest].long(), position_ids=positions, use_cache=True, logits_to_keep=1)
        cache = [torch.zeros(2, B, groups, total, size, dtype=embedding.dtype, device=device) for _ in layers]  # keys, values
        for mine, theirs in zip(cache, out.past_key_values.layers, strict=True):
            mine[0, :, :, :longest], mine[1, :, :, :longest] = theirs.keys, theirs.values
        every = torch.arange(total, device=device)[None]
        cos, sin = (table[0] for table in model.model.rotary_emb(embedding, every))  # (T, D)

        ends = torch.tensor(sorted(eos_token_ids), device=device)
        completions, alive = [[] for _ in prompt_ids], list(range(B))
        place = positions[:, -1]  # (B,): of the last token
        logits = out.logits[:, -1].float()
        for t in range(longest, total):
            token = logits.argmax(-1) if temperature == 0 else torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]  # (B,)
            for row, new in zip(alive, token.tolist(), strict=True):
                completions[row].append(new)
            going = ~torch.isin(token, ends)
            if t == total - 1 or not going.any():
                break
            if not going.all():  # who has ended leaves
                alive = [row for row, goes in zip(alive, going.tolist(), strict=True) if goes]
                token, place, mask = token[going], place[going], mask[going]
                cache = [both[:, going] for both in cache]
            place = place + 1
            mask[:, t] = True
            visible, turn = mask[:, None, None, : t + 1], (cos[place][:, None], sin[place][:, None])
            x = embedding[token]  # (B, H)
            for (norm, qkv, bias, out_proj, norm2, gate_up, down), (keys, values) in zip(layers, cache, strict=True):
                q, k, v = linear(rms_norm(x, norm.shape, norm, epsilon), qkv, bias).view(len(x), -1, size).split([heads, groups, groups], 1)
                keys[:, :, t], values[:, :, t] = _rotated(k, *turn), v
                attended = scaled_dot_product_attention(_rotated(q, *turn)[:, :, None], keys[:, :, : t + 1], values[:, :, : t + 1], visible, enable_gqa=heads != groups)
                x = x + linear(attended.reshape(len(x), -1), out_proj)
                gate, up = linear(rms_norm(x, norm2.shape, norm2, epsilon), gate_up).chunk(2, -1)
                x = x + linear(silu(gate) * up, down)
            logits = linear(rms_norm(x, last_norm.shape, last_norm, epsilon), head).float()  # (B, V)
        return completions


def _joined(layer):
    """The weights of one layer; what reads the same input is one matrix."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = attention.q_proj, attention.k_proj, attention.v_proj
    weights = [layer.input_layernorm.weight, torch.cat([part.weight for part in qkv]), torch.cat([part.bias for part in qkv]), attention.o_proj.weight]
    return *weights, layer.post_attention_layernorm.weight, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight


def _rotated(x, cos, sin):
    """Rotary position embedding of one token: (B, heads, D)."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def fast_rollout(prompts, trainer):
    """TRL's `rollout_func`: give it to a `GRPOTrainer` as `rollout_func=fast_rollout`, and only its speed changes.

    Samples at the trainer's temperature from the whole vocabulary. Raises ValueError where the trainer wants another kind
    of sampling, or shares out the weights among processes.
    """
    args = trainer.args
    other = {
        name: getattr(args, name) for name, plain in dict(top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0, generation_kwargs=None).items() if getattr(args, name) != plain
    }
    if other:
        raise ValueError(f"fast_rollout knows temperature only, but the trainer has {other}. Leave these at their defaults, or leave rollout_func out.")
    if trainer._dist.is_zero3 or trainer._dist.is_fsdp:
        raise ValueError("fast_rollout reads whole weights, but ZeRO-3 and FSDP leave each process a part of them. Use DDP or ZeRO-2, or leave rollout_func (--fast) out.")
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    model = trainer.accelerator.unwrap_model(trainer.model)
    completion_ids = Sampler(model).generate(prompt_ids, args.max_completion_length, args.temperature, trainer.eos_token_ids)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}
