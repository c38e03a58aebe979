"""What counts as a shard: tars of webdataset and of tarfile are read, anything that lost or confuses a sample is refused."""

import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path, PurePosixPath

import pytest
import webdataset as wds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import AWS_CREDENTIALS, http_server, s3_server

from data_pipeline import remote, storage
from data_pipeline.errors import DataError
from data_pipeline.index import Entry, decode_index, encode_index, rows_range, scan
from data_pipeline.labels import Labels
from data_pipeline.manifest import read_manifest
from data_pipeline.shardlist import expand, list_shards
from data_pipeline.stream import Shards

PAIRS = [("a.jpg", b"first image"), ("a.cls", b"3"), ("b.png", b"second"), ("b.cls", b"0")]


def found(shard: Path) -> list[tuple[str, bytes, int]]:
    """(key, image, label) where the entries say they lie, their sums checked with zlib."""
    content = shard.read_bytes()
    samples = []
    for entry in scan(shard, Labels()):
        image = content[entry.offset : entry.offset + entry.size]
        assert entry.crc32 == zlib.crc32(image)
        assert image_in(content[entry.offset - entry.lead :][: entry.span]) == image
        samples.append((entry.key, image, entry.label))
    return samples


def image_in(span: bytes) -> bytes:
    """The image among the members of one sample, by the bytes of the sample alone."""
    with tarfile.open(fileobj=io.BytesIO(span), errors="replace") as tar:
        files = {PurePosixPath(info.name).name.lower(): tar.extractfile(info).read() for info in tar if info.isfile()}
    (image,) = (content for name, content in files.items() if re.fullmatch(r"[^.]+\.(jpg|jpeg|png|webp)", name))
    return image


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_are_read(write_tar, tar_format):
    shard = write_tar("shard.tar", PAIRS, format=tar_format)
    assert found(shard) == [("a", b"first image", 3), ("b", b"second", 0)]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_longer_than_a_tar_header_and_not_ascii_are_read(write_tar, tar_format):
    key = "folder.with.dots/" + "é" * 150
    shard = write_tar("shard.tar", [(f"{key}.webp", b"x"), (f"{key}.cls", b"1")], format=tar_format)
    assert found(shard) == [(key, b"x", 1)]


def test_keys_are_those_of_webdataset(write_tar, by_webdataset):
    names = ["./a", "train/b", "x.y/c", "d"]  # of these webdataset keeps the ./
    shard = write_tar("shard.tar", [(f"{name}.{end}", b"1") for name in names for end in ("jpg", "cls")])
    theirs = [sample["__key__"] for sample in by_webdataset([shard])]
    assert theirs == names
    assert [f"./{key}" if key == "a" else key for key, _, _ in found(shard)] == theirs


def test_other_members_order_and_case_of_endings_do_not_matter(write_tar):
    members = [
        ("a.json", b"{}"), ("a.cls", b" 3\n"), ("a.seg.png", b"mask"), ("a.JPG", b"A"), ("a.txt", b"caption"),
        ("README", b"between samples"),
        ("b.PnG", b"B"), ("b.json", b"{}"), ("b.cls", b"-1"),
    ]  # fmt: skip
    assert found(write_tar("shard.tar", members)) == [("a", b"A", 3), ("b", b"B", -1)]


def test_shards_of_webdatasets_writer_are_read(tmp_path, encode, picture):
    images = [encode(picture(9, 8, number), kind) for number, kind in enumerate(["JPEG", "PNG", "WEBP", "JPEG"])]
    endings = ["jpg", "png", "webp", "jpeg"]
    with wds.TarWriter(str(tmp_path / "shard.tar")) as tar:
        for number, (ending, image) in enumerate(zip(endings, images, strict=True)):
            tar.write({"__key__": f"sample{number}", ending: image, "cls": number, "json": {"number": number}})
    expected = [(f"sample{number}", image, number) for number, image in enumerate(images)]
    assert found(tmp_path / "shard.tar") == expected


def test_a_tar_without_samples_has_no_entries(write_tar):
    assert found(write_tar("shard.tar", [])) == []


