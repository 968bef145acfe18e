"""The course's loss against live TRL: loss, gradient of every parameter, metrics; and that the comparison sees a mistake."""

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap

import pytest
import torch
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from helpers import checks, course, grpo, solutions
from helpers.grpo import CLIPPED, LOSS_TYPES, aggregate, group_advantages, grpo_loss, make_completion_mask
from helpers.models import load_model
from helpers.tldr import load_tldr, summarize

TOLERANCE = 1e-5  # of loss and gradient, relative; of metrics
G, C = 4, 12


def some_reward(completions, **kwargs):
    return [float(len(set(text))) for text in completions]


def make_trainer(folder, **settings):
    """A `GRPOTrainer` whose policy has moved away from its reference."""
    settings = dict(per_device_train_batch_size=2 * G, num_generations=G, max_completion_length=C, temperature=0.8, epsilon_high=0.28) | settings
    config = GRPOConfig(str(folder), report_to=[], save_strategy="no", **settings, **course.profile().hardware)
    rows = load_tldr("train[:200]").map(summarize).filter(lambda row: len(row["prompt"]) < 420)
    trainer = GRPOTrainer(course.profile().models["sft"], some_reward, config, train_dataset=rows)
    move(trainer.model, seed=1)
    return trainer


def move(model, seed, by=0.02):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights += by * weights.abs().mean() * torch.randn(weights.shape, generator=generator)


