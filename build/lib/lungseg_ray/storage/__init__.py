"""Access to files and folders on a local disk or in a bucket, and the repetition of operations that fail."""

from lungseg_ray.storage.location import DEEPEST_LINK, REQUESTS, Location, locate, translate_errors
from lungseg_ray.storage.retries import PATIENCE_SECONDS, StorageError, retry

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
