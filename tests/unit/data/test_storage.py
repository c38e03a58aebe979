"""Bytes are those of the file, from the disk and from real servers; what a network does is healed, what cannot heal is said."""

import asyncio
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import serving
from serving import Faults
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from data_pipeline import remote, storage
from data_pipeline.errors import DataError

NAME = "a b#1?%20&ü.tar"
CONTENT = random.Random(0).randbytes(300_000)
PLACES = ((0, 1), (0, len(CONTENT)), (5, 5), (1_000, 200_000), (len(CONTENT) - 1, len(CONTENT)))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test has its own servers; waiting between attempts is short."""
    monkeypatch.setattr(remote, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "LONGEST_BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "WARN_EVERY_S", 0.0)
    yield
    remote._systems.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Only to be read."""
    folder = tmp_path_factory.mktemp("files")
    (folder / NAME).write_bytes(CONTENT)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """(the folder's url over HTTP, its faults)."""
    faults = Faults()
    with serving.http_server(folder, faults) as url:
        yield url, faults


@pytest.fixture
def faults(server):
    """The server's, none yet."""
    server[1].requests.clear()
    yield server[1]
    server[1].coming.clear()


@pytest.fixture
def url(server):
    return storage.join(f"{server[0]}/train.json", NAME)


@pytest.fixture
def aws(monkeypatch):
    """Point S3 clients at an endpoint."""

    def point(endpoint):
        for name, value in {**serving.AWS_CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)

    return point


def check_reads(url):
    assert storage.exists(url)
    assert storage.size(url) == len(CONTENT)
    assert storage.read_all(url) == CONTENT
    for start, end in PLACES:
        assert storage.read(url, start, end) == CONTENT[start:end]
    storage.will_need(url, 0, 1000)
    with pytest.raises(DataError, match="ends at byte 300000, but bytes up to 300001 were asked"):
        storage.read(url, 10, len(CONTENT) + 1)
    with pytest.raises(DataError, match="it ends"):
        storage.read(url, len(CONTENT) + 10, len(CONTENT) + 20)


def check_missing(url):
    assert not storage.exists(url)
    for action in (storage.size, storage.read_all, lambda url: storage.read(url, 0, 1)):
        with pytest.raises(DataError, match=r"does not exist|No such file"):
            action(url)


def check_threads(url):
    draw = random.Random(1)
    ranges = [sorted(draw.sample(range(len(CONTENT)), 2)) for _ in range(60)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda pair: storage.read(url, *pair), ranges))
    assert found == [CONTENT[start:end] for start, end in ranges]


# Names


@pytest.mark.parametrize(
    ("base", "relative", "expected"),
    [
        ("/data/train.json", "a#b?.tar", "/data/a#b?.tar"),
        ("train.json", "a.tar", "a.tar"),
        ("/data/train.json", "/other/a.tar", "/other/a.tar"),
        ("/data/train.json", "s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("file:///my%20data/train.json", "a b.tar", "/my data/a b.tar"),
        ("s3://bucket/in/train.json", "a#b c.tar", "s3://bucket/in/a#b c.tar"),
        ("gs://bucket/in/train.json", "../a.tar", "gs://bucket/a.tar"),
        ("hf://datasets/user/name/train.json", "a/b.tar", "hf://datasets/user/name/a/b.tar"),
        ("https://host/in/train.json?sig=a/b", "a#b c.tar", "https://host/in/a%23b%20c.tar"),
        ("https://host/train.json", "https://other/a.tar?sig=1%2F2", "https://other/a.tar?sig=1%2F2"),
    ],
)
def test_names_in_a_manifest_lie_beside_it(base, relative, expected):
    assert storage.join(base, relative) == expected


def test_a_name_no_file_can_have_is_an_error():
    for use in (storage.size, storage.read_all, storage.exists, lambda url: storage.read(url, 0, 1)):
        with pytest.raises(DataError, match="holds a zero byte"):
            use("a\0b")


@pytest.mark.parametrize("url", ["pipe:cat x", "ftp://host/a.tar", "simplecache::s3://bucket/a.tar", "C://x"])
def test_other_schemes_are_refused_with_what_is_allowed(url):
    with pytest.raises(DataError, match="not read; allowed are local paths, file://, s3://, gs://, http://, https://, hf://"):
        storage.read(url, 0, 1)


@pytest.mark.parametrize("name", ["a:b.tar", "http:/a.tar", "::.tar"])
def test_a_path_with_colons_is_a_path(name):
    assert not storage.is_remote(name)


# Local files


def test_local_files_of_any_name_are_read(folder):
    check_reads(str(folder / NAME))
    check_reads((folder / NAME).as_uri())
    check_missing(str(folder / "none.tar"))
    check_threads(str(folder / NAME))


def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path):
    url = str(tmp_path / NAME)
    storage.write(url, CONTENT)
    storage.read(url, 0, 10)
    os.truncate(url, 100)
    assert storage.read(url, 0, 100) == CONTENT[:100]
    with pytest.raises(DataError, match=r"ends at byte 100, but bytes up to 5000 .* copy it anew"):
        storage.read(url, 0, 5000)