def batches_of(trainer):
    """The batches that one generation is cut into."""
    trainer.model.train()
    loader = iter(trainer.get_train_dataloader())
    first = trainer._prepare_inputs(next(loader))
    batches = [first]
    for step in range(1, trainer.args.steps_per_generation):
        trainer._step = step
        batches.append(trainer._prepare_inputs(first))
    return batches


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two groups of four real completions, shuffled by TRL, old and reference log-probabilities stored; cut to different lengths."""
    inputs = batches_of(make_trainer(tmp_path_factory.mktemp("batch"), beta=0.1, num_iterations=2))[0]
    mask = (torch.arange(C) < torch.tensor([[12], [3], [9], [1], [12], [7], [5], [11]])).int()
    return dict(inputs, completion_mask=mask, num_items_in_batch=mask.sum())


GRID = list(itertools.product(LOSS_TYPES, (0.0, 0.1), ("token", "sequence"), ("on", "off")))


@pytest.fixture(scope="module")
def grid(batch, tmp_path_factory):
    """Every loss_type, beta, level, on- and off-policy: (name, trainer, inputs, TRL's result)."""
    cases, state = [], None
    for loss_type, beta, level in dict.fromkeys(case[:3] for case in GRID):
        trainer = make_trainer(tmp_path_factory.mktemp("grid"), loss_type=loss_type, beta=beta, importance_sampling_level=level)
        if state is None:
            move(trainer.model, seed=2, by=0.15)  # the policy has moved since it sampled
            state = trainer.model.state_dict()
        trainer.model.load_state_dict(state)
        for policy in ("on", "off"):
            inputs = dict(batch, old_per_token_logps=batch["old_per_token_logps"] if policy == "off" else None)
            cases.append(((loss_type, beta, level, policy), trainer, inputs, checks.of_trl(trainer, inputs)))
    return cases


def assert_equal(trainer, inputs, theirs=None, tolerance=TOLERANCE):
    theirs = theirs or checks.of_trl(trainer, inputs)
    ours = checks.of_course(trainer, inputs)
    found = checks.differences(theirs, ours)
    assert max(found.values()) < tolerance, found
    return theirs, ours


def test_the_grid_is_worth_comparing(grid):
    """Off-policy, tokens are clipped on both sides; the KL is not 0; completions differ in length or end."""
    by_name = {name: theirs for name, _, _, theirs in grid}
    off, on = by_name["dapo", 0.1, "token", "off"].metrics, by_name["dapo", 0.1, "token", "on"].metrics
    assert off["clip_ratio/low_mean"] > 0.01 and off["clip_ratio/high_mean"] > 0.01 and on["clip_ratio/region_mean"] == 0
    assert off["kl"] > 0.001
    assert all(max(g.abs().max().item() for g in theirs.gradients) > 1e-3 for theirs in by_name.values())
    assert len(by_name) == len(GRID) == 64


@pytest.mark.parametrize("case", GRID, ids=lambda case: "-".join(map(str, case)))
def test_equal_to_trl(grid, case):
    _, trainer, inputs, theirs = grid[GRID.index(case)]
    theirs, ours = assert_equal(trainer, inputs, theirs)
    assert ours.metrics.keys() == theirs.metrics.keys()


OPTIONS = {
    "epsilon_high by default": dict(epsilon_high=None, epsilon=0.1),
    "delta": dict(delta=1.05),
    "plain k3": dict(beta=0.1, use_bias_correction_kl=False),
    "half of the tokens": dict(top_entropy_quantile=0.5, beta=0.1),
    "no token but one": dict(top_entropy_quantile=0.0),
    "entropy bonus": dict(entropy_coef=0.3),
    "entropy bonus on some tokens": dict(entropy_coef=0.3, top_entropy_quantile=0.3, loss_type="grpo"),
    "off-policy mask": dict(off_policy_mask_threshold=0.01, beta=0.1),
    "other length": dict(loss_type="dr_grpo", max_completion_length=30),
    "no temperature": dict(temperature=1.0),
    "sapo": dict(loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=0.5),
    "cispo": dict(loss_type="cispo", epsilon_high=1.1),
    "vespo": dict(loss_type="vespo", vespo_k_pos=1.0, vespo_lambda_pos=2.0, vespo_k_neg=0.5, vespo_lambda_neg=1.5),
    "vespo without a brake": dict(loss_type="vespo", vespo_lambda_pos=0.0, vespo_lambda_neg=0.0),
}


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_options_equal_trl(batch, tmp_path, settings):
    trainer = make_trainer(tmp_path, **settings)
    move(trainer.model, seed=2, by=0.15)
    assert_equal(trainer, batch)


def damaged(batch, kind):
    """The same batch, made difficult."""
    generator = torch.Generator().manual_seed(3)
    mask, advantages, old = (batch[name].clone() for name in ("completion_mask", "advantages", "old_per_token_logps"))
    if kind == "random advantages":
        advantages = torch.randn(advantages.shape, generator=generator) * 3
    elif kind == "advantages of tokens":
        advantages = torch.randn(mask.shape, generator=generator)
    elif kind == "ragged masks":
        mask = (torch.arange(C) < torch.randint(1, C + 1, (len(mask), 1), generator=generator)).int()
    elif kind == "masks with holes":
        mask = torch.randint(0, 2, mask.shape, generator=generator).int()
    elif kind == "masked rows":
        mask[::2] = 0
    elif kind == "all masked":
        mask[:] = 0
    elif kind == "ratios of e^±30":
        old += torch.tensor([30.0, -30.0]).repeat(len(old) // 2)[:, None]
    elif kind == "ratios of e^±1000":
        old += torch.tensor([1000.0, -1000.0]).repeat(len(old) // 2)[:, None]
    else:
        old[:, ::2] += 40
        old[:, 1::3] -= 25
    return dict(batch, completion_mask=mask, advantages=advantages, old_per_token_logps=old, num_items_in_batch=mask.sum())


KINDS = [
    "random advantages",
    "advantages of tokens",
    "ragged masks",
    "masks with holes",
    "masked rows",
    "all masked",
    "ratios of e^±30",
    "ratios of e^±1000",
    "ratios of both signs",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_difficult_batches_equal_trl(batch, grid, loss_type, kind):
    """No infinity and no NaN but where TRL has the same."""
    for (name, beta, level, policy), trainer, _, _ in grid:
        if name == loss_type and beta and policy == "off" and (level == "token" or kind == "masked rows"):
            # a log-ratio of 40 has lost a digit of a log-probability before `exp`, in TRL as here
            theirs, ours = assert_equal(trainer, damaged(batch, kind), tolerance=1e-4 if kind.startswith("ratios") else TOLERANCE)
            assert math.isfinite(theirs.loss) or kind.startswith("ratios")
            assert math.isfinite(ours.loss) == math.isfinite(theirs.loss)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("accumulation", "per_generation"), [(2, 2), (2, 4), (4, 2)])
def test_accumulated_batches_equal_trl(tmp_path, loss_type, accumulation, per_generation):
    settings = dict(gradient_accumulation_steps=accumulation, steps_per_generation=per_generation, per_device_train_batch_size=G)
    trainer = make_trainer(tmp_path, loss_type=loss_type, beta=0.1, entropy_coef=0.2, **settings)
    parts = batches_of(trainer)
    move(trainer.model, seed=2, by=0.15)
    assert len(parts) == per_generation
    for part in parts:
        assert_equal(trainer, part)


def test_a_generation_in_parts_is_the_whole():
    """dapo's loss of four parts is that of the whole; bnpo's is not."""
    generator = torch.Generator().manual_seed(0)
    losses, mask = torch.randn(8, 6, generator=generator), (torch.arange(6) < torch.tensor([[1], [2], [6], [6], [3], [4], [6], [1]])).int()
    pieces = list(zip(losses.chunk(4), mask.chunk(4), strict=True))
    whole = aggregate(losses, mask)
    assert sum(aggregate(*piece, num_items_in_batch=mask.sum(), gradient_accumulation_steps=4) for piece in pieces).item() == pytest.approx(whole.item(), abs=1e-6)
    assert sum(aggregate(*piece, "bnpo", gradient_accumulation_steps=4) for piece in pieces).item() != pytest.approx(whole.item(), abs=1e-2)
    with pytest.raises(ValueError, match="'dapo'.*num_items_in_batch"):
        aggregate(*pieces[0], gradient_accumulation_steps=4)


@pytest.mark.parametrize("masked", [False, True])
def test_completion_masks_equal_trl(tmp_path, masked):
    trainer = make_trainer(tmp_path, mask_truncated_completions=masked, max_completion_length=50, temperature=1.0)
    trained, _ = load_model(course.profile().models["grpo-length-coverage"])
    trainer.model.load_state_dict(trained.state_dict())  # some end in time, some do not
    inputs = batches_of(trainer)[0]
    ours = make_completion_mask(inputs["completion_ids"], [*trainer.eos_token_ids, trainer._tokenizer.pad_token_id], masked)
    assert torch.equal(ours, inputs["completion_mask"])
    lengths = ours.sum(1).tolist()
    assert any(0 < length < 50 for length in lengths) and (0 if masked else 50) in lengths and (50 if masked else 0) not in lengths
    assert_equal(trainer, inputs)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shape", [(2 * G, C), (2 * G, 1)])
def test_the_correction_for_another_engine_equals_trl(batch, tmp_path, loss_type, shape):
    """What TRL does where vLLM has sampled; the ratio that it would have computed is given."""
    trainer = make_trainer(tmp_path, loss_type=loss_type, beta=0.1)
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    ratio = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2
    ratio[0] = 0.0  # masked out
    assert_equal(trainer, dict(batch, importance_sampling_ratio=ratio))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_evaluation_equals_trl(batch, tmp_path, loss_type):
    trainer = make_trainer(tmp_path, loss_type=loss_type, gradient_accumulation_steps=4)
    trainer.model.eval()
    theirs = trainer.compute_loss(trainer.model, batch).item()
    trainer.args.gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    assert checks.of_course(trainer, batch).loss == pytest.approx(theirs, rel=TOLERANCE, abs=1e-6)


@pytest.mark.parametrize("log_ratios", [[-30.0, 25.0, 0.0], [30.0, -22.0, 0.5], [-9.0, -9.5, -1.0], [15.0, 7.0, 0.0], [5.0, 4.0, 1.0], [0.2, -0.1, 0.3]])
@pytest.mark.parametrize("advantage", [1.5, -0.5])
@pytest.mark.parametrize("k_and_lambda", [(2.0, 3.0), (0.1, 0.1), (10.0, 0.0)])
def test_the_weight_of_vespo_equals_trl(log_ratios, advantage, k_and_lambda):
    """Also where single tokens, and whole completions, run into TRL's bounds."""
    log_ratio, advantages, mask = torch.tensor([log_ratios]), torch.tensor([[advantage]]), torch.ones(1, 3)
    theirs = GRPOTrainer.get_gamma_weights(advantages, log_ratio, mask, None, *k_and_lambda, *k_and_lambda).item()
    options = dict(zip(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), 2 * k_and_lambda, strict=True))
    ours = grpo_loss(log_ratio, torch.zeros(1, 3), None, advantages[0], mask, loss_type="vespo", **options)[1]["vespo/phi_seq_mean"]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_an_empty_batch_with_entropies_equals_trl(batch, tmp_path):
    trainer = make_trainer(tmp_path, top_entropy_quantile=0.5, entropy_coef=0.3)
    assert_equal(trainer, damaged(batch, "all masked"))


def test_the_off_policy_mask_by_hand():
    """Bad, and per token unlikelier than the threshold: out. Good, or exactly at it: in. The mean over tokens counts, not the sum."""
    old = torch.zeros(4, 2)
    new = torch.tensor([[-1.5, -1.5], [-1.5, -1.5], [-1.0, -1.0], [-1.5, -1.5]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]])
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    grpo_loss(new, old, None, advantages, mask, epsilon=1.0, off_policy_mask_threshold=1.0)[0].backward()
    assert (new.grad != 0).tolist() == [[False, False], [True, True], [True, True], [False, False]]


def test_advantages_stay_on_their_device():
    """`meta` stands for any device that is not the default."""
    for reward_weights in (None, [1, 2]):
        assert group_advantages(torch.zeros(8, 2, device="meta"), 4, reward_weights=reward_weights).device.type == "meta"


@pytest.mark.parametrize("name", checks.BREAKS)
def test_every_break_is_seen(batch, grid, tmp_path, name):
    """One mistake in helpers/grpo.py, and the comparison with TRL says so."""
    module = checks.broken(name)
    if name == "standard deviation with ddof 0":
        from tests.test_grpo import trl_advantages

        rewards = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
        theirs = trl_advantages(tmp_path, rewards)
        torch.testing.assert_close(group_advantages(rewards, 4), theirs, atol=TOLERANCE, rtol=TOLERANCE)
        assert (module.group_advantages(rewards, 4) - theirs).abs().max() > 0.01
    elif name == "divided by this call's tokens":
        trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=G, beta=0.1)
        part = batches_of(trainer)[0]
        part["completion_mask"][0, 3:] = 0
        assert max(checks.differences(checks.of_trl(trainer, part), checks.of_course(trainer, part, module)).values()) > 10 * TOLERANCE
    else:
        cases = [case[1:] for case in grid if case[0][1]]  # beta > 0: there is a reference
        assert any(max(checks.differences(theirs, checks.of_course(trainer, inputs, module)).values()) > 10 * TOLERANCE for trainer, inputs, theirs in cases)