WRONG_PAIRS = {
    "image without label": ([("a.jpg", b"1"), ("b.jpg", b"2"), ("b.cls", b"0")], "a"),
    "label without image": ([("a.cls", b"1"), ("b.jpg", b"2"), ("b.cls", b"0")], "a"),
    "label without image, labels first": ([("a.cls", b"1"), ("b.cls", b"2"), ("b.jpg", b"0")], "a"),
    "label of another image": ([("a.jpg", b"1"), ("b.cls", b"0")], "a"),
    "images, then labels": ([("a.jpg", b"1"), ("b.jpg", b"1"), ("a.cls", b"0"), ("b.cls", b"0")], "a"),
    "two images": ([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"0")], "a"),
    "two labels": ([("a.cls", b"1"), ("a.cls", b"2"), ("a.jpg", b"0")], "a"),
    "a further image": ([*PAIRS, ("b.jpg", b"2"), ("c.jpg", b"3"), ("c.cls", b"0")], "b"),
    "another sample in between": ([("a.jpg", b"1"), ("x.json", b"{}"), ("a.cls", b"0")], "a"),
    "last image without label": ([*PAIRS, ("c.jpg", b"3")], "c"),
    "last label without image": ([*PAIRS, ("c.cls", b"3")], "c"),
    "text label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"cat")], "c"),
    "empty label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"")], "c"),
    "fractional label": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"1.5")], "c"),
    "label beyond 32 bits": ([*PAIRS, ("c.jpg", b"1"), ("c.cls", b"3000000000")], "c"),
}


@pytest.mark.parametrize(("members", "key"), WRONG_PAIRS.values(), ids=WRONG_PAIRS)
def test_what_is_not_one_image_and_one_label_is_refused(write_tar, members, key):
    shard = write_tar("shard.tar", members)
    with pytest.raises(DataError, match=rf"{shard}: .*sample {key}\b"):
        list(scan(shard, Labels()))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(write_tar, kind):
    shard = write_tar("shard.tar", PAIRS)
    with tarfile.open(shard, "a") as tar:
        special = tarfile.TarInfo("c.jpg")
        special.type, special.linkname = kind, "/etc/passwd"
        tar.addfile(special)
    with pytest.raises(DataError, match=rf"{shard}: member 'c.jpg' is not a regular file"):
        list(scan(shard, Labels()))


def test_a_tar_cut_anywhere_is_refused_or_has_lost_nothing(write_tar, tmp_path):
    members = [(f"{key}.{end}", b"7".zfill(600)) for key in "abc" for end in ("jpg", "cls")]
    whole = write_tar("whole.tar", members)
    expected, content = found(whole), whole.read_bytes()
    end = len(content.rstrip(b"\0"))
    refused = 0
    for size in [*range(0, len(content), 512), *range(100, len(content), 512)]:
        cut = tmp_path / "cut.tar"
        cut.write_bytes(content[:size])
        try:
            assert found(cut) == expected
            assert size > end
        except DataError as error:
            assert str(cut) in str(error)
            refused += 1
    assert refused >= 2 * end // 512


def test_a_damaged_header_hides_no_sample(write_tar):
    """tarfile ends silently at a header whose checksum is wrong; webdataset would lose the samples behind it."""
    shard = write_tar("shard.tar", PAIRS)
    expected, content = found(shard), shard.read_bytes()
    header = content.index(b"b.png")
    refused = 0
    for byte in range(header, header + 512):
        damaged = bytearray(content)
        damaged[byte] ^= 1
        shard.write_bytes(damaged)
        try:
            assert found(shard) == expected
        except DataError as error:
            assert str(shard) in str(error)
            refused += 1
    assert refused > 500


def test_a_second_tar_behind_the_first_is_refused(write_tar):
    """`cat a.tar b.tar`: readers stop at the end of the first."""
    first, second = write_tar("a.tar", PAIRS), write_tar("b.tar", PAIRS)
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(DataError, match=r"a\.tar"):
        list(scan(first, Labels()))


@pytest.mark.parametrize("content", [b"", b"no tar" * 1000, b"\x1f\x8b" + bytes(4000)])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "shard.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"shard\.tar"):
        list(scan(tmp_path / "shard.tar", Labels()))


ENTRIES = [
    Entry("a", 1536, 11, 0xFFFFFFFF, 3, 1536, 2560),
    Entry("ordner/ü", 2**33, 2**32 - 1, 0, -1, 0, 2**32 - 1),
    Entry("", 0, 0, 7, 2**31 - 1, 2**32 - 1, 512),
]


def parse_index(content: bytes) -> list[Entry]:
    """The format of index.py's head, by struct."""
    magic, count = struct.unpack_from("<8sQ", content)
    assert magic == b"VSINDEX2"
    entries = []
    for number in range(count):
        fields = struct.unpack_from("<QIIiIQII", content, 16 + 40 * number)
        offset, size, crc32, label, key_size, key_offset, lead, span = fields
        entries.append(Entry(content[key_offset : key_offset + key_size].decode(), offset, size, crc32, label, lead, span))
    return entries


