"""What we stand on in TRL: every overridden name with the signature relied upon.

When an upgrade of TRL fails here, compare the new method with our override before anything else.
"""

from __future__ import annotations

import inspect

import grpo_lab as lab
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from gptoss_tools.training.configuring import OURS, SAME_NAME
from gptoss_tools.training.grpo import DecisionTrainer
from gptoss_tools.training.sharing import SharesPrompts
from gptoss_tools.training.steady import SteadySaves

# name: (parameters after self, why it is overridden)
OVERRIDDEN = {
    "_send_telemetry": ("", "no usage ping"),
    "create_model_card": ("model_name, dataset_name, tags", "no README at every save"),
    "_get_train_sampler": ("dataset", "StepStream decides which rows come"),
    "_tokenize_prompts": ("prompts", "prompts are rendered text, nothing is added"),
    "_calculate_rewards": (
        "inputs, prompts, completions, completion_ids_list",
        "records go out; rows without a reward are remembered",
    ),
    "_generate_and_score_completions": ("inputs", "masked rows leave mask and token count"),
    "_generate_single_turn": (
        "prompt_ids, images, multimodal_fields, num_generations, has_tool_images",
        "no dropout while drawing; with share_prompts, prompts are read once",
    ),
    "_get_per_token_logps_and_entropies": (
        "model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, "
        "compute_aux_loss, pixel_values, image_grid_thw, num_images, pixel_attention_mask, "
        "spatial_shapes, num_tiles, image_sizes, token_type_ids, mm_token_type_ids, "
        "image_position_ids",
        "with share_prompts, completions share their prompt's tokens",
    ),
    "_prepare_inputs": ("generation_batch", "row-counting losses get their correction"),
    "_compute_loss": ("model, inputs", "the correction is applied"),
    "_save_checkpoint": ("model, trial", "rollout state; the folder appears whole"),
    "_load_optimizer_and_scheduler": ("checkpoint", "rollout state comes back"),
    "_save": ("output_dir, state_dict", "an adapter of any kind alone, or a layout that reloads"),
    "_load_from_checkpoint": ("resume_from_checkpoint, model", "a MixLoRA comes back too"),
}
# Read or set, not overridden.
ATTRIBUTES = (
    "_step _buffered_inputs _metrics _current_train_step_time num_iterations num_generations "
    "loss_type eos_token_ids ref_model current_gradient_accumulation_steps"
)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_trl_still_has_the_signature_we_override(name):
    signature = inspect.signature(getattr(GRPOTrainer, name))
    assert ", ".join(list(signature.parameters)[1:]) == OVERRIDDEN[name][0]


def test_nothing_else_is_overridden():
    all_three = {**vars(SteadySaves), **vars(SharesPrompts), **vars(DecisionTrainer)}
    ours = {n for n, v in all_three.items() if callable(v) and not n.startswith("__")}
    assert {n for n in ours if hasattr(GRPOTrainer, n)} == OVERRIDDEN.keys()


def test_trl_still_has_the_arguments_we_set_or_forbid():
    known = set(inspect.signature(GRPOConfig).parameters)
    assert set(SAME_NAME) <= known
    assert known >= OURS


def test_trl_still_has_the_attributes_we_read(tmp_path):
    run = lab.trainer(tmp_path, max_steps=1)
    run.train()
    missing = [name for name in ATTRIBUTES.split() if not hasattr(run, name)]
    assert missing == []


def test_trl_hands_the_rollout_over_in_the_form_we_change(tmp_path):
    run = lab.trainer(tmp_path)
    run.model.train()
    rows = [run.train_dataset[int(i)] for i in run._get_train_sampler().generation_batch(0)]
    batch = GRPOTrainer._generate_and_score_completions(run, rows)
    assert batch["completion_mask"].shape == batch["completion_ids"].shape
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()


def stock(tmp_path, model, **changes) -> GRPOTrainer:
    values = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 5,
        "router_aux_loss_coef": 0.0,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "gradient_checkpointing": False,
    }
    tokenizer = lab.byte_tokenizer()
    dataset, _ = lab.build_dataset(lab.table(), tokenizer, lab.settings())
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=GRPOConfig(**{**values, **changes}),
        train_dataset=dataset,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", ["dr_grpo", "dapo", "grpo", "bnpo"])
def test_without_masking_loss_and_gradient_are_stock_trl(tmp_path, loss_type, beta):
    ours = lab.trainer(
        tmp_path,
        loss_type=loss_type,
        beta=beta,
        reward="lab_unmasked",
        prompts_per_step=2,
        num_iterations=2,
    )
    ours.model.train()
    rows = [ours.train_dataset[int(i)] for i in ours._get_train_sampler().generation_batch(0)]
    batch = ours._prepare_inputs(rows)
    assert (batch["prompt_mask"] == 0).any()  # left padding, where positions differ
    theirs = stock(tmp_path / "stock", lab.tiny_model(), loss_type=loss_type, beta=beta)
    theirs.model.train()
    results = []
    for run in (ours, theirs):
        run.current_gradient_accumulation_steps = 1
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(1.5)  # ratios other than 1
        loss = run._compute_loss(run.model, batch)
        loss.backward()
        results.append((loss.detach(), lab.gradients(run.model)))
    (our_loss, our_gradient), (loss, gradient) = results
    torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=1e-7)
    assert our_gradient.keys() == gradient.keys() and gradient
    for name, value in gradient.items():
        assert (our_gradient[name] - value).norm() <= 1e-4 * value.norm(), name


def test_scoring_and_generating_give_a_token_the_same_probability_in_bfloat16(tmp_path):
    # With TRL's positions, which count the padding, rounding moves them apart.
    run = lab.trainer(tmp_path, lora=False)
    model = run.model.to(torch.bfloat16).eval()
    ids = torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(0))
    pad = run.processing_class.pad_token_id
    padded = torch.cat([torch.full((1, 1000), pad), ids], dim=1)

    def score(tokens: torch.Tensor) -> torch.Tensor:
        mask = (tokens != pad).long()
        with torch.no_grad():
            return run._get_per_token_logps_and_entropies(model, tokens, mask, 6)[0]

    near = (score(padded) - score(ids)).abs().max()
    model._forward_pre_hooks.clear()
    far = (score(padded) - score(ids)).abs().max()
    assert near < far / 2


def test_generation_stops_at_any_of_the_three_stop_tokens(tmp_path):
    run = lab.trainer(tmp_path)
    tokenizer = run.processing_class
    stops = tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>", "<|endoftext|>"])
    assert sorted(run.generation_config.eos_token_id) == sorted(stops)
    assert sorted(run.eos_token_ids) == sorted(stops)
    assert run.generation_config.pad_token_id == stops[2]
