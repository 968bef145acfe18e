"""Hold a loss against TRL's, and say what is probably confused in one that differs.

`of_trl`, `of_course` and `differences` compare `helpers.grpo` with a live `GRPOTrainer`. `broken` makes mistakes on
purpose. `loss` checks what a reader has written.
"""

import inspect
import math
import types
from dataclasses import dataclass

import torch

from helpers import grpo


@dataclass(frozen=True)
class Result:
    """What one batch gives: the loss, the gradient of every parameter, the metrics (TRL's name -> float)."""

    loss: float
    gradients: list
    metrics: dict


def of_trl(trainer, inputs):
    """The `Result` of TRL's own `compute_loss`. trainer: a `GRPOTrainer`; inputs: a batch from its `_prepare_inputs`."""
    logged = trainer._metrics["train"]
    logged.clear()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # `train()` sets it
    loss = trainer.compute_loss(trainer.model, inputs)
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    return Result(loss.item(), gradients, {name: values[-1] for name, values in logged.items()})


def of_course(trainer, inputs, module=grpo):
    """The `Result` of `helpers.grpo`, or of another module with its functions, for the same policy, batch and settings."""
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)  # (B, P + C)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logps, entropies = module.per_token_logps_and_entropies(trainer.model, input_ids, attention_mask, inputs["completion_ids"].shape[1], trainer.args.temperature)  # (B, C)
    names = inspect.signature(grpo.grpo_loss).parameters
    options = {name: getattr(trainer.args, name) for name in names if hasattr(trainer.args, name)}
    options |= dict(num_items_in_batch=inputs["num_items_in_batch"], entropies=entropies)
    if trainer.use_vllm:
        options |= dict(importance_sampling_ratio=inputs["importance_sampling_ratio"])
    old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
    loss, metrics = module.grpo_loss(logps, old, ref, inputs["advantages"], inputs["completion_mask"], **options)
    return Result(loss.item(), torch.autograd.grad(loss, list(trainer.model.parameters())), metrics)


def differences(a, b):
    """How far two results are apart: {"loss": …, "gradient": …, "metrics": …}, each the largest.

    Relative to the size of the loss, of the largest gradient or of the metric, but to 0.1, 1 or 1 where that is smaller.
    Two infinities of one sign, or two NaN, do not differ. A metric that one side lacks is infinitely far off, but for
    two that repeat what is known.
    """
    names = (a.metrics.keys() | b.metrics.keys()) - {"policy_loss", "entropy_coef"}
    return {
        "loss": _apart(a.loss, b.loss, 0.1),
        "gradient": _apart(torch.cat([g.flatten() for g in a.gradients]), torch.cat([g.flatten() for g in b.gradients]), 1.0),
        "metrics": max(_apart(a.metrics.get(name, math.inf), b.metrics.get(name, -math.inf), 1.0) for name in names),
    }


def _apart(a, b, least):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    same = (a == b) | (a.isnan() & b.isnan())
    size = a[a.isfinite()].abs().max().clamp(min=least) if a.isfinite().any() else least
    return (torch.where(same, 0.0, (a - b).abs()) / size).nan_to_num(math.inf, math.inf).max().item()


# Mistakes that are easily made, and were: name -> (what stands in helpers/grpo.py, what stands there instead).
BREAKS = {
    "no shift: logits of the token itself": (".logits[:, :-1]", ".logits[:, 1:]"),
    "temperature forgotten": ("logits.float() / temperature", "logits.float()"),
    "standard deviation with ddof 0": ("count > 1, count - 1", "count > 1, count"),
    "the sign": ("-torch.min(ratio", "torch.min(ratio"),
    "max instead of min": ("-torch.min(ratio", "-torch.max(ratio"),
    "the clip's bounds exchanged": ("ratio.clamp(1 - epsilon, 1 + epsilon_high)", "ratio.clamp(1 - epsilon_high, 1 + epsilon)"),
    "ratio to the reference, not to the old policy": ("log_ratio = per_token_logps - old_per_token_logps", "log_ratio = per_token_logps - ref_per_token_logps"),
    "KL with its direction reversed": ("d = ref_per_token_logps - per_token_logps", "d = per_token_logps - ref_per_token_logps"),
    "KL subtracted": ("per_token_loss + beta * per_token_kl", "per_token_loss - beta * per_token_kl"),
    "padding not masked": ("total = per_token_loss * completion_mask", "total = per_token_loss"),
    "mean over the wrong axis": ("(total.sum(1) / lengths).mean()", "(total.sum(0) / completion_mask.sum(0).clamp(min=1)).mean()"),
    "divided by this call's tokens": ("max(1, int(num_items_in_batch))", "completion_mask.sum().clamp(min=1)"),
}


def broken(name):
    """A copy of `helpers.grpo` with one of `BREAKS` in it, as a module."""
    right, wrong = BREAKS[name]
    source = inspect.getsource(grpo)
    if right not in source:
        raise LookupError(f"{right!r} stands no longer in helpers/grpo.py, so it cannot be broken; mend the entry {name!r} of BREAKS.")
    module = types.ModuleType(name)
    exec(source.replace(right, wrong), module.__dict__)
    return module