def test_more_files_than_may_stay_open_are_read_by_many_threads(tmp_path):
    count = storage.OPEN_FILES + 50
    for number in range(count):
        (tmp_path / str(number)).write_bytes(number.to_bytes(4, "big") * 1000)
    draw = random.Random(0)
    numbers = [draw.randrange(count) for _ in range(4000)]

    def read(number: int) -> bytes:
        storage.will_need(str(tmp_path / str(number)), 400, 800)
        return storage.read(str(tmp_path / str(number)), 400, 800)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, numbers))
    assert found == [number.to_bytes(4, "big") * 100 for number in numbers]
    opened = [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link).startswith(str(tmp_path))]
    assert len(opened) == storage.OPEN_FILES


def test_a_local_write_is_whole_or_not_at_all(tmp_path):
    url = str(tmp_path / "new folder" / "train.json")
    contents = [bytes([letter]) * 100_000 for letter in b"abcdef"]
    storage.write(url, contents[0])
    writers = [threading.Thread(target=lambda c=content: [storage.write(url, c) for _ in range(5)]) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert storage.read_all(url) in contents
    assert [path.name for path in Path(url).parent.iterdir()] == ["train.json"]


def test_a_local_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="directory"):
        storage.write(str(tmp_path / "taken"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# HTTP


def test_http_ranges_are_read(url, faults):
    check_reads(url)
    check_missing(url + "x")
    faults.requests.clear()
    storage.read(url, 7, 11)
    assert faults.requests == ["GET bytes=7-10"]
    check_threads(url)


@pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx")
def test_nginx_ranges_are_read(folder, tmp_path):
    with serving.nginx_server(folder, tmp_path) as server:
        url = storage.join(f"{server}/train.json", NAME)
        check_reads(url)
        check_missing(url + "x")
        check_threads(url)


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "drop", "short", "hang"])
def test_what_a_network_does_is_tried_again(url, faults, fault, monkeypatch, caplog):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3 if fault == "hang" else 10)
    faults.coming += [fault, *([""] if fault == "short" else []), fault]  # between: it asks how large the file is
    assert storage.read(url, 100, 90_000) == CONTENT[100:90_000]
    assert faults.requests.count("GET bytes=100-89999") == 3
    assert {record.levelno for record in caplog.records if record.name == remote.__name__} == {logging.WARNING}


@pytest.mark.parametrize("action", [storage.size, storage.read_all, storage.exists])
def test_questions_are_asked_again_too(url, faults, action):
    faults.coming += ["503"] * 5
    assert action(url) in (len(CONTENT), CONTENT, True)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("404", "does not exist"),
        ("403", "may not be accessed (HTTP 403); credentials come from a signed url"),
        ("401", "may not be accessed (HTTP 401)"),
        ("400", "cannot succeed (HTTP 400)"),
        ("416", "it ends before"),
    ],
)
def test_what_cannot_heal_fails_at_once(url, faults, status, words):
    faults.coming += [status] * 99
    with pytest.raises(DataError) as error:
        storage.read(url, 0, 10)
    assert words in str(error.value)
    assert len(faults.requests) == 1


def test_an_outage_is_given_up_after_all_attempts(url, faults):
    faults.coming += ["502"] * 99
    with pytest.raises(DataError, match="HTTP 502, 10 times; is the server up"):
        storage.read(url, 0, 10)
    assert len(faults.requests) == remote.ATTEMPTS


def test_a_server_that_is_not_there_is_said():
    with pytest.raises(DataError, match=r"Connect call failed|refused"):
        storage.read("http://127.0.0.1:9/a.tar", 0, 10)


def test_a_server_that_ignores_ranges_is_said_at_once(url, faults):
    faults.coming += ["whole"] * 99
    with pytest.raises(DataError, match="ignores Range and sends the whole file for every block; use one that"):
        storage.read(url, 0, 10)
    assert len(faults.requests) == 1
    assert storage.read_all(url) == CONTENT


def test_a_whole_file_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 1.0)

    async def endless():
        while True:
            yield bytes(100_000)
            await asyncio.sleep(0.001)  # else the server never sees that the client has left

    async def serve(_: Request) -> StreamingResponse:
        return StreamingResponse(endless())

    with serving.asgi_server(Starlette(routes=[Route("/a.tar", serve)])) as server:
        with pytest.raises(DataError, match="ignores Range"):
            storage.read(f"{server}/a.tar", 0, 10)


def test_slow_is_not_wrong(url, faults):
    faults.coming += ["slow"]
    assert storage.read(url, 0, 10) == CONTENT[:10]
    assert len(faults.requests) == 1


