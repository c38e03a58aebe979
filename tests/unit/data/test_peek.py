"""Contact sheets of images whose colours are known: each stands in its place, with ink under it."""

import io

import numpy as np
import pytest
from PIL import Image
from sharding import write_tar

from data_pipeline.manifest import Manifest
from data_pipeline.peek import GAP, LINE, Picture, contact_sheet
from data_pipeline.shardlist import list_shards
from vitscale.cli import build_parser
from vitscale.errors import UserError

SIZE = 40


def colour(number: int) -> tuple[int, int, int]:
    return (17 * number % 256, 255 - 20 * number, 90)


@pytest.fixture
def coloured(tmp_path) -> Manifest:
    """Ten pictures of one colour each, in two shards of 6 and 4."""
    members = []
    for number in range(10):
        file = io.BytesIO()
        Image.new("RGB", (20 + number, 50), colour(number)).save(file, "PNG")
        members += [
            (f"a-rather-long-key-of-sample-{number}.png", file.getvalue()),
            (f"a-rather-long-key-of-sample-{number}.cls", b"1"),
        ]
    tars = [write_tar(tmp_path / "0.tar", members[:12]), write_tar(tmp_path / "1.tar", members[12:])]
    return list_shards(tars, tmp_path / "set.json", ["ant", "bee"])


def cells(png: bytes, count: int, columns: int, size: int) -> list[np.ndarray]:
    """The part of a sheet that belongs to each picture: pixels and two lines."""
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    found = []
    for number in range(count):
        y = GAP + number // columns * (size + 2 * LINE + GAP)
        x = GAP + number % columns * (size + GAP)
        found.append(sheet[y : y + size + 2 * LINE, x : x + size])
        right = sheet[y : y + size + 2 * LINE, x + size : x + size + GAP]
        assert (right == 255).all(), "nothing reaches into the gap"
    return found


def test_pictures_keep_their_shape_and_place():
    tall = np.zeros((80, 20, 3), np.uint8)
    wide = np.full((3, 6, 3), (200, 0, 0), np.uint8)
    png = contact_sheet([Picture(tall, "ant", "k0"), Picture(wide, "bee", "k1"), Picture(None, "damaged", "k2")], SIZE)
    first, second, third = cells(png, 3, 2, SIZE)
    assert (first[:SIZE] == 0).all(axis=2).sum() == SIZE * SIZE // 4
    assert ((second[:SIZE] == (200, 0, 0)).all(axis=2).sum()) == SIZE * SIZE // 2
    assert tuple(third[0, 0]) == tuple(third[SIZE - 1, SIZE - 1]) != (255, 255, 255)
    for cell in (first, second, third):
        assert (cell[SIZE : SIZE + LINE] < 128).any() and (cell[SIZE + LINE :] < 128).any()


def test_labels_and_keys_are_written_as_given():
    """The same text gives the same ink, another text another; of too long labels the beginning tells, of keys the end."""
    long = "n" * 30
    texts = [("ant", "k"), ("ant", "k"), ("bee", "k"), ("bee", "x"), (f"a{long}", "k"), (f"b{long}", "k"), ("bee", f"{long}1")]
    texts += [("bee", f"{long}2"), ("bee", f"x{long}2")]
    grey = np.full((4, 4, 3), 200, np.uint8)
    ink = [cell[SIZE:].tobytes() for cell in cells(contact_sheet([Picture(grey, *text) for text in texts], SIZE), 9, 3, SIZE)]
    assert ink[0] == ink[1]
    assert ink[7] == ink[8]
    assert len(set(ink)) == 7


def peek(*words: str) -> int:
    args = build_parser().parse_args(["data", "peek", *words])
    return args.command(args)


def shown(path, count: int, columns: int, size: int = SIZE) -> list[int]:
    """The samples on a sheet, by the colour in the middle of each picture."""
    number = {colour(number): number for number in range(10)}
    return [number[tuple(cell[size // 2 + 1, size // 2].tolist())] for cell in cells(path.read_bytes(), count, columns, size)]


def test_samples_by_number_in_the_order_given(coloured, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert peek(coloured.location, "--out", str(sheet), "--sample", "7", "0", "3", "--size", str(SIZE)) == 0
    assert capsys.readouterr().out == f"{sheet}: 3 pictures\n"
    assert shown(sheet, 3, 2) == [7, 0, 3]


def test_samples_by_chance_are_different_and_follow_from_the_seed(coloured, tmp_path):
    found = []
    for seed in ("0", "0", "1", "2"):
        peek(coloured.location, "--out", str(tmp_path / "sheet.png"), "--count", "6", "--seed", seed, "--size", str(SIZE))
        found.append(tuple(shown(tmp_path / "sheet.png", 6, 3)))
    assert all(len(set(samples)) == 6 for samples in found)
    assert found[0] == found[1] and len(set(found)) > 1
    peek(coloured.location, "--out", str(tmp_path / "sheet.png"), "--size", str(SIZE))
    assert shown(tmp_path / "sheet.png", 10, 4) == list(range(10))


@pytest.fixture
def recipe(tmp_path) -> str:
    """One with a global batch of 5 and augmentations that leave plain colours as they are."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: plain\nmodel: {patch_size: 8, width: 16, depth: 1, num_heads: 1, mlp_dim: 16, image_size: 16, num_classes: 2}\n"
        "train: {total: {epochs: 1}, global_batch: 5}\noptim: {lr: 0.001}\ndata: {train: {manifest: unused.json}}\n"
    )
    return str(path)


def test_with_a_recipe_pictures_are_as_the_model_gets_them(tmp_path, recipe):
    """A picture of four quarters: crops of it differ by the seed's draws, all are squares of the model's size."""
    quarters = np.zeros((64, 64, 3), np.uint8)
    quarters[:32, :, 0] = quarters[:, :32, 1] = 255
    file = io.BytesIO()
    Image.fromarray(quarters).save(file, "PNG")
    members = [member for key in "abcd" for member in ((f"{key}.png", file.getvalue()), (f"{key}.cls", b"0"))]
    manifest = list_shards([write_tar(tmp_path / "0.tar", members)], tmp_path / "set.json")
    sheet = tmp_path / "sheet.png"
    peek(manifest.location, "--out", str(sheet), "--augment", recipe, "--size", "16")
    crops = [cell[:16].tobytes() for cell in cells(sheet.read_bytes(), 4, 2, 16)]
    assert len(set(crops)) == 4
    peek(manifest.location, "--out", str(sheet), "--size", "16")
    assert len({cell[:16].tobytes() for cell in cells(sheet.read_bytes(), 4, 2, 16)}) == 1


def test_a_damaged_picture_keeps_its_place(tmp_path, coloured):
    members = [("bad.jpg", b"x"), ("bad.cls", b"7")]
    manifest = list_shards([write_tar(tmp_path / "2.tar", members)], tmp_path / "two.json")
    sheet = tmp_path / "sheet.png"
    assert peek(coloured.location, manifest.location, "--out", str(sheet), "--sample", "9", "10", "--size", str(SIZE)) == 0
    good, bad = cells(sheet.read_bytes(), 2, 2, SIZE)
    assert tuple(good[SIZE // 2, SIZE // 2]) == colour(9)
    assert (bad[2 : SIZE - 2, 2 : SIZE - 2] == 255).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sample", "10"], "0..9"),
        (["--sample", "-1"], "0..9"),
    ],
)
def test_what_does_not_exist_is_said(coloured, tmp_path, words, said):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        peek(coloured.location, "--out", str(tmp_path / "sheet.png"), *words)
    assert not (tmp_path / "sheet.png").exists()
