"""Checks of docs/frameworks.md against the packages it is about, which the lock file does not have.

test_frameworks.py installs them elsewhere and runs this file there.
"""

import copy
import math
from pathlib import Path
from typing import Any

import gymnasium
import lightning
import peft
import pytest
import stable_baselines3
import timm
import torch
import torchao.quantization
import transformers
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

import fire
from tests.fire.recipes import recipe


def isometric(W: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether W (out, in) is FIRE's."""
    return float(fire.metrics.dfi(W, math.sqrt(W.shape[0] / W.shape[1])) / min(W.shape)) < tolerance


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: Any, index: int) -> Tensor:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0, momentum=0.9)


def test_lightning(tmp_path: Path) -> None:
    callback = recipe("lightning.Callback", "Fire", lightning=lightning)()
    module = Regression()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 6), torch.randn(8, 2)), 4)
    for phase in range(2):
        trainer = lightning.Trainer(
            max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, data)
        assert [isometric(module.net[i].weight, 0.1) for i in (0, 2)] == [phase == 1] * 2
    assert callback.phase == 2


def test_trainer_of_transformers(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=60, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    callback = recipe("TrainerCallback", "Fire", transformers=transformers)(
        2, fused={"*.c_attn": [48, 48, 48]}, solver="svd"
    )
    tokens = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(6)]
    seen = []

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **others: Any) -> None:
            weight = model.transformer.h[0].attn.c_attn.weight
            seen.append((isometric(weight[:, :48].T), float(optimizer.state[weight]["step"])))

    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-9, report_to=[], use_cpu=True,
        save_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=tokens, callbacks=[callback, Look()]).train()
    assert seen == [(False, 1), (True, 0), (True, 1)]  # the step count is that of a new optimiser


def test_stable_baselines3() -> None:
    callback = recipe("BaseCallback", "Fire", BaseCallback=BaseCallback)(50)
    agent = stable_baselines3.DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_starts=10, learning_rate=1e-9,
        target_update_interval=10_000, device="cpu", seed=0,
    )  # fmt: skip
    agent.learn(40, callback=callback)  # it acts four times between two trainings
    assert not isometric(agent.policy.q_net.q_net[0].weight)
    agent.learn(12, callback=callback, reset_num_timesteps=False)
    for network in (agent.policy.q_net, agent.policy.q_net_target):
        assert isometric(network.q_net[0].weight)
    assert max(float(state["step"]) for state in agent.policy.optimizer.state.values()) <= 11  # of the biases


def test_peft() -> None:
    base = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    kept = model.base_model.model[0].base_layer.weight.clone()
    report = fire.fire_(model)
    assert torch.equal(kept, model.base_model.model[0].base_layer.weight)
    assert {matrix.name.split(".")[3] for matrix in report.matrices} == {"lora_A", "lora_B"}
    assert "frozen" in report.skipped["base_model.model.0.base_layer.weight"]
    adapters = model.base_model.model[0]
    merged = kept + adapters.scaling["default"] * adapters.lora_B["default"].weight @ adapters.lora_A["default"].weight
    again = recipe("merge_and_unload", "reset", peft=peft)(model, config)
    weight = again.base_model.model[0].base_layer.weight
    assert torch.allclose(weight, fire.polar(merged.detach(), steps=10), atol=1e-5)
    assert any("lora" in name and p.requires_grad for name, p in again.named_parameters())


@pytest.mark.parametrize(
    ("name", "skipped"),
    [("vit_tiny_patch16_224", {"pos_embed", "cls_token"}), ("resnet18", set()), ("mixer_s32_224", set())],
)
def test_timm(name: str, skipped: set[str]) -> None:
    model = timm.create_model(name)
    width = getattr(model, "embed_dim", 0)
    fused = {"*.attn.qkv": [width] * 3} if "vit" in name else None
    report = fire.fire_(model, fused=fused)
    assert set(report.skipped) == skipped
    assert report.coverage > 0.99
    if fused is None:
        return
    assert not report.maybe_fused
    assert fire.fire_(copy.deepcopy(model)).maybe_fused == tuple(f"blocks.{i}.attn.qkv.weight" for i in range(12))


def test_depthwise_convolutions_of_timm_are_named() -> None:
    report = fire.fire_(timm.create_model("mobilenetv3_small_050"))
    assert all(why.startswith("a depthwise convolution") for why in report.skipped.values())
    assert len(report.skipped) == 11


def test_weights_of_torchao_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    torchao.quantization.quantize_(model[0], torchao.quantization.Int8WeightOnlyConfig())
    report = fire.fire_(model, frozen=True)
    assert [matrix.name for matrix in report.matrices] == ["1.weight"]
    assert "wraps its values" in report.skipped["0.weight"]


def test_gpt2_is_covered() -> None:
    """GPT-2 of 124 million parameters, untrained."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    report = fire.fire_(model, steps=5, fused={"*.c_attn": [768, 768, 768]})
    assert set(report.skipped) == {"transformer.wpe.weight"}
    assert report.coverage > 0.99
    assert report.coverage_of_all > 0.99