def test_the_ten_breaks_are_there():
    assert len(checks.BREAKS) >= 10
    assert all(inspect.getsource(grpo).count(right) == 1 for right, _ in checks.BREAKS.values())


# What the course's functions know, and what it leaves to others: a field in neither fails the next test.
ELSEWHERE = {
    "num_generations num_generations_eval generation_batch_size shuffle_dataset num_iterations": "what is sampled, and how often it is used (notebook 04)",
    "temperature": "an argument of per_token_logps",
    "scale_rewards reward_weights multi_objective_aggregation": "arguments of group_advantages",
    "mask_truncated_completions": "an argument of make_completion_mask",
    "top_p top_k min_p repetition_penalty generation_kwargs chat_template_kwargs cache_implementation max_tool_calling_iterations": "how is sampled",
    "use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target": "a controller of entropy_coef between updates",
    "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps": "another reference, the same loss",
    "router_aux_loss_coef": "mixtures of experts only",
    "model_init_kwargs trust_remote_code disable_dropout cast_lm_head_to_fp32 pad_to_multiple_of ds3_gather_for_generation": "the model and its memory",
    "log_completions log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo": "what is logged",
    "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged": "the engine that samples",
}


def test_every_field_of_grpo_config_is_known():
    """A new TRL may bring an option that the course's loss does not have."""
    fields = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    own = fields.keys() - {field.name for field in dataclasses.fields(TrainingArguments)}
    options = inspect.signature(grpo_loss).parameters
    elsewhere = {name for names in ELSEWHERE for name in names.split()}
    unknown = {name for name in own - options.keys() - elsewhere if not name.startswith("vllm_") and name != "use_vllm"}
    assert not unknown, f"GRPOConfig has fields that the course does not know: {sorted(unknown)}. Add them to grpo_loss, or to ELSEWHERE with a reason."
    gone = elsewhere - own
    assert not gone, f"GRPOConfig no longer has {sorted(gone)}; take them out of ELSEWHERE."
    changed = {name: (options[name].default, fields[name]) for name in own & options.keys() if options[name].default != fields[name]}
    assert not changed, f"TRL's defaults are others now, (course, TRL): {changed}."


