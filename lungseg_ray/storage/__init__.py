"""Access to files and folders on a local disk or in a bucket, and the repetition of operations that fail."""

from lungseg_ray.storage.bucket_errors import translate_errors
from lungseg_ray.storage.local import DEEPEST_LINK
from lungseg_ray.storage.location import Location, locate
from lungseg_ray.storage.retries import PATIENCE_SECONDS, StorageError, retry
from lungseg_ray.storage.s3 import REQUESTS

__all__ = [
    "DEEPEST_LINK",
    "PATIENCE_SECONDS",
    "REQUESTS",
    "Location",
    "StorageError",
    "locate",
    "retry",
    "translate_errors",
]
