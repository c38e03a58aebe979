"""Activation checkpointing and compilation of blocks, and of what comes before them: less memory or time, the same numbers."""

import shutil

import numpy as np
import pytest
import torch
from tiny_models import ON_RESNET, bit, random_images, randomised, vit
from torch._dynamo.utils import counters

from data_pipeline.config import AugmentConfig, DataConfig, TrainSourceConfig
from data_pipeline.loader import Batch
from data_pipeline.order import Slots
from vitscale.config import HardwareConfig
from vitscale.engine import prepare
from vitscale.loop import preparation
from vitscale.model.config import ViTConfig

MODELS = {
    "vit": vit(depth=4),
    "dropout": vit(depth=4, dropout=0.5, drop_path=0.5, layer_scale=0.1),
    "relative": vit(depth=4, pool="map", pos_embed="relative", pos_embed_at="every"),
    "hybrid": vit(depth=4, dropout=0.5, **ON_RESNET),
    "bit": bit(1, 2, 1, 1),
}


def train_once(cfg, **hardware):
    """Loss, gradients, and the bytes of activations kept for the backward pass."""
    model = randomised(cfg).train()
    prepare(model, HardwareConfig(**hardware))
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(random_images(cfg)).square().mean()
    torch.manual_seed(4)  # masks are remembered, not drawn anew
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, sum(kept)


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_computing_blocks_again_saves_memory_and_changes_no_bit(cfg):
    loss, gradients, most = train_once(cfg)
    kept = []
    for every in (1, 2):
        again, others, bytes_kept = train_once(cfg, activation_checkpointing=every)
        assert torch.equal(again, loss)
        assert others.keys() == gradients.keys()
        assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())
        kept.append(bytes_kept)
    assert kept[0] < kept[1] < most
    if isinstance(cfg, ViTConfig) and cfg.stem_blocks is None:  # all blocks are alike: every second one saves half
        assert (most - kept[1]) / (most - kept[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tracing looks at it
@pytest.mark.parametrize("every", [0, 1])
def test_compiled_blocks_equal_eager_ones_to_rounding(every):
    cfg = vit(depth=2, layer_scale=0.1)
    loss, gradients, most = train_once(cfg)
    torch._dynamo.reset()
    counters.clear()
    compiled, others, kept = train_once(cfg, compile=True, activation_checkpointing=every)
    assert counters["stats"]["unique_graphs"] == 1  # the blocks share their code
    assert not counters["graph_break"]
    torch.testing.assert_close(compiled, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
    assert every == 0 or kept < most / 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("first", "dtype"), [("training", torch.float32), ("evaluation", torch.bfloat16)])
def test_all_blocks_share_one_graph_for_training_and_one_for_evaluation(first, dtype):
    """Whichever comes first, each is made for its own batch size: a resumed run may have to evaluate before it trains."""
    cfg = vit(depth=12, drop_path=0.3, layer_scale=0.1)
    model = randomised(cfg).to(dtype)
    prepare(model, HardwareConfig(compile=True))
    images = random_images(cfg, batch=6).to(dtype)
    torch._dynamo.reset()
    counters.clear()

    def train(batch=6):
        model.train()(images[:batch]).square().mean().backward()

    def evaluate():
        with torch.no_grad():
            model.eval()(images[:5])

    for use in (train, evaluate, train) if first == "training" else (evaluate, train, evaluate):
        use()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    train(4)
    train(3)
    assert counters["stats"]["unique_graphs"] == 4, "a graph serves several batch sizes"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("augment", [{}, {"mixup": 0.2, "cutmix": 1.0, "erase": 0.25}], ids=["plain", "mixed"])
def test_compiled_preparation_equals_the_eager_one_to_rounding(augment, dtype):
    """One graph without a break, and none anew for the next batch; bit by bit where nothing is mixed."""
    data = DataConfig(train=(TrainSourceConfig(manifest=""),), mix_group=4, augment=AugmentConfig(**augment))
    torch._dynamo.reset()
    counters.clear()
    for seed in range(3):
        batch = random_batch(seed)
        found, expected = (preparation(compiled)(batch, data, 7, dtype) for compiled in (True, False))
        for ours, eager in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-5 if ours.dtype == torch.float32 else 0.01, atol=1e-5)
            assert augment or torch.equal(ours, eager)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def random_batch(seed: int, count: int = 8, size: int = 16) -> Batch:
    rng = np.random.default_rng(seed)
    boxes = [torch.from_numpy(rng.integers(0, 9, (count, 4), np.int32)) for _ in range(2)]
    return Batch(
        images_BHWC=torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), np.uint8)),
        labels_B=torch.from_numpy(rng.integers(0, 7, count)),
        flip_B=torch.from_numpy(rng.random(count) < 0.5),
        erase_B4=boxes[0],
        noise_B=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, count)),
        mix_B=torch.from_numpy(rng.random(count, np.float32)),
        cut_B4=boxes[1],
        weight_B=torch.ones(count),
        slots=Slots(np.zeros(count, np.int64), np.arange(count)),
    )
