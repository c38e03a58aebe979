"""Activation checkpointing and compilation come from outside; the model's files know neither."""

from pathlib import Path

import pytest
import torch
from tiny_models import ON_RESNET, bit, random_images, randomised, vit
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

MODEL = Path(__file__).parents[2] / "vitscale" / "model"
CONFIGS = {
    "every option": vit(drop_path=0.5, dropout=0.1, pos_embed="relative", layer_scale=0.5, pool="map"),
    "positions in every block": vit(drop_path=0.5, drop_path_schedule="constant", pos_embed_at="every"),
    "hybrid": vit(**ON_RESNET, drop_path=0.5),
}


def gradients(model, images, chance):
    torch.manual_seed(0)
    loss = model(images, chance).square().sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_checkpointed_blocks_have_the_same_gradients_bit_by_bit(config):
    plain, wrapped = randomised(config).train(), randomised(config).train()
    for number, block in enumerate(wrapped.blocks):
        wrapped.blocks[number] = checkpoint_wrapper(block)
    images, chance = random_images(config), torch.rand(3, 2, 2)
    for found, expected in zip(gradients(wrapped, images, chance), gradients(plain, images, chance), strict=True):
        assert torch.equal(found, expected)


def test_checkpointed_stages_of_bit_have_the_same_gradients_bit_by_bit():
    model, images = randomised(bit(1, 1, 1, 1)), torch.randn(2, 3, 24, 24)
    model(images).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for number, stage in enumerate(model.stages):
        model.stages[number] = checkpoint_wrapper(stage)
    model(images).square().sum().backward()
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_compiled_blocks_give_the_same():
    config = vit(drop_path=0.5, pos_embed="relative", layer_scale=0.5)
    plain, compiled = randomised(config).train(), randomised(config).train()
    for block in compiled.blocks:
        block.compile(backend="aot_eager")
    images, chance = random_images(config), torch.rand(3, 2, 2)
    for found, expected in zip(gradients(compiled, images, chance), gradients(plain, images, chance), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("path", MODEL.glob("*.py"), ids=lambda path: path.name)
def test_the_models_files_know_neither(path):
    text = path.read_text()
    assert [word for word in ("torch.compile", "_dynamo", "utils.checkpoint", "distributed") if word in text] == []
