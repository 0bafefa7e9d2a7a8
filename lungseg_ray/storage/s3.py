"""Clients for S3 and compatible stores, configured by the environment variables of AWS, and what only they can do."""

from __future__ import annotations

import os
import random
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import get_session
from pyarrow import fs

from lungseg_ray.errors import UserError
from lungseg_ray.storage.retries import StorageError

# With these limits, every problem is reported within half a minute; `retry` handles longer outages. The AWS library may
# wait for an answer up to twice as long as the limit.
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 7.0
ATTEMPTS = 2

REQUESTS = 8
"""The number of files of a folder that are uploaded or deleted at the same time."""

NO_BUCKET = r"NO_?SUCH_?BUCKET|Bucket '.*' not found|INVALID_?BUCKET_?NAME"
"""A pattern in the messages of pyarrow and botocore about a bucket that does not exist."""


def endpoint_url() -> str:
    """Reads the address of the store from the environment.

    Returns:
        The address; empty for AWS.

    Raises:
        UserError: If the address is not of the form `http://HOST:PORT` or `https://HOST`.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint and not re.fullmatch(r"https?://[^/:\s]+(:\d+)?(/\S*)?", endpoint):
        raise UserError("AWS_ENDPOINT_URL: expected http://HOST:PORT or https://HOST; found something else.")
    return endpoint


def region_of(bucket: str) -> str:
    """Finds the region of a bucket.

    Args:
        bucket: The name of the bucket.

    Returns:
        The region from the environment, else from AWS. For another store without a region in the environment, it is
        "us-east-1".

    Raises:
        StorageError: If AWS does not return the region.
        OSError: If AWS reports that the bucket does not exist.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        return region
    # Stores other than AWS accept any region. Without one, the AWS library would query a metadata service that does not
    # exist there.
    return "us-east-1" if endpoint_url() else _resolved(bucket)


@lru_cache(maxsize=64)
def _resolved(bucket: str) -> str:
    try:
        return fs.resolve_s3_region(bucket)
    except OSError as error:
        if re.search(NO_BUCKET, str(error)):
            raise
        raise StorageError(
            f"s3://{bucket}: the bucket's region could not be found out from AWS; set AWS_REGION, or AWS_ENDPOINT_URL "
            "for another store."
        ) from error


@lru_cache(maxsize=64)
def s3_filesystem(endpoint: str, region: str) -> fs.S3FileSystem:
    """Returns the pyarrow file system for a store and a region, which is created once per process.

    Args:
        endpoint: The address of the store; empty for AWS.
        region: The region of the bucket.

    Returns:
        The file system.
    """
    address = urlsplit(endpoint or "https://")
    return fs.S3FileSystem(
        region=region,
        scheme=address.scheme,
        endpoint_override=address.netloc + address.path.rstrip("/") or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # A small file is then written in one request, and so completely or not at all.
        allow_delayed_open=True,
    )


@lru_cache(maxsize=64)
def s3_client(endpoint: str, region: str) -> Any:
    """Returns the botocore client for a store and a region, which is created once per process.

    It serves what pyarrow cannot do: conditional writes, and deletion without writing a marker above the prefix.

    Args:
        endpoint: The address of the store; empty for AWS.
        region: The region of the bucket.

    Returns:
        The client.
    """
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=REQUEST_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Older stores do not support the checksums that botocore sends by default.
        request_checksum_calculation="when_required",
    )
    return get_session().create_client("s3", region_name=region, endpoint_url=endpoint or None, config=config)


def create_object(bucket: str, key: str, data: bytes) -> bool:
    """Writes an object if it does not exist.

    Args:
        bucket: The name of the bucket.
        key: The key of the object.
        data: The content of the object.

    Returns:
        True if this call wrote the object; False if it existed already.

    Raises:
        ClientError: If the store refuses the request.
    """
    client = s3_client(endpoint_url(), region_of(bucket))
    name = {"Bucket": bucket, "Key": key}
    writer = uuid.uuid4().hex
    for last in (False, False, False, True):
        try:
            client.put_object(**name, Body=data, IfNoneMatch="*", Metadata={"writer": writer})
            return True
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                break
            if status != 409 or last:
                raise
            # Status 409: another client is writing or deleting the object at this moment.
            time.sleep(random.uniform(0.1, 0.5))
    # The existing object may be our own, from an earlier attempt whose answer was lost.
    try:
        return client.head_object(**name)["Metadata"].get("writer") == writer
    except ClientError:
        return False


def delete_objects(bucket: str, key: str) -> None:
    """Deletes an object, and all objects below it as a folder; does nothing if there are none.

    Args:
        bucket: The name of the bucket.
        key: The key of the object or of the folder.
    """
    client = s3_client(endpoint_url(), region_of(bucket))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/")
    keys = {key} | {item["Key"] for page in pages for item in page.get("Contents", [])}
    # Some stores keep a folder that once had content until it is deleted by its name, which needs an empty folder.
    folders = {one[:end] for one in keys for end in range(len(key) + 1, len(one) + 1) if one[end - 1] == "/"}

    def drop(one: str) -> None:
        client.delete_object(Bucket=bucket, Key=one)

    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(drop, keys - folders))
    for folder in sorted(folders, reverse=True):
        drop(folder)
