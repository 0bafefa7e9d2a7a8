"""The kinds of trouble a user meets: a mistake to correct, a job that cannot go on, a file that cannot be used."""


class UserError(Exception):
    """A mistake of the user's: what is wrong, where, what was expected and found, and what to do.

    Jobs print it as it is, without a traceback, and exit with status 2.
    """


class JobFailedError(Exception):
    """A job that cannot go on through no mistake of the command: what it met, where, what is safe, and what to do.

    Jobs print it as it is, without a traceback, and exit with status 1.
    """


class StoppedError(Exception):
    """A job that was asked to stop, and has saved what it had.

    Attributes:
        signal: number of the signal that asked; jobs exit with 128 + this.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class BadFileError(Exception):
    """One image or mask that cannot be used; it is set aside and counted, and the work goes on.

    Attributes:
        reason: one word of `lungseg_ray.corpus.REASONS`, to count by.
        detail: what was expected and found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
