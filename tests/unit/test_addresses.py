"""Addresses in params.yaml: what every part of the chain understands, and no secret is printed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.contract.stage import StageError
from tasks.params.load import ParamsError
from tasks.store.storage import open_storage
from tests.unit.test_params import load

Set = Callable[[dict[str, Any], str], object]
FOLDERS: dict[str, Set] = {
    "store.url": lambda content, url: content["store"].update(url=url),
    "data.corpus": lambda content, url: content["data"].update(corpus=url),
    "data.benchmark": lambda content, url: content["data"].update(benchmark=url),
    "ingest.sources.titles.path": lambda content, url: content["ingest"]["sources"][
        "titles"
    ].update(path=url),
}
ENDPOINT = {
    "model": "m", "prompts": {}, "concurrency": 1, "timeout_s": 1.0,
}  # fmt: skip
SERVICES: dict[str, Set] = {
    "store.endpoint_url": lambda content, url: content["store"].update(endpoint_url=url),
    "synthesize.endpoint.base_url": lambda content, url: content["synthesize"].update(
        endpoint=ENDPOINT | {"base_url": url}
    ),
}


@pytest.mark.parametrize("key", FOLDERS)
@pytest.mark.parametrize(
    "url", ["file:///srv/store", "gs://bucket", "S3://bucket", "http://host/x", "s3://", ""]
)
def test_a_folder_or_bucket_of_another_kind_is_refused(tmp_path: Path, key: str, url: str) -> None:
    """DVC takes file:///x for a folder `file:` of the checkout, and pushes there."""
    with pytest.raises(ParamsError, match=rf"(?s){key}: .*expected .*s3://bucket/prefix"):
        load(tmp_path, lambda content: FOLDERS[key](content, url))


@pytest.mark.parametrize("key", FOLDERS)
@pytest.mark.parametrize("url", ["/srv/data", "../хранилище", "s3://bucket/a", "a@b", "a/x@y"])
def test_folders_and_buckets_are_taken(tmp_path: Path, key: str, url: str) -> None:
    load(tmp_path, lambda content: FOLDERS[key](content, url))


@pytest.mark.parametrize("key", SERVICES)
@pytest.mark.parametrize("url", ["host:9000", "ftp://host", "http://", "file:///x"])
def test_a_service_is_reached_by_http(tmp_path: Path, key: str, url: str) -> None:
    with pytest.raises(ParamsError, match=rf"(?s){key}: .*expected http\(s\)://host:port"):
        load(tmp_path, lambda content: SERVICES[key](content, url))


@pytest.mark.parametrize("key", [*FOLDERS, *SERVICES])
@pytest.mark.parametrize("who", ["user:hunter2", "hunter2", "hunter2:"])
def test_credentials_in_an_address_are_refused_and_not_repeated(
    tmp_path: Path, key: str, who: str
) -> None:
    scheme = "s3" if key in FOLDERS else "https"
    with pytest.raises(ParamsError, match="AWS_ACCESS_KEY_ID") as caught:
        load(tmp_path, lambda c: (FOLDERS | SERVICES)[key](c, f"{scheme}://{who}@host/bucket"))
    assert "hunter2" not in str(caught.value)


def test_storage_knows_folders_and_buckets_alone() -> None:
    with pytest.raises(StageError, match="expected a path or s3://bucket/prefix"):
        open_storage("file:///srv/store", None)