def loss(function):
    """Check a reader's `function(per_token_logps, old_per_token_logps, ref_per_token_logps, advantages, completion_mask, beta, epsilon)`.

    It should return what `grpo_loss` does with loss_type="grpo" and use_bias_correction_kl=False, as a scalar tensor.
    Prints the verdict: right; not attempted yet (for NotImplementedError); or what it is probably confused with.
    """
    generator = torch.Generator().manual_seed(0)
    logps, old, ref = -torch.rand(3, 4, 6, generator=generator)  # (B, C) each
    advantages = torch.tensor([1.5, 0.5, -0.5, -1.5])
    mask = (torch.arange(6) < torch.tensor([[6], [3], [5], [2]])).int()
    logps.requires_grad_()
    for settings in (dict(beta=0.5, epsilon=0.2), dict(beta=0.1, epsilon=0.4)):
        verdict = _verdict(function, logps, old, ref, advantages, mask, settings)
        if verdict:
            break
    print(verdict or "Right: value and gradient are those of helpers.grpo.")


def _verdict(function, logps, old, ref, advantages, mask, settings):
    """What is to be said against `function` on one batch; None if nothing."""

    def course(module=grpo, old=old, mask=mask, **changed):
        options = dict(loss_type="grpo", use_bias_correction_kl=False) | settings | changed
        return module.grpo_loss(logps, old, ref, advantages, mask, **options)[0]

    right = course()
    try:
        given = function(logps, old, ref, advantages, mask, **settings)
    except NotImplementedError:
        return "Not attempted yet."
    except RuntimeError as error:
        return f"Not yet: {error} (Shapes: advantages is (B,), here {tuple(advantages.shape)}, all others are (B, C), here {tuple(logps.shape)}; advantages[:, None] is (B, 1).)"
    if not isinstance(given, torch.Tensor) or given.shape != ():
        kind = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        return f"Not yet: a scalar tensor is wanted, this is {kind}."
    if not given.requires_grad:
        return "Not yet: nothing can be learned from it, no gradient reaches per_token_logps. A .detach(), .item() or torch.no_grad() too many?"
    if math.isclose(given.item(), right.item(), abs_tol=1e-5):
        gradient, wanted = (torch.autograd.grad(value, logps, retain_graph=True)[0] for value in (given, right))
        return None if torch.allclose(gradient, wanted, atol=1e-5) else "Not yet: the value is right, its gradient is not."
    policy_part, kl_part = course(beta=0.0), right - course(beta=0.0)
    plain_mean = dict(loss_type="dr_grpo", max_completion_length=mask.shape[1])

    def other_kl(estimator):
        return policy_part + settings["beta"] * grpo.aggregate(grpo.kl_estimate(logps, ref, estimator), mask, "grpo")

    clipped = (logps - old).exp().clamp(1 - settings["epsilon"], 1 + settings["epsilon"]) * advantages[:, None]
    confused = {
        "its sign: an optimizer makes it smaller": -right,
        "the sign of the objective: a loss is minus what shall grow": kl_part - policy_part,
        "max for min: of the two objectives the smaller one counts": course(broken("max instead of min")),
        "min: the clipped objective counts only where it is the smaller one": kl_part + grpo.aggregate(-clipped, mask, "grpo"),
        "the clip: it is missing": course(epsilon=math.inf),
        "KL's direction: it is exp(d) - d - 1 with d = ref - policy": course(broken("KL with its direction reversed")),
        "KL's sign: distance costs, so it is added to the loss": policy_part - kl_part,
        "KL: it is missing": policy_part,
        "KL: is the - 1 missing? It is 0 where policy and reference agree": right + settings["beta"],
        "KL: k3 is wanted, this is k1": other_kl("k1"),
        "KL: k3 is wanted, this is k2": other_kl("k2"),
        "KL times the ratio: here it is plain k3": course(use_bias_correction_kl=True),
        "epsilon: it is an argument, not always 0.2": course(epsilon=0.2),
        "beta: it is an argument, not always 0.5": course(beta=0.5),
        "ratio: it is to the old policy, not to the reference": course(old=ref),
        "ratio: it is the new policy over the old one": course(old=2 * logps.detach() - old),
        "ratio: is it 1 everywhere?": course(old=None),
        "padding: the mask is missing": course(mask=torch.ones_like(mask)),
        "padding: it is in the sums": course(broken("padding not masked")),
        "the mean: it is over each completion's own tokens, then over the completions; yours is over all tokens at once": course(loss_type="bnpo"),
        "the mean: it is over each completion's own tokens; yours divides by the padding, too": course(**plain_mean),
        "the mean: over the completions it is a mean, not a sum": right * len(logps),
        "the mean: it runs over the wrong axis": course(broken("mean over the wrong axis")),
    }
    hints = [f"Check {name}." for name, value in confused.items() if math.isclose(given.item(), value.item(), abs_tol=1e-5)]
    if not hints:  # more than one thing, or something else: which part is right by itself?
        parts = {
            "With beta = 0 it is right, so look at the KL term.": (advantages, mask, settings | dict(beta=0.0)),
            "With all advantages 0 it is right, so look at ratio, clip and min.": (torch.zeros_like(advantages), mask, settings),
            "Without padding it is right, so look at the mask and the mean.": (advantages, torch.ones_like(mask), settings),
        }
        for hint, (a, m, options) in parts.items():
            wanted = grpo.grpo_loss(logps, old, ref, a, m, loss_type="grpo", use_bias_correction_kl=False, **options)[0]
            if math.isclose(function(logps, old, ref, a, m, **options).item(), wanted.item(), abs_tol=1e-5):
                hints.append(hint)
    return " ".join([f"Not yet: {given.item():.4f}, but it should be {right.item():.4f}.", *hints])
