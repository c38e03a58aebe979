"""Shards hold exactly the images of the folder, as plain webdataset and tarfile read them."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_pipeline.build import build
from data_pipeline.collection import Collection
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.sources import digits, folder

CLASSES = ("ant", "bee", "cat")
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
        for sample in by_webdataset([manifest.shard(number) for number in range(len(manifest.urls))]):
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
    assert files(tmp_path / "again") == files(Path(built["train"].location).parent)
    assert len(files(tmp_path / "again")) == 2 * 8 + 2 + 2 + 1


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


def test_shards_that_nobody_knows_how_they_were_built_are_not_built_upon(image_folder, tmp_path):
    (tmp_path / "train-00000.tar").write_bytes(b"somebody's")
    with pytest.raises(DataError, match=r"holds tars, and no build\.json"):
        build(folder(image_folder), tmp_path, 0.2, [7], seed=3)
    assert files(tmp_path) == {"train-00000.tar": b"somebody's"}


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
    with pytest.raises(DataError, match=r"train-00001\.tar: No such file"):
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


def test_names_that_become_the_same_key_are_numbered(tmp_path, encode, picture, in_shards):
    names = ["a b/x.png", "a_b/x.png", "c/x 1.png", "c/x-1.png", "c/x.1.png", "c/x/1.png", "c/x_1.png"]
    images = {name: encode(picture(8, 8, number), "PNG") for number, name in enumerate(names)}
    for name, image in images.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image)
    manifest = build(folder(tmp_path / "images"), tmp_path / "out", 0.0, [10], seed=0)["train"]
    found = {key: image for key, (_, image, _) in in_shards(manifest).items()}
    assert sorted(found) == ["a_b_x", "a_b_x-2", "c_x-1", "c_x_1", "c_x_1-2", "c_x_1-3", "c_x_1-4"]
    assert sorted(found.values()) == sorted(images.values())


def test_files_that_are_no_images_are_passed_over(tmp_path, encode, picture):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(encode(picture(8, 8), "PNG"))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "README.png").write_text("outside the class folders")
    assert [(item.key, item.label) for item in folder(tmp_path).images] == [("a/x", 0)]


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
        pixels = np.asarray(Image.open(io.BytesIO(images[number].source)).convert("L"), np.float64)
        cells = pixels.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert pixels.shape == (64, 64)
        assert np.corrcoef(cells.ravel(), scans[number])[0, 1] > 0.98


def test_members_carry_no_owner_and_no_time(train):
    with tarfile.open(train.shard(0)) as tar:
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(0, "root", "root")}
        assert {(member.uid, member.gid) for member in tar} == {(0, 0)}


def test_own_validation_images_have_the_classes_of_the_training_images(image_folder, tmp_path, encode, picture, in_shards):
    image = encode(picture(9, 9), "PNG")
    for name in ("bee/b", "cat/image00"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / f"{name}.png").write_bytes(image)
    splits = build(folder(image_folder), tmp_path / "out", 0.0, [50], seed=0, val=folder(tmp_path / "val"))
    assert splits["train"].classes == splits["val"].classes == ["ant", "bee", "cat"]
    assert in_shards(splits["train"]) == in_folder(image_folder)
    assert in_shards(splits["val"]) == {"bee_b": ("png", image, 1), "cat_image00": ("png", image, 2)}


def test_a_class_of_the_validation_images_alone_is_an_error(image_folder, tmp_path, encode, picture):
    (tmp_path / "val" / "dog").mkdir(parents=True)
    (tmp_path / "val" / "dog" / "x.png").write_bytes(encode(picture(9, 9), "PNG"))
    with pytest.raises(DataError, match=r"dog/x.png: image dog/x: its class 'dog' is not among the 3 classes \(ant, bee, cat"):
        build(folder(image_folder), tmp_path / "out", 0.0, [50], seed=0, val=folder(tmp_path / "val"))


def test_a_key_of_both_splits_is_numbered(image_folder, tmp_path, in_shards):
    splits = build(folder(image_folder), tmp_path, 0.2, [50], seed=0, val=folder(image_folder))
    train, val = (in_shards(splits[name]) for name in ("train", "val"))
    assert val == {f"{key}-2": sample for key, sample in train.items()}


def test_without_shuffle_the_order_is_that_of_the_sources(image_folder, tmp_path, in_shards):
    sources = [path for name in CLASSES for path in sorted((image_folder / name).iterdir())]
    splits = build(folder(image_folder), tmp_path / "kept", 0.2, [10], seed=3, shuffle=False)
    shuffled = build(folder(image_folder), tmp_path / "shuffled", 0.2, [10], seed=3)
    for name, split in splits.items():
        keys = list(in_shards(split))
        assert set(keys) == set(in_shards(shuffled[name]))
        assert keys == [key for path in sources if (key := f"{path.parent.name}_{path.stem}") in keys]


def test_shards_of_bytes_are_about_that_large(image_folder, tmp_path, in_shards):
    manifest = build(folder(image_folder), tmp_path, 0.0, [], seed=0, shard_bytes=20_000)["train"]
    assert in_shards(manifest) == in_folder(image_folder)
    assert len(manifest.urls) > 3
    used = [sum(len(image) for _, image, _ in in_shards_of(manifest, number)) for number in range(len(manifest.urls))]
    assert all(abs(bytes_ + 2048 * count - 20_000) < 6_000 for bytes_, count in zip(used[:-1], manifest.samples, strict=False))


def in_shards_of(manifest, number):
    with tarfile.open(manifest.shard(number)) as tar:
        return [(m.name, tar.extractfile(m).read(), 0) for m in tar if not m.name.endswith(".cls")]


def test_statistics_of_shards_stand_in_a_table(built):
    for name in ("train", "val"):
        manifest = built[name]
        with Path(manifest.location).with_name(f"{name}.shards.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["shard"] for row in rows] == manifest.urls
        assert [(int(row["images"]), int(row["bytes"])) for row in rows] == list(
            zip(manifest.samples, manifest.bytes, strict=True)
        )
        for number, row in enumerate(rows):
            sizes, labels = [], set()
            with tarfile.open(manifest.shard(number)) as tar:
                for member in tar:
                    content = tar.extractfile(member).read()
                    if member.name.endswith(".cls"):
                        labels.add(content)
                    else:
                        sizes.append(Image.open(io.BytesIO(content)).size)
            means = [round(float(mean), 1) for mean in np.mean(sizes, axis=0)]
            assert [float(row["mean_width"]), float(row["mean_height"])] == means
            assert (int(row["kept"]), int(row["marked"]), int(row["reencoded"]), int(row["skipped"])) == (len(sizes), 0, 0, 0)
            assert int(row["labels"]) == len(labels)


def test_the_manifests_columns_are_those_of_the_shards(built):
    for manifest in built.values():
        for number in range(len(manifest.urls)):
            with tarfile.open(manifest.shard(number)) as tar:
                labels = [int(tar.extractfile(member).read()) for member in tar if member.name.endswith(".cls")]
            assert (manifest.label_min[number], manifest.label_max[number]) == (min(labels), max(labels))
            assert manifest.index_bytes[number] == Path(manifest.index(number)).stat().st_size
            assert manifest.sha256[number] == hashlib.sha256(Path(manifest.shard(number)).read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 half a header"])
def test_an_image_that_cannot_be_decoded_ends_the_build(image_folder, tmp_path, content):
    shutil.copytree(image_folder, tmp_path / "images")
    bad = tmp_path / "images" / "bee" / "image01.png"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=rf"{bad}: image bee/image01|{bad}: image bee_image01") as error:
        build(folder(tmp_path / "images"), tmp_path / "out", 0.2, [7], seed=3)
    assert "--skip-bad" in str(error.value)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert not (tmp_path / "out" / "train.json").exists()


def test_bad_images_are_left_out_and_listed(image_folder, tmp_path, in_shards):
    shutil.copytree(image_folder, tmp_path / "images")
    expected = in_folder(image_folder)
    for number, name in enumerate(("bee/image01.png", "cat/image05.png", "cat/image08.jpg")):
        path = tmp_path / "images" / name
        path.write_bytes(path.read_bytes()[: 40 + 100 * number])
        del expected[name.replace("/", "_").partition(".")[0]]
    with pytest.raises(DataError, match="or give --skip-bad"):
        build(folder(tmp_path / "images"), tmp_path / "out", 0.2, [7], seed=3)
    splits = build(folder(tmp_path / "images"), tmp_path / "out", 0.2, [7], seed=3, skip_bad=True)
    whole = build(folder(image_folder), tmp_path / "whole", 0.2, [7], seed=3)
    assert in_shards(splits["train"]) | in_shards(splits["val"]) == expected
    lines = [json.loads(line) for path in (tmp_path / "out").glob("*.skipped.jsonl") for line in path.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == ["bee_image01", "cat_image05", "cat_image08"]
    assert all(line["source"].startswith(str(tmp_path / "images")) and line["reason"] for line in lines)
    for number in range(len(whole["train"].urls)):  # the others stay where they are
        keys = [name for name, _, _ in in_shards_of(whole["train"], number)]
        assert [name for name, _, _ in in_shards_of(splits["train"], number)] == [
            name for name in keys if name.partition(".")[0] in expected
        ]


def test_a_shard_of_bad_images_alone_is_not_listed(tmp_path, encode, picture):
    for number in range(4):
        path = tmp_path / "images" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(9, 9, number), "PNG") if number > 1 else b"bad")
    manifest = build(folder(tmp_path / "images"), tmp_path / "out", 0.0, [2], 0, shuffle=False, skip_bad=True)["train"]
    assert manifest.urls == ["train-00001.tar"]
    manifest.check()
    for path in (tmp_path / "images" / "a").iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(DataError, match="every image was left out"):
        build(folder(tmp_path / "images"), tmp_path / "none", 0.0, [2], 0, skip_bad=True)