def test_secrets_are_sent_as_they_are_and_never_printed(caplog):
    seen = []

    async def refuse(request: Request) -> PlainTextResponse:
        seen.append((request.scope["query_string"], request.headers["authorization"]))
        return PlainTextResponse("no", [503, 403][len(seen) - 1])

    with serving.asgi_server(Starlette(routes=[Route("/a.tar", refuse)])) as server:
        url = f"{server}/a.tar?Signature=ab%2Fc%3D%7E".replace("http://", "http://me:pass%2Fword@")
        with pytest.raises(DataError) as error:
            storage.read(url, 0, 10)
    assert seen == [(b"Signature=ab%2Fc%3D%7E", "Basic bWU6cGFzcy93b3Jk")] * 2
    printed = "".join(traceback.format_exception(error.value)) + caplog.text
    assert f"{server}/a.tar: HTTP 503; trying again" in printed
    assert f"{server}/a.tar: may not be accessed" in printed
    assert not any(secret in printed for secret in ("Signature", "ab%2F", "ab/c", "me:", "word"))


# Object stores


def test_s3_objects_are_written_and_read(aws):
    with serving.s3_server() as (endpoint, bucket):
        aws(endpoint)
        url = f"s3://{bucket}/in/{NAME.replace('?', '')}"
        storage.write(url, CONTENT)
        check_reads(url)
        check_missing(url + "x")
        check_missing(f"s3://no-{bucket}/a.tar")
        check_threads(url)


@pytest.mark.parametrize(
    ("coming", "words", "requests"),
    [
        (["503"] * 4, "", 5),
        (["500"] * 99, "HTTP 500, 10 times", 10),
        (["403"], "may not be accessed", 1),
        (["400"], "HTTP 400", 1),
    ],
)
def test_s3_faults_are_tried_again_once_each_or_said(aws, coming, words, requests):
    faults = Faults()
    with serving.s3_server(faults=faults) as (endpoint, bucket):
        aws(endpoint)
        storage.write(f"s3://{bucket}/a.tar", CONTENT)
        faults.requests.clear()
        faults.coming += coming
        if words:
            with pytest.raises(DataError, match=words):
                storage.read(f"s3://{bucket}/a.tar", 0, 10)
        else:
            assert storage.read(f"s3://{bucket}/a.tar", 0, 10) == CONTENT[:10]
        assert faults.requests == ["GET bytes=0-9"] * requests


def test_gs_objects_are_written_and_read(monkeypatch):
    with serving.gs_server() as (endpoint, bucket):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        url = f"gs://{bucket}/in/{NAME}"
        storage.write(url, CONTENT)
        check_reads(url)
        check_missing(url + "x")
        check_threads(url)


def run(code, url, **environ):
    """What a new process prints that reads with other settings."""
    code = f"import sys\nfrom data_pipeline import storage\nurl = {url!r}\n{code}"
    env = {**{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))}, **environ}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_hub_files_are_read_with_and_without_token(folder):
    code = "print(storage.exists(url), storage.exists(url + 'x'), storage.size(url), storage.read(url, 7, 107).hex())"
    with serving.hub_server(folder) as endpoint:
        expected = f"True False {len(CONTENT)} {CONTENT[7:107].hex()}\n"
        public, private = (f"hf://datasets/user/{name}/{NAME}" for name in ("open", "private"))
        done = run(code, public, HF_ENDPOINT=endpoint)
        assert (done.stdout, done.stderr) == (expected, "")
        assert run(code, private, HF_ENDPOINT=endpoint, HF_TOKEN="secret").stdout == expected
        refused = run(code, private, HF_ENDPOINT=endpoint).stderr
        assert "may not be accessed (HTTP 401); credentials come from HF_TOKEN or `hf auth login`" in refused


def test_hub_files_are_not_written():
    with pytest.raises(DataError, match="only read; write to a local folder and send it with `hf upload`"):
        storage.write("hf://datasets/user/name/a.tar", b"x")


def test_no_credentials_are_said_at_once():
    settings = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    done = run("storage.read(url, 0, 1)", "s3://bucket/a.tar", **settings)
    assert "may not be accessed (NoCredentialsError); credentials come from AWS_PROFILE" in done.stderr


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("http", "aiohttp"), ("hf", "huggingface_hub")]
)
def test_a_missing_package_is_named_by_its_extra(scheme, package):
    done = run(f"sys.modules['{package}'] = None\nstorage.read(url, 0, 1)", f"{scheme}://bucket/a.tar")
    assert f"a package that reads {scheme}:// is missing; pip install 'vitscale[remote]'" in done.stderr


def test_a_process_that_read_ends_without_complaint(url):
    with serving.gs_server() as (gs, bucket), serving.s3_server() as (s3, _):
        settings = {**serving.AWS_CREDENTIALS, "AWS_ENDPOINT_URL": s3, "STORAGE_EMULATOR_HOST": gs, "PYTHONWARNINGS": "error"}
        for scheme in ("gs", "s3"):
            done = run("storage.write(url, b'abc'); print(storage.read(url, 0, 2))", f"{scheme}://{bucket}/x", **settings)
            assert (done.stdout, done.stderr) == ("b'ab'\n", "")
    done = run("print(len(storage.read(url, 0, 100)))", url, PYTHONWARNINGS="error", PYTHONDEVMODE="1")
    assert (done.stdout, done.stderr) == ("100\n", "")
