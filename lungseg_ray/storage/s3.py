"""Clients for S3 and compatible stores, configured by the standard environment variables of AWS."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.session import get_session
from pyarrow import fs

from lungseg_ray.errors import UserError
from lungseg_ray.storage.retries import StorageError

# With these limits, every problem is reported within half a minute; `retry` handles longer outages. The AWS library may
# wait for an answer up to twice as long as the limit.
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 7.0
ATTEMPTS = 2


# Patterns in the messages of pyarrow and botocore, each with the sentence that states its meaning and the remedy.
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
        if re.search(TROUBLES[0][0], str(error)):
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
