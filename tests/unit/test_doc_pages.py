"""All pages of the documentation: their commands can be given, their links lead somewhere, what they quote is in the code."""

import ast
import re
from functools import cache

import config_reference
import pytest
from documents import FENCE, PAGES, ROOT, blocks, commands

from launcher import cluster
from vitscale import cli, recipe
from vitscale.sweep import Sweep

DEMO = "recipes/demo/pretrain.yaml"
FENCED = [command.words for page in PAGES for block in blocks(page) for command in commands(block)]
COMMANDS = [words[1:] for words in FENCED if words[:1] == ["vitscale"]]
PROSE = {page: FENCE.sub("", page.read_text()) for page in PAGES}
MENTIONED = sorted({text for prose in PROSE.values() for text in re.findall(r"`vitscale ([^`|]+)`", prose)})
FAILURES = (ROOT / "docs/failures.md").read_text()
SYMPTOMS = re.findall(r"^### `(.*)`$", FAILURES, re.MULTILINE)
HOLE = "\0"  # in a message: what is filled in


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_can_be_given_and_names_keys_of_a_recipe(words, monkeypatch):
    """Words that no command knows end with SystemExit. `my.yaml` and the like stand for any recipe."""
    monkeypatch.chdir(ROOT)
    args = cli.parse(cli.build_parser(), words)
    if name := getattr(args, "recipe", None) if "overrides" in args else None:
        name = name if (ROOT / name).is_file() else DEMO
        trials = [trial.overrides for trial in Sweep(name, args.overrides).trials] if words[0] == "sweep" else [args.overrides]
        assert all(recipe.load(name, overrides) for overrides in trials)
    if (ROOT / (getattr(args, "cluster", None) or ".")).is_file():
        assert cluster.load(args.cluster)


@pytest.mark.parametrize("text", MENTIONED)
def test_a_command_that_is_mentioned_exists(text, capsys):
    """It may lack what it needs, but not have what no command knows."""
    try:
        cli.parse(cli.build_parser(), [word for word in text.split() if word != "..."])
    except SystemExit as ended:
        said = capsys.readouterr().err
        assert ended.code == 0 or "arguments are required" in said, said


def test_commands_were_found():
    assert len(COMMANDS) > 60 and len(MENTIONED) > 20


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_the_index_names_every_page_and_the_readme_names_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_reference_is_up_to_date():
    """If not: python tests/config_reference.py"""
    assert config_reference.PAGE.read_text() == config_reference.page()


def test_the_reference_has_what_no_code_of_its_own_says():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", config_reference.page(), re.MULTILINE))
    assert rows["train.total"] == "duration | required | length of the run"
    assert rows["init.from"].startswith("text | required | a checkpoint directory")
    assert rows["optim.betas"].startswith("list of 2 numbers >= 0, < 1 | `[0.9, 0.999]` | ")
    assert rows["hardware.zero_stage"].startswith("`0`, `1`, `2`, `3` | `1` | ")
    assert rows["model.stem_blocks"].startswith("list of whole numbers >= 1, <= 2^24 or null | `null` | ")
    printed = recipe.flatten(recipe.load(ROOT / DEMO).model_dump(mode="json", by_alias=True))
    assert {key for key in printed if not re.search(r"\.(steps|epochs|samples)$", key)} <= rows.keys()


@cache
def messages():
    """Every text in the code, with a HOLE for each value filled in."""
    found = []
    for folder in ("vitscale", "data_pipeline", "launcher"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    script = (ROOT / "slurm/train.sbatch").read_text()
    return found + [re.sub(r"\$\{?\w+\}?|\$\([^)]*\)", HOLE, line) for line in script.splitlines()]


def letters_said(symptom, message):
    """How many letters of the symptom are the message's own where it is a part of it, holes filled with anything; else 0."""
    best = dict.fromkeys(range(len(message)), 0)
    for letter in symptom:
        reached = {}
        for place, said in best.items():
            if place < len(message) and message[place] == HOLE:
                reached[place] = max(reached.get(place, 0), said)
                place += 1  # or the hole ends before this letter
            if place < len(message) and message[place] == letter:
                reached[place + 1] = max(reached.get(place + 1, 0), said + 1)
        best = reached
    return max(best.values(), default=0)


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_symptoms_are_messages_of_the_code(symptom):
    """Each piece between `...` is said by one message, of whose own letters at least a third of the piece are, and ten."""
    for piece in filter(str.strip, symptom.split("...")):
        words = set(re.findall("[a-z]{3,}", piece))
        likely = (message for message in messages() if sum(word in message for word in words) >= len(words) / 4)
        assert any(letters_said(piece.strip(), message) >= max(10, len(piece) / 3) for message in likely), piece


def test_a_symptom_that_nothing_says_would_be_noticed():
    assert letters_said("3 lanes cannot feed 2", f"{HOLE} lanes cannot feed {HOLE} processes") == 19
    assert letters_said("3 lanes cannot fit 2", f"{HOLE} lanes cannot feed {HOLE} processes") < 10
    assert letters_said("no such thing", "nothing") == 0


def test_each_failure_has_a_cause_and_a_command():
    entries = re.split(r"^### ", FAILURES, flags=re.MULTILINE)[1:]
    assert len(entries) == len(SYMPTOMS) >= 25
    for entry in entries:
        heading, _, rest = entry.partition("\n")
        assert FENCE.sub("", rest).strip() and (FENCE.search(rest) or re.search(r"`[^`]+[ =][^`]+`", rest)), heading
