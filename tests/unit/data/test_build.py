"""Shards hold exactly the images of the folder, as plain webdataset and tarfile read them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from sklearn.datasets import load_digits

from data_pipeline.build import Collection, build, digits, folder, list_shards
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, read_manifest

Samples = dict[str, tuple[str, bytes, int]]


def in_folder(root: Path) -> Samples:
    """key -> (extension, bytes, class number), by walking."""
    classes = sorted(path.name for path in root.iterdir())
    return {
        f"{path.parent.name}_{path.stem}": (path.suffix[1:], path.read_bytes(), classes.index(path.parent.name))
        for path in root.glob("*/*")
    }


@pytest.fixture
def in_shards(by_webdataset: Callable) -> Callable[[Manifest], Samples]:
    """key -> (extension, bytes, label), by plain webdataset."""

    def read(manifest: Manifest) -> Samples:
        found: Samples = {}
        for sample in by_webdataset([manifest.path.parent / url for url in manifest.urls]):
            assert sample["__key__"] not in found
            (extension,) = (name for name in sample if name != "cls" and not name.startswith("__"))
            found[sample["__key__"]] = (extension, sample[extension], int(sample["cls"]))
        return found

    return read


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_plain_webdataset_reads_every_image_once(built, image_folder, in_shards):
    train, val = in_shards(built["train"]), in_shards(built["val"])
    assert not train.keys() & val.keys()
    assert train | val == in_folder(image_folder)
    assert len(val) == round(31 * 0.2)


def test_webdataset_decodes_our_shards(train, image_folder, by_webdataset):
    for sample in by_webdataset([train.shard(0)], "pil"):
        (path,) = image_folder.glob(f"*/{sample['__key__'].split('_')[1]}.*")
        (pixels,) = (value for value in sample.values() if isinstance(value, Image.Image))
        assert pixels.tobytes() == Image.open(path).convert("RGB").tobytes()
        assert sample["cls"] == ["ant", "bee", "cat"].index(path.parent.name)


def test_shards_have_the_sizes_asked_for(built):
    assert built["train"].samples.tolist() == [7, 1, 4, 4, 4, 4, 1]
    assert built["val"].samples.tolist() == [6]


def test_shards_are_shuffled(train, in_shards):
    keys = list(in_shards(train))
    assert keys != sorted(keys)
    assert len({key.split("_")[0] for key in keys[:7]}) > 1


def test_the_same_images_give_the_same_bytes(built, image_folder, tmp_path):
    build(folder(image_folder), tmp_path / "again", 0.2, [7, 1, 4], seed=3)
    assert files(tmp_path / "again") == files(built["train"].path.parent)
    assert len(files(tmp_path / "again")) == 2 * 8 + 2


def test_another_seed_gives_another_split(built, image_folder, tmp_path, in_shards):
    other = build(folder(image_folder), tmp_path / "other", 0.2, [7, 1, 4], seed=4)
    assert in_shards(other["val"]).keys() != in_shards(built["val"]).keys()


def test_a_complete_split_is_left_untouched(image_folder, tmp_path):
    first = build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    before = files(tmp_path), times(tmp_path)
    again = build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    assert (files(tmp_path), times(tmp_path)) == before
    assert again["train"].digest == first["train"].digest


@pytest.mark.parametrize(
    ("val_fraction", "sizes", "seed", "said"),
    [
        (0.5, [7], 3, "val_fraction was 0.2, is 0.5"),
        (0.2, [2], 3, "shard_samples was 7, is 2"),
        (0.2, [7], 9, "seed was 3, is 9"),
    ],
)
@pytest.mark.parametrize("lost", ["train.json", "val.json", None])
def test_another_build_does_not_mix_with_what_is_there(image_folder, tmp_path, val_fraction, sizes, seed, said, lost):
    build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    if lost:
        (tmp_path / lost).unlink()
    before = files(tmp_path)
    with pytest.raises(DataError, match=said):
        build(folder(image_folder), tmp_path, val_fraction, sizes, seed)
    with pytest.raises(DataError, match="images was"):
        build(Collection(folder(image_folder).images, ["other"]), tmp_path, 0.2, [7], seed=3)
    assert files(tmp_path) == before


def test_a_split_without_manifest_is_written_anew(image_folder, tmp_path):
    build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    complete = files(tmp_path)
    (tmp_path / "train.json").unlink()
    (tmp_path / "train-00001.tar").write_bytes(b"half a shard")
    build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    assert files(tmp_path) == complete


def test_a_damaged_split_is_an_error_and_not_overwritten(image_folder, tmp_path):
    build(folder(image_folder), tmp_path, 0.0, [7], seed=3)
    (tmp_path / "train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"train-00001.tar does not exist"):
        build(folder(image_folder), tmp_path, 0.0, [7], seed=3)


def test_without_held_out_part_there_is_one_split(image_folder, tmp_path, in_shards):
    splits = build(folder(image_folder), tmp_path, 0.0, [100], seed=0)
    assert splits.keys() == {"train"}
    assert in_shards(splits["train"]) == in_folder(image_folder)


def test_sizes_may_be_any_iterable(image_folder, tmp_path):
    splits = build(folder(image_folder), tmp_path, 0.2, iter([20, 5]), seed=0)
    assert {name: split.samples.tolist() for name, split in splits.items()} == {"train": [20, 5], "val": [6]}


@pytest.mark.parametrize("sizes", [[], [0], [3, -1]])
def test_shards_without_images_are_refused(image_folder, tmp_path, sizes):
    with pytest.raises(DataError, match="images per shard"):
        build(folder(image_folder), tmp_path, 0.2, sizes, seed=0)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_held_out_part_that_is_no_part_is_refused(image_folder, tmp_path, fraction):
    with pytest.raises(DataError, match=str(fraction)):
        build(folder(image_folder), tmp_path, fraction, [4], seed=0)


def test_unsafe_names_become_keys_that_webdataset_reads_whole(tmp_path, encode, picture, in_shards):
    image = encode(picture(8, 8), "PNG")
    names = ["cat v1.0/n01.10026.png", "dög/sub folder/b (1).PNG", "dög/sub folder/c.png"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image)
    manifest = build(folder(tmp_path / "images"), tmp_path / "out", 0.0, [10], seed=0)["train"]
    assert in_shards(manifest) == {
        "cat_v1_0_n01_10026": ("png", image, 0),
        "d_g_sub_folder_b_1_": ("png", image, 1),
        "d_g_sub_folder_c": ("png", image, 1),
    }
    assert manifest.classes == ["cat v1.0", "dög"]


@pytest.mark.parametrize("names", [("a/x 1.png", "a/x.1.png"), ("a/x.png", "a/x.jpg"), ("a b/x.png", "a_b/x.png")])
def test_names_that_become_the_same_key_are_an_error(tmp_path, encode, picture, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(picture(8, 8), "PNG"))
    with pytest.raises(DataError, match=r"1 images have the key of another"):
        build(folder(tmp_path), tmp_path / "out", 0.0, [10], seed=0)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_images_are_passed_over(tmp_path, encode, picture):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(encode(picture(8, 8), "PNG"))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "README.png").write_text("outside the class folders")
    assert [(item.key, item.label) for item in folder(tmp_path).images] == [("a_x", 0)]


@pytest.mark.parametrize(
    ("kind", "message"), [("missing", "no class folders"), ("empty", "no class folders"), ("bare", "no images")]
)
def test_folders_without_images_are_an_error(tmp_path, kind, message):
    root = tmp_path / "images"
    if kind != "missing":
        root.mkdir()
    if kind == "bare":
        (root / "class").mkdir()
    with pytest.raises(DataError, match=f"{root}: {message}"):
        folder(root)


def test_digits_are_those_of_scikit_learn():
    scans, labels = load_digits(return_X_y=True)
    images = digits().images
    assert [image.label for image in images] == labels.tolist()
    assert digits().classes == list("0123456789")
    for number in (0, 500, 1796):
        pixels = np.asarray(Image.open(io.BytesIO(images[number].read())).convert("L"), np.float64)
        cells = pixels.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert pixels.shape == (64, 64)
        assert np.corrcoef(cells.ravel(), scans[number])[0, 1] > 0.98


def test_foreign_shards_are_listed_in_the_order_given(tmp_path):
    with wds.ShardWriter(str(tmp_path / "theirs-%02d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(7):
            writer.write({"__key__": f"k{number}", "jpg": b"image %d" % number, "cls": number})
    shards = [tmp_path / f"theirs-{number:02d}.tar" for number in (2, 0, 1)]
    listed = list_shards(shards, tmp_path / "theirs.json", [])
    assert read_manifest(tmp_path / "theirs.json").urls == ["theirs-02.tar", "theirs-00.tar", "theirs-01.tar"]
    assert listed.samples.tolist() == [1, 3, 3]
    listed.check()


def test_a_missing_foreign_shard_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/none.tar: no such shard"):
        list_shards([tmp_path / "none.tar"], tmp_path / "list.json", [])


def test_a_damaged_foreign_shard_leaves_no_manifest(write_tar, tmp_path):
    whole = write_tar("whole.tar", [("a.jpg", b"x"), ("a.cls", b"0")])
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:1536])
    with pytest.raises(DataError, match=r"cut\.tar"):
        list_shards([whole, tmp_path / "cut.tar"], tmp_path / "list.json", [])
    assert not (tmp_path / "list.json").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_members_carry_no_owner_and_no_time(train):
    with tarfile.open(train.shard(0)) as tar:
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(0, "root", "root")}
        assert {(member.uid, member.gid) for member in tar} == {(0, 0)}