def test_every_loss_type_of_trl_is_known():
    """All strings that `_compute_loss` compares with `self.loss_type`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer._compute_loss)))
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and ast.unparse(node.left) == "self.loss_type"]
    theirs = {item.value for node in compared for item in ast.walk(node) if isinstance(item, ast.Constant)}
    assert theirs == set(LOSS_TYPES), f"TRL's loss types are {sorted(theirs)}, the course's {sorted(LOSS_TYPES)}. Teach helpers/grpo.py the others."


def test_four_completions_by_hand():
    """Ratios 1.5, .5, 1.5, .5; advantages 2, 1, -1, -2; one token each. Clipped at .2: objectives 2.4, .5, -1.5, -1.6."""
    new, old, mask = torch.tensor([[0.6], [0.2], [0.6], [0.2]]).log(), torch.full((4, 1), 0.4).log(), torch.ones(4, 1)
    advantages = torch.tensor([2.0, 1.0, -1.0, -2.0])
    assert grpo_loss(new, old, None, advantages, mask, epsilon=1e9)[0].item() == pytest.approx(-(3 + 0.5 - 1.5 - 1) / 4, abs=1e-6)
    loss, metrics = grpo_loss(new, old, None, advantages, mask)
    assert loss.item() == pytest.approx(-(2.4 + 0.5 - 1.5 - 1.6) / 4, abs=1e-6)
    assert [metrics[f"clip_ratio/{name}"] for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")] == [0.25, 0.25, 0.5, 0, 1]
    ref = torch.tensor([[0.6], [0.2], [0.6], [0.4]]).log()  # twice as likely as now, at the last: k3 = 2 - ln 2 - 1
    k3 = 1 - math.log(2)
    assert grpo_loss(new, old, ref, advantages, mask, beta=0.4, use_bias_correction_kl=False)[0].item() == pytest.approx(0.05 + 0.4 * k3 / 4, abs=1e-6)
    assert grpo_loss(new, old, ref, advantages, mask, beta=0.4)[0].item() == pytest.approx(0.05 + 0.4 * k3 / 4 * 0.5, abs=1e-6)


def test_weights_of_a_token_by_hand():
    """Advantage 1, ratio 1: the gradient of each token's log-probability, for completions of 1 and 3 tokens."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    wanted = {"grpo": (1 / 2, 1 / 6), "bnpo": (1 / 4, 1 / 4), "dr_grpo": (1 / 20, 1 / 20), "dapo": (1 / 4, 1 / 4), "luspo": (1 / 2, 1 / 2), "cispo": (0.2 / 4, 0.2 / 4)}
    for loss_type, (short, long) in wanted.items():
        logps = torch.zeros(2, 3, requires_grad=True)
        grpo_loss(logps, None, None, torch.ones(2), mask, loss_type=loss_type, max_completion_length=10)[0].backward()
        torch.testing.assert_close(-logps.grad, torch.tensor([[short, 0, 0], [long] * 3]))


