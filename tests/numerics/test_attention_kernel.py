"""The kernel of attention that a table names is the one that runs, and nothing else changes."""

import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from tiny_models import Watched, bit, random_images, randomised, vit
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from vitscale.config import HardwareConfig
from vitscale.engine import prepare
from vitscale.model import attention

CPU, HEAD_WIDTH = torch.device("cpu"), 8
MATH, FLASH = "_softmax", "_scaled_dot_product_flash_attention_for_cpu"  # operations that give a kernel away
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def table_of(folder: Path, tokens: int, any_mode: str = "math", deterministic: str = "flash") -> Path:
    row = f'device = "cpu", dtype = "float32", head_width = {HEAD_WIDTH}, tokens = {tokens}'
    path = folder / "table.toml"
    path.write_text(f'rows = [\n{{{row}, any = "{any_mode}", deterministic = "{deterministic}"}},\n]')
    return path


def chosen(cfg, table: Path):
    model = randomised(cfg).train()
    attention.choose(model, CPU, torch.float32, table)
    return model


def kernels_run(model) -> tuple[set[str], list[torch.Tensor]]:
    """Which kernels forward and backward ran; logits and gradients."""
    with Watched(MATH) as math, Watched(FLASH) as flash:
        logits = model(random_images(model.config))
        logits.square().mean().backward()
    ran = {name for name, watched in (("math", math), ("flash", flash)) if watched.seen}
    return ran, [logits.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("checkpointing", [0, 1])
@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_the_tables_kernel_runs_and_gives_the_same(kernel, checkpointing, tmp_path):
    cfg = vit()
    model = chosen(cfg, table_of(tmp_path, cfg.num_tokens, kernel))
    prepare(model, HardwareConfig(activation_checkpointing=checkpointing))
    (found, *others), (plain, *expected) = kernels_run(model), kernels_run(randomised(cfg).train())
    assert found == {kernel} and plain == {"flash"}
    torch.testing.assert_close(others, expected, rtol=1e-4, atol=1e-6)


def test_deterministic_mode_has_a_kernel_of_its_own(tmp_path):
    cfg = vit()
    table = table_of(tmp_path, cfg.num_tokens, "math", "flash")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert kernels_run(chosen(cfg, table))[0] == {"flash"}
    finally:
        torch.use_deterministic_algorithms(before)
    assert kernels_run(chosen(cfg, table))[0] == {"math"}


@pytest.mark.parametrize(
    "cfg",
    [vit(image_size=16), vit(num_heads=4), vit(pos_embed="relative"), bit(1, 1, 1, 1)],
    ids=["tokens", "width", "bias", "bit"],
)
def test_torch_chooses_where_the_table_has_no_row(cfg, tmp_path):
    (found, *others), (plain, *expected) = (
        kernels_run(chosen(cfg, table_of(tmp_path, vit().num_tokens))),
        kernels_run(randomised(cfg).train()),
    )
    assert found == plain
    assert all(torch.equal(a, b) for a, b in zip(others[0], expected[0], strict=True))


def test_another_type_has_no_row(tmp_path):
    table = table_of(tmp_path, 10)
    assert attention.fastest("cpu", torch.float32, HEAD_WIDTH, 10, table) == attention.KERNELS["math"]
    assert attention.fastest("cpu", torch.bfloat16, HEAD_WIDTH, 10, table) is None
    assert attention.fastest("NVIDIA H200", torch.float32, HEAD_WIDTH, 10, table) is None


def test_every_row_of_the_shipped_table_can_be_chosen():
    rows = tomllib.loads(attention.TABLE.read_text())["rows"]
    keys = [(row["device"], row["dtype"], row["head_width"], row["tokens"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all({row["any"], row["deterministic"]} <= set(attention.KERNELS) for row in rows)
    assert {row["dtype"] for row in rows} <= set(DTYPES.values())
    assert "cudnn" not in {row["deterministic"] for row in rows}  # torch refuses it there, and would take the slowest


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tracing looks at it
def test_compiled_blocks_keep_the_choice_and_their_one_graph(tmp_path):
    cfg = vit(depth=4)
    expected = kernels_run(randomised(cfg).train())[1]
    for kernel in ("flash", "math"):
        model = chosen(cfg, table_of(tmp_path, cfg.num_tokens, kernel))
        prepare(model, HardwareConfig(compile=True))
        torch._dynamo.reset()
        counters.clear()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:  # of a dispatch mode dynamo keeps away
            logits = model(random_images(cfg))
            logits.square().mean().backward()
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
        names = {event.key for event in profiled.key_averages()}
        assert any(FLASH in name for name in names) == (kernel == "flash")
        found = [logits.detach(), *(parameter.grad for parameter in model.parameters())]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