@pytest.mark.parametrize("entries", [[], ENTRIES[:1], ENTRIES])
def test_index_files_have_the_documented_layout(entries):
    assert parse_index(encode_index(entries)) == entries


def test_index_rows_are_read_as_the_documented_layout():
    keys = "".join(entry.key for entry in ENTRIES).encode()
    content = struct.pack("<8sQ", b"VSINDEX2", 3)
    at = 16 + 3 * 40
    for e in ENTRIES:
        size = len(e.key.encode())
        content += struct.pack("<QIIiIQII", e.offset, e.size, e.crc32, e.label, size, at, e.lead, e.span)
        at += size
    assert decode_index(content + keys, "shard.idx") == ENTRIES
    assert rows_range(1, 3) == (16 + 40, 16 + 3 * 40)


@pytest.mark.parametrize("size", [0, 5, 15, 16, 50, 135, 136, 140])
def test_an_index_cut_anywhere_is_refused(size):
    content = encode_index(ENTRIES)
    assert size < len(content)
    with pytest.raises(DataError, match=r"shard\.idx: .*vitscale data index"):
        decode_index(content[:size], "shard.idx")


def test_another_file_is_no_index():
    with pytest.raises(DataError, match=r"shard\.idx: .*vitscale data index"):
        decode_index(b"VSINDEX1" + bytes(8), "shard.idx")


