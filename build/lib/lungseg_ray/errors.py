"""The errors that users meet: a mistake to correct, a failed job, a stopped job, and a file that cannot be used."""


class UserError(Exception):
    """A mistake that the user can correct.

    The message states what is wrong and where, what was expected and what was found, and what to do. Jobs print it as
    it is, without a traceback, and exit with status 2.
    """


class JobFailedError(Exception):
    """A failure that ends a job although the user's command is correct.

    The message states what happened and where, which results are safe, and what to do. Jobs print it as it is, without
    a traceback, and exit with status 1.
    """


class StoppedError(Exception):
    """The end of a job that was asked to stop and has saved its state.

    Args:
        message: The text for the user.
        signal: The number of the signal that asked the job to stop.

    Attributes:
        signal: The number of the signal; the job exits with status 128 plus this number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class BadFileError(Exception):
    """An image or mask that cannot be used; it is set aside and counted, and the job continues.

    Args:
        reason: The kind of fault, a key of `lungseg_ray.corpus.REASONS`.
        detail: What was expected and what was found, for the user.

    Attributes:
        reason: The kind of fault, by which files are counted.
        detail: What was expected and what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