def test_bad_input_ends_in_a_clear_error():
    logps, advantages, mask = torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3)
    for arguments, message in [
        ((logps[0], None, None, advantages, mask), r"per_token_logps has shape \(3,\).*\(B, C\)"),
        ((logps, logps[:, 1:], None, advantages, mask), r"old_per_token_logps has shape \(4, 2\)"),
        ((logps, None, logps.T, advantages, mask), r"ref_per_token_logps has shape \(3, 4\)"),
        ((logps, None, None, advantages, mask[:2]), r"completion_mask has shape \(2, 3\)"),
        ((logps, None, None, torch.zeros(3), mask), r"advantages has shape \(3,\).*\(4,\), one for each completion"),
    ]:
        with pytest.raises(ValueError, match=message):
            grpo_loss(*arguments)
    for options, message in [
        (dict(loss_type="gspo"), "loss_type is 'gspo'.*'grpo', 'bnpo'"),
        (dict(beta=0.1), "beta is 0.1, but ref_per_token_logps is None"),
        (dict(importance_sampling_level="word"), "'word'.*'token' or 'sequence'"),
        (dict(top_entropy_quantile=0.2), "need entropies"),
        (dict(entropy_coef=0.2), "need entropies"),
        (dict(entropies=mask[:1]), r"entropies has shape \(1, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            grpo_loss(logps, None, None, advantages, mask, **options)
    with pytest.raises(ValueError, match="loss_type is 'mean'"):
        aggregate(logps, mask, "mean")


# The exercise of notebook 05.
def wrong(change):
    """The solution with one thing changed, as a reader might write it."""
    source = inspect.getsource(solutions.my_loss)
    assert change[0] in source, change
    space = {"torch": torch}
    exec(source.replace(*change), space)
    return space["my_loss"]


def test_the_solution_passes(capsys):
    checks.loss(solutions.my_loss)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (("torch.min", "torch.max"), "max for min"),
        (("d = ref_per_token_logps - per_token_logps", "d = per_token_logps - ref_per_token_logps"), "KL's direction"),
        (("+ beta", "- beta"), "KL's sign"),
        (("+ beta", "+ 0 * beta"), "KL: it is missing"),
        (("per_token_logps - old_per_token_logps", "per_token_logps - ref_per_token_logps"), "not to the reference"),
        (("per_token_logps - old_per_token_logps", "per_token_logps - per_token_logps"), "ratio: is it 1"),
        (("ratio.clamp(1 - epsilon, 1 + epsilon)", "ratio"), "the clip: it is missing"),
        (("per_token_loss * completion_mask", "per_token_loss"), "in the sums"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "total.sum() / completion_mask.sum()"), "all tokens at once"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "(total.sum(0) / completion_mask.sum(0)).mean()"), "wrong axis"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "-(total.sum(1) / completion_mask.sum(1)).mean()"), "its sign"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "total.sum(1) / completion_mask.sum(1)"), "tensor of shape (4,)"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "(total.sum(1) / completion_mask.sum(1)).mean().detach()"), "no gradient"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "0.0"), "float"),
        ((" - 1)", ")"), "the - 1 missing"),
        (("epsilon, 1 + epsilon", "0.2, 1 + 0.2"), "not always 0.2"),
        (("beta * (", "0.5 * ("), "not always 0.5"),
        (("ratio * advantages[:, None]", "ratio * advantages"), "(B, 1)"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "total.mean()"), "the padding, too"),
        (("-torch.min(unclipped, clipped)", "torch.min(unclipped, clipped)"), "the sign of the objective"),
        (("torch.min(unclipped, clipped)", "clipped"), "only where it is the smaller one"),
        (("(d.exp() - d - 1)", "-d"), "this is k1"),
        (("(d.exp() - d - 1)", "d.square() / 2"), "this is k2"),
        (("per_token_logps - old_per_token_logps", "old_per_token_logps - per_token_logps"), "the new policy over the old one"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "per_token_loss.mean()"), "the mask is missing"),
        (("(total.sum(1) / completion_mask.sum(1)).mean()", "(total.sum(1) / completion_mask.sum(1)).sum()"), "not a sum"),
        (("(d.exp() - d - 1)", "d.abs()"), "look at the KL term"),
        (("torch.exp(per_token_logps - old_per_token_logps)", "1 + per_token_logps - old_per_token_logps"), "look at ratio, clip and min"),
        (("total.sum(1) / completion_mask.sum(1)", "total.sum(1) / (completion_mask.sum(1) ** 2 / 6)"), "look at the mask"),
        (("ratio = ", "raise NotImplementedError\n    ratio = "), "Not attempted yet"),
    ],
)
def test_typical_wrong_answers_get_the_right_hint(capsys, change, hint):
    checks.loss(wrong(change))
    said = capsys.readouterr().out
    assert hint in said and "Right" not in said


def test_a_right_value_with_a_wrong_gradient_is_seen(capsys):
    def detached(logps, *rest, **settings):
        value = solutions.my_loss(logps, *rest, **settings)
        return value.detach() + 2 * (value - value.detach())

    checks.loss(detached)
    assert "its gradient is not" in capsys.readouterr().out


def test_clipped_types_are_those_of_trl():
    """The types for which TRL logs clip_ratio."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert source.count(repr(list(CLIPPED)).replace("'", '"')) == 2
