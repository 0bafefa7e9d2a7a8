"""Clients for S3 and compatible stores, configured by the standard environment variables."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.session import get_session
from pyarrow import fs

from lungseg_ray.storage.retries import StorageError

# Whatever is wrong is told within half a minute; longer outages are the business of `patiently`. AWS's library may wait
# up to twice as long for an answer as it is told.
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 7.0
ATTEMPTS = 2


# What the names mean by which pyarrow and botocore report trouble, and what to do about it.
TROUBLES = (
    (
        r"NO_?SUCH_?BUCKET|Bucket '.*' not found|INVALID_?BUCKET_?NAME",
        "there is no bucket {bucket!r} at {store}; create it, or check its name and AWS_ENDPOINT_URL.",
    ),
    (
        r"INVALID_?ACCESS_?KEY_?ID|UNRECOGNIZED_?CLIENT",
        "{store} does not know the access key; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.",
    ),
    (
        r"SIGNATURE_?DOES_?NOT_?MATCH|INVALID_?SIGNATURE",
        "the signature does not match the access key at {store}; check AWS_SECRET_ACCESS_KEY.",
    ),
    (
        r"EXPIRED_?TOKEN|INVALID_?TOKEN|INVALID_?CLIENT_?TOKEN_?ID",
        "{store} takes the session's token for expired or unknown; renew AWS_SESSION_TOKEN and the keys, or remove it.",
    ),
    (
        r"REQUEST_?(TIME_?TOO_?SKEWED|EXPIRED)",
        "{store} finds the time of the request wrong; set this machine's clock.",
    ),
    (
        r"HTTP status 301|PERMANENT_?REDIRECT|AUTHORIZATION_?HEADER_?MALFORMED",
        "the bucket {bucket!r} is not in the region that was asked; check AWS_REGION and AWS_ENDPOINT_URL.",
    ),
    (
        r"NO_?CREDENTIALS|Unable to locate credentials",
        "no credentials were found for {store}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role.",
    ),
    (
        r"ACCESS_?DENIED|HTTP status 403|FORBIDDEN",
        "access denied by {store}; check that the key or role may do this there (AWS_ACCESS_KEY_ID, the bucket's "
        "policy).",
    ),
    (
        r"SLOW_?DOWN|THROTTLING|SERVICE_?UNAVAILABLE|INTERNAL_?(FAILURE|ERROR)|HTTP status 5\d\d|\(50\d\)",
        "{store} is busy or out of order; try again later.",
    ),
    (
        r"NETWORK_?CONNECTION|REQUEST_?TIMEOUT|Could not connect|timeout on endpoint|Connection was closed",
        "nothing answers at {store}; check AWS_ENDPOINT_URL and the network.",
    ),
)


def endpoint_url() -> str:
    """The store's address; empty for AWS."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint and not re.fullmatch(r"https?://[^/:\s]+(:\d+)?(/\S*)?", endpoint):
        raise StorageError("AWS_ENDPOINT_URL: expected http://HOST:PORT or https://HOST; found something else.")
    return endpoint


def region_of(bucket: str) -> str:
    """The region of a bucket: from the environment, else from AWS.

    Raises:
        StorageError: if AWS does not tell it.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        return region
    # Stores other than AWS take any region; AWS's library would ask a metadata service that is not there.
    return "us-east-1" if endpoint_url() else _resolved(bucket)


@lru_cache(maxsize=64)
def _resolved(bucket: str) -> str:
    try:
        return fs.resolve_s3_region(bucket)
    except OSError as error:
        if re.search(TROUBLES[0][0], str(error)):
            raise
        raise StorageError(
            f"s3://{bucket}: the bucket's region could not be found out from AWS; set AWS_REGION, or AWS_ENDPOINT_URL "
            "for another store."
        ) from error


@lru_cache(maxsize=64)
def s3_filesystem(endpoint: str, region: str) -> fs.S3FileSystem:
    """The pyarrow file system for a store's address (empty: AWS) and a region; one per process."""
    address = urlsplit(endpoint or "https://")
    return fs.S3FileSystem(
        region=region,
        scheme=address.scheme,
        endpoint_override=address.netloc + address.path.rstrip("/") or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # A small file is one request, whole or not at all.
        allow_delayed_open=True,
    )


@lru_cache(maxsize=64)
def s3_client(endpoint: str, region: str) -> Any:
    """For what pyarrow cannot: write on a condition, and delete without writing a marker above the prefix."""
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=REQUEST_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Older stores do not know the checksums that are sent otherwise.
        request_checksum_calculation="when_required",
    )
    return get_session().create_client("s3", region_name=region, endpoint_url=endpoint or None, config=config)
