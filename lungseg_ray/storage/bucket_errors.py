"""Problems with buckets: exceptions of pyarrow and botocore, converted to sentences with the cause and the remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError
from pyarrow import fs

from lungseg_ray.storage.retries import StorageError
from lungseg_ray.storage.s3 import NO_BUCKET, endpoint_url

if TYPE_CHECKING:
    from lungseg_ray.storage.location import Location

# Patterns in the messages of pyarrow and botocore, each with the sentence that states its meaning and the remedy.
TROUBLES = (
    (
        NO_BUCKET,
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

# By endpoint and bucket: the buckets that are known to exist.
_known_buckets: set[tuple[str, str]] = set()


@contextmanager
def translate_errors(place: Location) -> Iterator[None]:
    """Converts the exceptions that pyarrow and botocore raise about a location in a bucket to `StorageError`.

    Three kinds of exceptions pass unchanged: all those about a local disk, `FileNotFoundError` for a file that is
    missing in a bucket that exists, and `IsADirectoryError` and `NotADirectoryError`.

    Args:
        place: The location that the block operates on.

    Raises:
        StorageError: For every other problem with a bucket, one that does not exist included.
    """  # noqa: DOC501 - the others pass through
    try:
        yield
    except (StorageError, IsADirectoryError, NotADirectoryError):
        raise
    except FileNotFoundError:
        require_bucket(place)
        raise
    except (OSError, BotoCoreError, ClientError) as error:
        if place.is_local:
            raise
        raise StorageError(_sentence(place, error)) from error


def require_bucket(place: Location) -> None:
    """Checks that the bucket exists, since pyarrow reports one that does not as a missing file.

    Args:
        place: A location in the bucket; nothing is checked if it is not in an S3 bucket.

    Raises:
        StorageError: If the bucket does not exist or cannot be queried.
    """
    key = (endpoint_url(), place.bucket)
    if not place.is_s3 or key in _known_buckets:
        return
    try:
        found = place.filesystem.get_file_info(place.bucket).type != fs.FileType.NotFound
    except OSError as error:
        # Credentials for a prefix may not permit a query of its bucket. It is sufficient that the store has answered.
        if "ACCESS_DENIED" not in str(error):
            raise StorageError(_sentence(place, error)) from error
        found = True
    if not found:
        raise StorageError(_sentence(place, OSError("NO_SUCH_BUCKET")))
    _known_buckets.add(key)


def _sentence(place: Location, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    if place.is_s3 and "No response body" in text:
        # The answer to a refused HEAD request contains no reason, unlike the answer to a refused listing.
        try:
            place.filesystem.get_file_info(fs.FileSelector(place.path, allow_not_found=True))
        except OSError as better:
            text = str(better)
    store = (endpoint_url() or "AWS S3") if place.is_s3 else "The store"
    # Quoted names are removed, since the name of a file may contain words that are searched for below.
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    for pattern, meaning in TROUBLES:
        if place.is_s3 and re.search(pattern, bare, re.IGNORECASE):
            return f"{place}: {meaning.format(bucket=place.bucket, store=store)}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"${name}")
    return f"{place}: {store} answered: {' '.join(text.split()).rstrip('.')}."
