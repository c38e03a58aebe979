"""docs/model.md and its drawing: what it quotes is printed or in the code, what it says of options and models is so."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from documents import is_quoted

from vitscale import cli, recipe, show
from vitscale.model.build import parameter_shapes
from vitscale.model.config import ModelConfig, ViTConfig
from vitscale.model.flops import forward_macs
from vitscale.model.zoo import BIT, HYBRIDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/model.md").read_text()
SOURCES = [path.read_text() for path in (ROOT / "vitscale/model").glob("*.py")]
SIZES = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16, "image_size": 64, "num_classes": 4}


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rows(header):
    """Cells of the tables whose header begins so."""
    tables = re.findall(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()]


def backticked(text):
    return re.findall(r"`([^`]+)`", text)


COMMANDS = re.findall(r"^\$ vitscale (.*)\n((?:(?!\$ ).*\n)*)", "".join(fenced("console")), re.MULTILINE)
CODE = [piece for code in fenced("python") if "import" not in code for piece in code.split("...\n")]


@pytest.mark.parametrize("command, quote", COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands_print_what_the_page_quotes(command, quote, capsys):
    args = cli.parse(cli.build_parser(), command.split())
    assert args.command(args) == 0
    assert is_quoted(quote, capsys.readouterr().out)


@pytest.mark.parametrize("code", CODE, ids=[code.splitlines()[0][:40] for code in CODE])
def test_quoted_code_is_in_the_model(code):
    assert any(is_quoted(code, source) for source in SOURCES)


def test_a_quote_that_is_not_there_would_be_noticed():
    assert len(COMMANDS) >= 5 and len(CODE) >= 8
    text = "a\n  b\nc\nd\n"
    assert is_quoted("a\nb\n...\nd\n", text)
    assert not is_quoted("a\nc\n", text)
    assert not is_quoted("d\n...\na\n", text)


def test_the_example_runs_and_prints_its_comments(capsys):
    (example,) = (code for code in fenced("python") if "import" in code)
    exec(example, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"\)  # (.*)", example)


def test_every_option_has_its_row():
    named = {option.partition(":")[0] for cells in rows("option") for option in backticked(cells[0])}
    assert named == set(ViTConfig.model_fields)


@pytest.mark.parametrize("cells", [cells for cells in rows("option") if ":" in cells[0]], ids=lambda cells: cells[0].strip("`"))
def test_options_add_and_remove_the_tensors_of_their_row(cells):
    (option,) = backticked(cells[0])
    default = {"pool: token": {"pool": "gap"}, "pos_embed: learned1d": {"pos_embed": "none"}}.get(option, {})
    without = {*parameter_shapes(ViTConfig(**SIZES, **default))}
    with_it = {*parameter_shapes(ViTConfig(**SIZES, **recipe.parse_overrides([option.replace(": ", "=", 1)])))}
    added, _, removed = cells[3].partition("no ")
    for patterns, changed in ((backticked(added), with_it - without), (backticked(removed), without - with_it)):
        assert all(any(fnmatch(name, pattern) for name in changed) for pattern in patterns)
        assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in changed)


def test_models_have_the_sizes_of_the_tables():
    table = {backticked(name)[0]: tuple(numbers) for name, _, *numbers in rows("name")}
    assert {*HYBRIDS, *BIT} < {*table}
    for name, numbers in table.items():
        model = ModelConfig.model_validate({"name": name})
        parameters = sum(shape.numel() for shape in parameter_shapes(model).values())
        size = model.num_tokens if isinstance(model, ViTConfig) else f"{2048 * model.width_factor}x7x7"
        assert (str(size), f"{parameters:,}", f"{forward_macs(model) / 1e9:.2f}") == numbers, name


def test_the_drawing_has_the_shapes_and_names_of_the_model():
    drawing = (ROOT / "docs/model.svg").read_text()
    found = show.layers(ModelConfig.model_validate({"name": "vit-b16"}))
    shapes = {"x".join(map(str, layer.output or layer.parameters[""])) for layer in found}
    assert set(re.findall(r">(\d+(?:x\d+)+)<", drawing)) - shapes == {"3x224x224"}
    names = {layer.name.removeprefix("blocks.0.") for layer in found if not re.match(r"blocks\.[1-9]", layer.name)}
    assert names - set(re.findall(r'class="m">([a-z_0-9.]+)<', drawing)) == set()
