"""Every kind of source gives the images and labels that stand in it."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds
from PIL import Image
from pyarrow import parquet
from scipy.io import savemat
from serving import http_server

from data_pipeline.build import build, gather, spool
from data_pipeline.collection import Collection, Item, merge, read_classes
from data_pipeline.errors import DataError
from data_pipeline.sources import Reading

Found = list[tuple[str, int, bytes]]
SYNSETS = ["n01440764", "n01443537", "n02119789"]


@pytest.fixture
def gathered(tmp_path: Path) -> Callable[..., tuple[Found, list[str]]]:
    """gathered(sources, **reading) -> (key, label, image) of each, and the classes, as they arrive in a shard."""

    def read(*sources: str | Path, workers: int = 1, **reading: object) -> tuple[Found, list[str]]:
        with spool(tmp_path / "spool") as folder:
            found = gather([str(source) for source in sources], Reading(folder, **reading), workers)
            return [(image.key, image.label, image.read()[0]) for image in found.images], found.classes

    return read


@pytest.fixture
def png(encode: Callable, picture: Callable) -> Callable[[int], bytes]:
    return lambda number: encode(picture(9, 8, number), "PNG")


def tar_of(files: dict[str, bytes]) -> bytes:
    """By Python's tarfile."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path, png: Callable) -> list[Path]:
    """Four files of images."""
    paths = [tmp_path / "files" / "deep er" / f"{name}.png" for name in "abcd"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return paths


def test_a_csv_with_class_names(gathered, images, tmp_path, png):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "note", "path"])
        writer.writerow(["zebra", "two\nlines", "files/deep er/a.png"])
        writer.writerow(["ant", "", str(images[1])])
        writer.writerow(["7", 'a "quoted" one', "files/deep er/c.png"])
    found, classes = gathered(tmp_path / "list.csv")
    assert classes == ["7", "ant", "zebra"]
    assert [(label, image) for _, label, image in found] == [(2, png(0)), (1, png(1)), (0, png(2))]
    assert found[0][0] == "files/deep er/a"