def test_folders_are_passed_over_and_names_that_are_not_utf8_stay_readable(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in (("images/caf\xe9.jpg", b"image"), ("images/caf\xe9.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert found(shard) == [("images/caf\N{REPLACEMENT CHARACTER}", b"image", 3)]


@pytest.mark.parametrize("passed_over", ["README", "._a.jpg", ".DS_Store", "a/README"])
def test_what_webdataset_passes_over_is_passed_over(write_tar, by_webdataset, passed_over):
    shard = write_tar("shard.tar", [PAIRS[0], (passed_over, b"x"), *PAIRS[1:]])
    assert [sample["__key__"] for sample in by_webdataset([shard])] == ["a", "b"]
    assert found(shard) == [("a", b"first image", 3), ("b", b"second", 0)]


def test_hidden_files_in_folders_are_passed_over(write_tar):
    """They come with tars made on a Mac; webdataset makes samples without image of them."""
    members = [("x/a.jpg", b"1"), ("x/._a.jpg", b"no"), ("x/.DS_Store", b"no"), ("x/a.cls", b"4")]
    assert found(write_tar("shard.tar", members)) == [("x/a", b"1", 4)]


def test_a_sparse_member_is_refused(tmp_path):
    """GNU tar stores the parts that are not holes: the image's bytes are not at its offset."""
    (tmp_path / "a.cls").write_bytes(b"1")
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"image")
    command = ["tar", "--sparse", "-cf", "sparse.tar", "a.cls", "a.jpg"]
    for kind in ("gnu", "pax"):
        subprocess.run([*command, f"--format={kind}"], cwd=tmp_path, check=True)
        assert (tmp_path / "sparse.tar").stat().st_size < 1 << 19
        with pytest.raises(DataError, match=r"sparse\.tar: member 'a\.jpg' is not a regular file"):
            list(scan(tmp_path / "sparse.tar", Labels()))


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../../a.jpg"])
def test_names_that_point_outside_are_refused(write_tar, name):
    with pytest.raises(DataError, match="points outside"):
        list(scan(write_tar("shard.tar", [*PAIRS, (name, b"x"), (name.replace("jpg", "cls"), b"0")]), Labels()))


@pytest.mark.parametrize("ending", ["pkl", "pyd", "pth", "pickle", "pt"])
def test_pickles_are_refused(write_tar, ending):
    with pytest.raises(DataError, match=f"'a.{ending}' is a pickle"):
        list(scan(write_tar("shard.tar", [*PAIRS[:2], (f"a.{ending}", b"x")]), Labels()))


def test_the_same_key_again_later_is_a_sample_of_its_own(write_tar):
    members = [("a.jpg", b"1"), ("a.cls", b"1"), ("b.jpg", b"2"), ("b.cls", b"2"), ("a.jpg", b"3"), ("a.cls", b"3")]
    assert found(write_tar("shard.tar", members)) == [("a", b"1", 1), ("b", b"2", 2), ("a", b"3", 3)]


def octal(field: bytes) -> int:
    """What follows the zero byte that ends the digits counts for nothing. White space is that of text, as for the standard
    library, which has four characters more than that of bytes."""
    return int(field.partition(b"\0")[0].decode("ascii").strip() or "0", 8)


def by_hand(content: bytes) -> list[tuple[str, bytes, int]]:
    """(key, image, label) of a ustar file of pairs, by the format's definition (POSIX.1-1988)."""
    files, at = [], 0
    while at + 512 <= len(content) and any(header := content[at : at + 512]):
        summed = header[:148] + b" " * 8 + header[156:]
        sums = sum(summed), sum(memoryview(summed).cast("b"))  # of unsigned bytes, or, by old programs, of signed ones
        assert octal(header[148:156]) in sums
        size = octal(header[124:136])
        files.append((header[:100].partition(b"\0")[0].decode(errors="replace"), content[at + 512 : at + 512 + size]))
        at += 512 + -(-size // 512) * 512
    images = {name[:-4]: file for name, file in files if name.endswith(".jpg")}
    return [(key, image, int(dict(files)[f"{key}.cls"])) for key, image in images.items()]


def test_whatever_befalls_a_tar_it_is_refused_or_read_right(write_tar, tmp_path):
    members = [
        (f"{key}.{end}", b"%d" % number * (1 + number * 400 * (end == "jpg")))
        for number, key in enumerate("abcd")
        for end in ("jpg", "cls")
    ]
    whole = write_tar("whole.tar", members, format=tarfile.USTAR_FORMAT).read_bytes()
    assert by_hand(whole) == found(tmp_path / "whole.tar")
    assert len(by_hand(whole)) == 4
    places = st.integers(0, len(whole) - 1)
    outcomes = set()

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.tuples(places, st.binary(min_size=1, max_size=3)), max_size=2),
        places,
        places,
        st.booleans(),
        st.sampled_from([1, 512]),
    )
    @example([(155, b"\x01")], 0, 0, False, 1)  # behind the digits of a checksum
    @example([(154, b"\x1c")], 0, 0, False, 1)  # white space in it
    def damage(changes, start, end, cut, unit):
        content = bytearray(whole)
        for place, new in changes:
            content[place : place + len(new)] = new
        if cut:
            del content[start // unit * unit : end // unit * unit]
        (tmp_path / "damaged.tar").write_bytes(content)
        try:
            assert found(tmp_path / "damaged.tar") == by_hand(bytes(content))
            outcomes.add("read")
        except DataError as error:
            assert "damaged.tar" in str(error)
            outcomes.add("refused")

    damage()
    assert outcomes == {"read", "refused"}


def test_foreign_shards_are_listed_in_the_order_given(tmp_path):
    with wds.ShardWriter(str(tmp_path / "theirs-%02d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(7):
            writer.write({"__key__": f"k{number}", "jpg": b"image %d" % number, "cls": number})
    shards = [tmp_path / f"theirs-{number:02d}.tar" for number in (2, 0, 1)]
    listed = list_shards(shards, tmp_path / "theirs.json", [])
    assert read_manifest(str(tmp_path / "theirs.json")).urls == ["theirs-02.tar", "theirs-00.tar", "theirs-01.tar"]
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


IMG2DATASET = {
    "jpg": 7,
    "txt": "a dog on grass",
    "json": {"key": "000000007", "url": "http://x", "label": 2, "status": "success"},
}
LAYOUTS = {
    "img2dataset": (IMG2DATASET, "json:label", [], 2),
    "img2dataset, class name as caption": ({**IMG2DATASET, "txt": "dog"}, "txt", ["cat", "dog"], 1),
    "timm": ({"jpg": 7, "cls": 2, "json": {"label": 2, "filename": "n01440764_10026.JPEG"}}, "auto", [], 2),
    "timm, webp": ({"webp": 7, "cls": 2, "json": {"filename": "n01440764_10026.JPEG"}}, "auto", [], 2),
    "open_clip, unlabelled": ({"png": 7, "txt": "a caption\nof two lines"}, "none", [], -1),
    "open_clip, jpeg": ({"jpeg": 7, "txt": "2"}, "auto", [], 2),
}  # fmt: skip


@pytest.mark.parametrize(("sample", "rule", "classes", "label"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_layouts_of_others_are_read(tmp_path, encode, picture, sample, rule, classes, label):
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
    images = [encode(picture(20, 20, n), kind[next(iter(sample))]) for n in range(3)]
    with wds.TarWriter(str(tmp_path / "00000.tar")) as tar:
        for n, image in enumerate(images):
            tar.write({"__key__": f"{n:09d}", **sample, next(iter(sample)): image})
    shards = Shards(list_shards([tmp_path / "00000.tar"], tmp_path / "list.json", classes, rule))
    assert [tuple(shards.read(n)) for n in range(3)] == [(f"{n:09d}", image, label) for n, image in enumerate(images)]


def test_shards_on_a_server_have_their_indexes_beside_the_manifest(write_tar, tmp_path):
    write_tar("a.tar", PAIRS)
    write_tar("b.tar", [("c.jpg", b"third"), ("c.cls", b"5")])
    with http_server(tmp_path) as url:
        listed = list_shards(expand([f"{url}/{{a,b}}.tar?signed=1"]), tmp_path / "lists" / "far.json", workers=2)
        manifest = read_manifest(str(tmp_path / "lists" / "far.json"))
        manifest.check()
        shards = Shards(manifest)
        assert [tuple(shards.read(n)) for n in range(3)] == [("a", b"first image", 3), ("b", b"second", 0), ("c", b"third", 5)]
    assert listed.urls == [f"{url}/a.tar?signed=1", f"{url}/b.tar?signed=1"]
    assert sorted(path.name for path in (tmp_path / "lists" / "far.index").iterdir()) == ["000000.idx", "000001.idx"]
    assert (manifest.label_min.tolist(), manifest.label_max.tolist()) == ([0, 5], [3, 5])
    assert manifest.sha256 == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.tar", "b.tar")]


def test_shards_manifest_and_indexes_may_all_lie_on_s3(write_tar, monkeypatch):
    shard = write_tar("a.tar", PAIRS)
    with s3_server() as (endpoint, bucket):
        for name, value in {**AWS_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        try:
            storage.write(f"s3://{bucket}/set/a.tar", shard.read_bytes())
            list_shards([f"s3://{bucket}/set/a.tar"], f"s3://{bucket}/set/train.json")
            manifest = read_manifest(f"s3://{bucket}/set/train.json")
            manifest.check()
            assert (manifest.urls, manifest.index_dir) == (["a.tar"], "train.index")
            assert Shards(manifest).read(1).image == b"second"
        finally:
            remote._systems.clear()


def test_a_folder_that_cannot_be_written_to_has_its_indexes_elsewhere(write_tar, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    shard = write_tar("a.tar", PAIRS).rename(folder / "a.tar")
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # as root
        command = ["unshare", "--user", "--map-user=1000", "true"]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("root may write anywhere")
        code = f"from data_pipeline.shardlist import list_shards; list_shards([{str(shard)!r}], {str(tmp_path / 'l.json')!r})"
        subprocess.run(["unshare", "--user", "--map-user=1000", sys.executable, "-c", code], check=True)
    else:
        list_shards([shard], tmp_path / "l.json")
    folder.chmod(0o755)
    assert list(folder.iterdir()) == [shard]
    assert Shards(read_manifest(str(tmp_path / "l.json"))).read(0).label == 3


def test_an_empty_shard_among_others_is_listed(write_tar, tmp_path):
    listed = list_shards([write_tar("none.tar", []), write_tar("some.tar", PAIRS)], tmp_path / "list.json")
    assert listed.samples.tolist() == [0, 2]
    listed.check_labels(4)
    with pytest.raises(DataError, match=r"none\.tar: no samples"):
        list_shards([tmp_path / "none.tar"], tmp_path / "empty.json")


def test_a_pipe_cannot_be_listed(tmp_path):
    with pytest.raises(DataError, match=r"^pipe:cat x.tar: .*data build --allow-pipe 'pipe:cat x.tar'"):
        list_shards(["pipe:cat x.tar"], tmp_path / "list.json")


@pytest.mark.parametrize(
    "pattern",
    [
        "a.tar",
        "{000..012}.tar",
        "x-{a,b}{1..3}-{5..1..2}",
        "{train-{00..03},val-{0..1},test}.tar",
        "{a..e}.tar",
        "{x}.tar",
        "a{,b}",
    ],
)
def test_brace_lists_are_those_of_bash(pattern):
    by_bash = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert expand([pattern]) == by_bash
    assert expand([pattern, pattern]) == by_bash * 2


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..99999999999}.tar",
        "{0..9}" * 7,
        "{{0..999999}{0..999999},x}",
        "{0.." + "9" * 500 + "}",
        "{1..-9999999}",
        "{a,b}" * 21,
    ],
)
def test_brace_lists_that_explode_are_refused_before_they_do(pattern):
    began = time.monotonic()
    with pytest.raises(DataError, match="more than 1,000,000 names"):
        expand([pattern])
    assert time.monotonic() - began < 1


def test_large_brace_lists_are_not_refused():
    assert len(expand(["{train-{0000..1023},val-{0000..0511}}.tar"])) == 1024 + 512
    with pytest.raises(DataError, match="not balanced"):
        expand(["{0..3.tar"])