def test_a_jsonl_with_numbers_and_keys(gathered, images, tmp_path, png):
    rows = [{"path": str(path), "label": 3 - number, "key": f"k{number}", "other": [1]} for number, path in enumerate(images)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert gathered(tmp_path / "list.jsonl") == ([(f"k{n}", 3 - n, png(n)) for n in range(4)], [])


def test_labels_that_are_class_names_though_they_look_like_numbers(gathered, images, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,label\n{images[0]},30\n{images[1]},10\n")
    found, classes = gathered(tmp_path / "list.csv", classes=["10", "20", "30"])
    assert ([label for _, label, _ in found], classes) == ([2, 0], ["10", "20", "30"])
    with pytest.raises(DataError, match=r"files/deep er/a: label 30, but classes count from 0 to 1$"):
        gathered(tmp_path / "list.csv", classes=["cat", "dog"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.csv", "path,label\nx.png,1\nnone.png,2\n", r"l\.csv:3: .*none\.png does not exist"),
        ("l.csv", "file,label\nx.png,1\n", r"l\.csv:2: .*needs `path` and `label`; found file, label"),
        ("l.csv", "path,label\nx.png,\n", r"l\.csv:2: .*needs `path` and `label`"),
        (
            "l.jsonl",
            '{"path": "x.png", "label": 1}\n{"path": "x.png"}\n',
            r"l\.jsonl:2: .*needs `path` and `label`; found path",
        ),
        ("l.jsonl", '{"path": "x.png", "label": 1}\n["x.png"]\n', r"l\.jsonl: not a listing, .*near line 2"),
        ("l.jsonl", "path,label\n", r"l\.jsonl: not a listing, .*near line 1"),
        ("l.jsonl", "[" * 100_000, r"l\.jsonl: not a listing, .*near line 1"),
        ("l.csv", b"path,label\nx.png\xff,1\n", r"l\.csv: not a listing, .*near line 0 .*byte 0xff"),
        ("l.csv", f'path,label\nx.png,"{"1" * 200_000}"\n', r"l\.csv: not a listing, .*near line 0 .*field larger"),
        ("l.txt", "x.png", r"l\.txt: what may be a source stands in .*--help"),
        ("l.tar.gz", "x.png", r"l\.tar\.gz: gunzip it first"),
        ("l.tar", "x.png", r"l\.tar: not a readable tar"),
    ],
)
def test_a_listing_that_is_wrong_is_named_with_its_line(gathered, tmp_path, png, name, content, said):
    (tmp_path / "x.png").write_bytes(png(0))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        gathered(tmp_path / name)


def test_what_does_not_exist_is_said_with_what_may_and_leaves_no_folder(gathered, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: does not exist; what may be a source stands in"):
        gathered(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_sources_without_images_are_an_error(gathered, write_tar):
    with pytest.raises(DataError, match=r"empty\.tar: no images there"):
        gathered(write_tar("empty.tar", []))


def test_two_builds_do_not_work_in_one_folder(tmp_path):
    with spool(tmp_path / "out") as folder:
        with pytest.raises(DataError, match="out: another build is at work there"), spool(tmp_path / "out"):
            pass
        assert Path(folder).is_dir()
    with spool(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file: is no folder to write to \(File exists\)"), spool(tmp_path / "file"):
        pass


def test_parquet_of_hugging_face_with_class_names(gathered, tmp_path, png):
    features = {"image": {"_type": "Image"}, "label": {"names": ["tench", "ant"], "_type": "ClassLabel"}}
    rows = {
        "image": [{"bytes": png(n), "path": f"n{n}.JPEG" if n else None} for n in range(7)],
        "label": [1, 0, 1, 1, 0, -1, 0],
    }
    table = pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "train-00000.parquet", row_group_size=3)
    found, classes = gathered(tmp_path / "train-00000.parquet")
    assert classes == ["tench", "ant"]
    assert found == [("train-00000-0" if n == 0 else f"n{n}", label, png(n)) for n, label in enumerate(rows["label"])]


def test_a_folder_of_plain_parquet_by_two_processes(gathered, tmp_path, png):
    for part in range(2):
        table = pa.table({"label": ["dog", "cat"], "image": [png(2 * part), png(2 * part + 1)]})
        (tmp_path / "parts").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "parts" / f"{part}.parquet")
    found, classes = gathered(tmp_path / "parts", workers=2)
    assert classes == ["cat", "dog"]
    assert found == [(f"{n // 2}-{n % 2}", 1 - n % 2, png(n)) for n in range(4)]


def test_parquet_without_what_is_needed(gathered, tmp_path):
    parquet.write_table(pa.table({"img": [b"x"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="columns img, label; needed are `image` and `label`"):
        gathered(tmp_path / "a.parquet")
    parquet.write_table(pa.table({"image": [b"x", None], "label": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: row 1: no bytes"):
        gathered(tmp_path / "b.parquet")
    parquet.write_table(pa.table({"image": ["x"], "label": [1]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: row 0: no bytes"):
        gathered(tmp_path / "text.parquet")
    for note in (b"no JSON", b"[1]", b'{"info": {"features": [1]}}', b'{"info": {"features": {"label": {"names": "ab"}}}}'):
        table = pa.table({"image": [b"x"], "label": [1]}).replace_schema_metadata({b"huggingface": note})
        parquet.write_table(table, tmp_path / "note.parquet")
        assert [label for _, label, _ in gathered(tmp_path / "note.parquet")[0]] == [1]
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[4:40] = bytes(36)
    (tmp_path / "damaged.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.parquet: not a parquet file that can be read"):
        gathered(tmp_path / "damaged.parquet")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"c\.parquet: not a parquet file that can be read"):
        gathered(tmp_path / "c.parquet")


@pytest.fixture
def theirs(tmp_path: Path, png: Callable) -> list[Path]:
    """Three shards of webdataset's own writer, 5 samples, with more members than ours need."""
    with wds.ShardWriter(str(tmp_path / "theirs-%d.tar"), maxcount=2, verbose=0) as writer:
        for n in range(5):
            sample = {"png": png(n), "cls": n % 2, "json": {"n": n}, "seg.png": png(n + 50)}
            writer.write({"__key__": f"part/{n}", **sample})
    return sorted(tmp_path.glob("theirs-*.tar"))


@pytest.mark.usefixtures("theirs")
def test_shards_are_cut_anew_with_all_their_members(tmp_path, png, by_webdataset):
    with spool(tmp_path / "out") as folder:
        found = gather([str(tmp_path / "theirs-{0..2}.tar")], Reading(folder, classes=["no", "yes"]))
        manifest = build(found, tmp_path / "out", 0.0, [4], seed=1)["train"]
    samples = by_webdataset([manifest.shard(0), manifest.shard(1)])
    assert manifest.samples.tolist() == [4, 1]
    assert sorted(sample["__key__"] for sample in samples) == [f"part_{n}" for n in range(5)]
    for sample in samples:
        n = int(sample["__key__"][-1])
        assert (sample["png"], sample["seg.png"], sample["cls"]) == (png(n), png(n + 50), b"%d" % (n % 2))
        assert json.loads(sample["json"]) == {"n": n}


def test_labels_of_shards_by_another_rule_stand_in_cls_afterwards(tmp_path, write_tar, png, by_webdataset):
    members = [
        ("a.png", png(0)),
        ("README", b"x"),
        ("._a.png", b"x"),
        ("a.json", b'{"kind": "dog"}'),
        ("a.cls", b"9"),
        ("b.png", png(1)),
        ("b.json", b'{"kind": "cat"}'),
    ]
    with spool(tmp_path / "out") as folder:
        reading = Reading(folder, label="json:kind", classes=["cat", "dog"])
        found = gather([str(write_tar("a.tar", members))], reading)
        manifest = build(found, tmp_path / "out", 0.0, [4], seed=1, shuffle=False)["train"]
    samples = by_webdataset([manifest.shard(0)])
    assert [(sample["__key__"], sample["cls"]) for sample in samples] == [("a", b"1"), ("b", b"0")]
    assert {name for sample in samples for name in sample if name[0] != "_"} == {"png", "json", "cls"}


@pytest.mark.parametrize("end", ["truncated", "link", "pickle"])
def test_a_broken_shard_is_no_source(gathered, theirs, write_tar, png, end):
    if end == "truncated":
        theirs[1].write_bytes(theirs[1].read_bytes()[:2048])
        broken = theirs[1]
    else:
        broken = write_tar("broken.tar", [("a.png", png(0)), ("a.cls", b"0"), *([("a.pkl", b"x")] if end == "pickle" else [])])
    if end == "link":
        with tarfile.open(broken, "a") as tar:
            info = tarfile.TarInfo("b.png")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    with pytest.raises(DataError, match=str(broken)):
        gathered(broken)


@pytest.mark.usefixtures("theirs")
def test_remote_shards_are_sources(gathered, tmp_path):
    with http_server(tmp_path) as url:
        found, _ = gathered(f"{url}/theirs-{{0..2}}.tar")
        with pytest.raises(DataError, match=r"theirs-3\.tar: .*"):
            gathered(f"{url}/theirs-3.tar")
    assert [(key, label) for key, label, _ in found] == [(f"part/{n}", n % 2) for n in range(5)]
    assert not (tmp_path / "spool").exists()


@pytest.mark.usefixtures("theirs")
def test_pipes_run_only_when_allowed(gathered, tmp_path):
    command = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/theirs-{{0..1}}.tar"
    with pytest.raises(DataError, match=r"would run a command.*--allow-pipe"):
        gathered(command)
    assert not (tmp_path / "ran").exists()
    found, _ = gathered(command, allow_pipe=True)
    assert (tmp_path / "ran").exists()
    assert [key for key, _, _ in found] == [f"part/{n}" for n in range(4)]


@pytest.mark.parametrize("command", ["exit 3", "cat {0}; exit 3", "head -c 2048 {0}", "true"])
def test_a_pipe_that_fails_is_no_source(gathered, theirs, command):
    with pytest.raises(DataError, match=r"^pipe:"):
        gathered("pipe:" + command.format(theirs[0]), allow_pipe=True)


@pytest.fixture
def imagenet(tmp_path: Path, png: Callable) -> dict[str, bytes]:
    """ImageNet's archives with 3 synsets of 2 images; what each image is called, and what it is."""
    names = {f"{synset}_{n}": png(10 * k + n) for k, synset in enumerate(SYNSETS) for n in (18, 7)}
    inner = {
        f"{synset}.tar": tar_of({f"{name}.JPEG": image for name, image in names.items() if name.startswith(synset)})
        for synset in reversed(SYNSETS)
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    (tmp_path / "winter21_whole.tar").write_bytes(tar_of({f"winter21_whole/{name}": tar for name, tar in inner.items()}))
    (tmp_path / "fall11").mkdir()
    for name, tar in inner.items():
        (tmp_path / "fall11" / name).write_bytes(tar)
    return names


@pytest.mark.parametrize("archive", ["ILSVRC2012_img_train.tar", "winter21_whole.tar", "fall11", "fall11/{}.tar"])
def test_archives_of_synsets(gathered, imagenet, tmp_path, archive):
    found, classes = gathered(tmp_path / archive.replace("{}", "{" + ",".join(SYNSETS) + "}"))
    assert classes == SYNSETS
    assert found == [(name, SYNSETS.index(name[:9]), image) for name, image in imagenet.items()]


@pytest.mark.usefixtures("imagenet")
def test_synsets_without_images_may_be_among_the_classes(gathered, tmp_path):
    """As Google's list of ImageNet-21k: two more than there are, sorted among the others."""
    names = sorted([*SYNSETS, "n01440765", "n09859684"])
    found, classes = gathered(tmp_path / "winter21_whole.tar", classes=names)
    assert classes == names
    assert [(key[:9], label) for key, label, _ in found[::2]] == [(SYNSETS[0], 0), (SYNSETS[1], 2), (SYNSETS[2], 3)]


@pytest.mark.usefixtures("imagenet")
def test_a_compressed_archive_is_refused(gathered, tmp_path):
    packed = tmp_path / "winter21_whole.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "winter21_whole.tar").read_bytes()))
    with pytest.raises(DataError, match="gunzip it first"):
        gathered(packed)
    with pytest.raises(DataError, match=r"renamed\.tar: not a readable tar .*gunzip"):
        gathered(packed.rename(tmp_path / "renamed.tar"))


@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_archive_is_refused(gathered, tmp_path, share):
    archive = tmp_path / "ILSVRC2012_img_train.tar"
    content = archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(content[: int(len(content) * share) // 512 * 512])
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar.*(truncated|unexpected end|not a readable)"):
        gathered(archive)


@pytest.fixture
def validation(tmp_path: Path, png: Callable) -> tuple[Path, list[str]]:
    """The validation images, not in order, and the synset of each in the order of their names."""
    truth = [SYNSETS[k] for k in (2, 0, 0, 2, 1)]
    images = {f"ILSVRC2012_val_0000000{n}.JPEG": png(n) for n in (3, 1, 2, 5, 4)}
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(images))
    return tmp_path / "ILSVRC2012_img_val.tar", truth


@pytest.fixture
def numbered(tmp_path: Path, png: Callable) -> Path:
    """As ImageNet-V2: folders 0 to 11, which as words stand in another order."""
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(12):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / f"{number:x}cafe.jpeg").write_bytes(png(number))
    return root


def test_folders_that_are_numbers_are_the_labels(gathered, numbered, png):
    found, classes = gathered(numbered)
    assert classes == []
    assert sorted(found) == sorted((f"{number}/{number:x}cafe", number, png(number)) for number in range(12))


def test_a_numbered_folder_that_is_missing_is_an_error_and_not_another_class(gathered, numbered):
    shutil.rmtree(numbered / "5")
    with pytest.raises(DataError, match=r"numbers from 0 on, as labels are, but 5 is missing"):
        gathered(numbered)
    known = sorted(map(str, range(12)))
    assert gathered(numbered, classes=known)[1] == known
    shutil.rmtree(numbered / "0")
    assert gathered(numbered)[1] == sorted(known[i] for i in range(12) if known[i] not in ("0", "5"))


def test_numbered_folders_held_out_have_the_classes_of_training(numbered, images, tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{images[0]},n{9000 + n}\n" for n in range(12)))
    with spool(tmp_path / "out") as folder:
        train = gather([str(tmp_path / "list.csv")], Reading(folder))
        val = gather([str(numbered)], Reading(folder, classes=train.classes, held_out=True))
    assert val.classes == train.classes == [f"n{9000 + n}" for n in range(12)]
    assert {image.key: image.label for image in val.images} == {f"{n}/{n:x}cafe": n for n in range(12)}


def test_numbered_folders_are_names_where_there_are_such(gathered, numbered):
    names = [str(number) for number in reversed(range(12))]
    found, classes = gathered(numbered, classes=names)
    assert classes == names
    assert {key: label for key, label, _ in found} == {f"{n}/{n:x}cafe": 11 - n for n in range(12)}
    (numbered / "12b").mkdir()
    _, classes = gathered(numbered)
    assert classes == sorted([*names, "12b"])


CIFAR = {
    "cifar-10-binary.tar.gz": (
        "cifar-10-batches-bin",
        "batches.meta.txt",
        [f"data_batch_{n}" for n in range(1, 6)],
        "test_batch",
    ),
    "cifar-100-binary.tar.gz": ("cifar-100-binary", "fine_label_names.txt", ["train"], "test"),
}
FINE = ["frog", "aquarium_fish", "truck"]  # not sorted


@pytest.fixture(params=CIFAR)
def cifar(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, list, list]:
    """(archive, training and test images), each (class, pixels) in order; with a coarse class of 9 in CIFAR-100."""
    folder, names, train, test = CIFAR[request.param]
    rng, files, known = np.random.default_rng(3), {}, []
    for part in [*train, test]:
        pixels = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 3, 4).tolist()
        coarse = b"\x09" if "100" in request.param else b""
        planes = [coarse + bytes([k]) + p.transpose(2, 0, 1).tobytes() for k, p in zip(labels, pixels, strict=True)]
        files[f"{folder}/{part}.bin"] = b"".join(planes)
        known.append(list(zip(labels, pixels, strict=True)))
    files[f"{folder}/readme.html"] = b"x"
    files[f"{folder}/{names}"] = ("\n".join(FINE) + "\n\n").encode()
    if "100" in request.param:
        files[f"{folder}/coarse_label_names.txt"] = b"animals\nvehicles\n"
    archive = tmp_path / request.param
    archive.write_bytes(gzip.compress(tar_of(dict(reversed(files.items())))))
    return archive, list(itertools.chain(*known[:-1])), known[-1]


def test_cifar_as_it_is_distributed(gathered, cifar):
    archive, *parts = cifar
    for split, held_out, known in zip(("train", "test"), (False, True), parts, strict=True):
        found, classes = gathered(archive, held_out=held_out)
        assert classes == FINE
        assert [(key, label) for key, label, _ in found] == [(f"{split}-{n:05d}", label) for n, (label, _) in enumerate(known)]
        for (_, _, image), (_, pixels) in zip(found, known, strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)


def test_cifar_by_the_command_keeps_its_pixels(cifar, tmp_path, by_webdataset):
    archive, train, test = cifar
    words = (archive.name, "--val", archive.name, "--out", "out", "--workers", "1", "--no-shuffle")
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    for split, known in (("train", train), ("val", test)):
        assert f"{split}.json: {len(known)} images in 1 shards, 3 classes" in done.stdout
        samples = by_webdataset([tmp_path / "out" / f"{split}-00000.tar"], "rgb8")
        assert [sample["cls"] for sample in samples] == [label for label, _ in known]
        assert all(np.array_equal(sample["png"], pixels) for sample, (_, pixels) in zip(samples, known, strict=True))


def test_a_damaged_archive_of_cifar_is_refused(gathered, cifar):
    archive, *_ = cifar
    content = archive.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (content[: len(content) // 2], flipped, gzip.compress(tar_of({"a.bin": b"x"})), b"no archive", b""):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{archive.name}: not CIFAR's binary version"):
            gathered(archive)


def test_of_cifar_every_file_is_there_once(gathered, cifar):
    archive, *_ = cifar
    with tarfile.open(archive) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}
    lost = next(name for name in files if name.endswith(("data_batch_3.bin", "train.bin")))
    archive.write_bytes(gzip.compress(tar_of({name: content for name, content in files.items() if name != lost})))
    with pytest.raises(DataError, match=f"it has no {Path(lost).name}"):
        gathered(archive)
    archive.write_bytes(gzip.compress(tar_of({**files, f"other/{Path(lost).name}": files[lost]})))
    with pytest.raises(DataError, match=f"{Path(lost).name} is there twice"):
        gathered(archive)


def write_devkit(path: Path, truth: list[str]) -> None:
    """meta.mat as the kit's: ids count from 1, in another order than the names of synsets; inner nodes follow."""
    ids = {SYNSETS[1]: 1, SYNSETS[2]: 2, SYNSETS[0]: 3, "n00001740": 4}
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = np.array([[(number, name, "words, more", "gloss", 0)] for name, number in ids.items()], fields)
    meta = io.BytesIO()
    savemat(meta, {"synsets": rows})
    lines = "".join(f"{ids[name]}\n" for name in truth).encode()
    root = "ILSVRC2012_devkit_t12"
    files = {f"{root}/readme.txt": b"", f"{root}/data/ILSVRC2012_validation_ground_truth.txt": lines}
    path.write_bytes(gzip.compress(tar_of({**files, f"{root}/data/meta.mat": meta.getvalue()})))


@pytest.mark.parametrize("kind", ["devkit.tar.gz", "synsets.txt"])
def test_validation_images_with_their_synsets(gathered, validation, tmp_path, png, kind):
    archive, truth = validation
    if kind == "synsets.txt":
        (tmp_path / kind).write_text("\n".join(truth))
    else:
        write_devkit(tmp_path / kind, truth)
    found, classes = gathered(archive, synsets=str(tmp_path / kind))
    assert classes == SYNSETS
    assert found == [(f"ILSVRC2012_val_0000000{n + 1}", SYNSETS.index(truth[n]), png(n + 1)) for n in range(5)]


def test_validation_images_need_a_synset_each(gathered, validation, tmp_path):
    archive, truth = validation
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val\.tar: its images have no classes; give --synsets"):
        gathered(archive)
    (tmp_path / "synsets.txt").write_text("\n".join(truth[:4]))
    with pytest.raises(DataError, match="5 images, but --synsets has 4 lines"):
        gathered(archive, synsets=str(tmp_path / "synsets.txt"))
    (tmp_path / "kit.tar.gz").write_bytes(gzip.compress(tar_of({"a": b""})))
    with pytest.raises(DataError, match=r"kit\.tar\.gz: not the development kit"):
        gathered(archive, synsets=str(tmp_path / "kit.tar.gz"))


def test_imagenet_from_its_archives_by_the_command(imagenet, validation, tmp_path, by_webdataset):
    archive, truth = validation
    write_devkit(tmp_path / "devkit.tar.gz", truth)
    words = ("ILSVRC2012_img_train.tar", "--val", archive.name, "--synsets", "devkit.tar.gz", "--out", "out", "--workers", "1")
    command = [sys.executable, "-m", "vitscale.cli", "data", "build", *words, "--shard-bytes", "1GiB"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert f"{tmp_path}/out/train.json: 6 images in 1 shards, 3 classes" in done.stdout
    train, val = (by_webdataset([tmp_path / "out" / f"{name}-00000.tar"]) for name in ("train", "val"))
    assert {sample["__key__"]: (int(sample["cls"]), sample["png"]) for sample in train} == {
        name: (SYNSETS.index(name[:9]), image) for name, image in imagenet.items()
    }
    assert {sample["__key__"]: int(sample["cls"]) for sample in val} == {
        f"ILSVRC2012_val_0000000{n + 1}": SYNSETS.index(name) for n, name in enumerate(truth)
    }
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.usefixtures("imagenet")
def test_several_sources_share_one_list_of_classes(gathered, images, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,label\n{images[0]},n01443537\n{images[1]},ant\n")
    found, classes = gathered(tmp_path / "list.csv", tmp_path / "ILSVRC2012_img_train.tar")
    assert classes == ["ant", *SYNSETS]
    assert [label for _, label, _ in found] == [2, 0, 1, 1, 2, 2, 3, 3]


def test_names_and_numbers_do_not_mix_without_a_list():
    parts = [Collection([Item("a", "png", 1, b"")], []), Collection([Item("b", "png", 0, b"")], ["cat"])]
    with pytest.raises(DataError, match="names in some sources and only numbers in others"):
        merge(parts)
    assert [image.label for image in merge(parts, ["ant", "cat"]).images] == [1, 1]


@pytest.mark.parametrize(("label", "classes"), [(3, ["a", "b", "c"]), (-2, []), (2**31, [])])
def test_labels_out_of_range_are_an_error_with_the_image(write_tar, gathered, tmp_path, png, label, classes):
    (tmp_path / "x.png").write_bytes(png(0))
    (tmp_path / "l.csv").write_text(f"path,label\nx.png,{label}\n")
    with pytest.raises(DataError, match=rf"x\.png: image x: label {label}, but classes count from 0 to"):
        gathered(tmp_path / "l.csv", classes=classes)
    shard = write_tar("s.tar", [("k.png", png(0)), ("k.cls", str(label).encode())])
    with pytest.raises(DataError, match=rf"s\.tar: .*k: label '?{label}"):
        gathered(shard, classes=classes)


def test_validation_images_with_names_need_names_in_training():
    train, val = (Collection([Item("a", "png", 0, b"")], names) for names in ([], ["cat"]))
    with pytest.raises(DataError, match="val images have classes with names"):
        build(train, Path("unused"), 0.0, [1], 0, val=val)


def test_unlabelled_images_stay_so():
    part = Collection([Item("a", "png", -1, b""), Item("b", "png", 0, b"")], ["cat"])
    assert [image.label for image in merge([part], ["ant", "cat"]).images] == [-1, 1]


@pytest.mark.parametrize(("text", "said"), [("a\nb\na\n", "'a'"), ("a\n\nb\n", "''")])
def test_a_class_list_names_each_class_once(tmp_path, text, said):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match=rf"names\.txt: class name {said} is empty or stands there twice"):
        read_classes(str(tmp_path / "names.txt"))


def test_the_digest_of_a_collection_sees_every_image():
    base = Collection([Item("a", "png", 1, "f", 0, 5), Item("b", "png", 0, "f", 5, 6)], ["x", "y"])
    others = [
        Collection(base.images[::-1], base.classes),
        Collection(base.images, ["y", "x"]),
        *(Collection([base.images[0], base.images[1]._replace(**change)], base.classes)
          for change in ({"key": "c"}, {"extension": "jpg"}, {"label": 1}, {"size": 7})),
    ]  # fmt: skip
    assert len({hashlib.sha256(each.digest().encode()).digest() for each in [base, *others]}) == len(others) + 1
