"""Whether a Ray cluster answers and takes this process, which Ray itself finds out only after minutes, or never."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader, GcsClient  # type: ignore[attr-defined]

from lungseg_ray.errors import UserError

_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>[^/]+):(?P<port>\d+)")
_ANSWER_SECONDS = 10.0


def check_answers(address: str) -> None:
    """Checks that a Ray cluster answers at an address, that it takes the token of this process, and its versions.

    Args:
        address: The address of the cluster, as RAY_ADDRESS contains it; others than HOST:PORT are not checked, and of
            those of Ray Client only whether something listens there.

    Raises:
        UserError: If nothing answers, if the cluster does not take the token, or if it has another version of Ray or
            Python.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        return
    host, port = match["host"].strip("[]"), int(match["port"])
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(no_answer(address, f"nothing listens at this address: {error}")) from error
    if not match["client"]:
        _check_versions(address, _metadata(address))


def no_answer(address: str, why: str) -> str:
    """Returns the message for an address at which no cluster answers.

    Args:
        address: The address.
        why: What was found there.
    """
    return (
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({why}). Start one with `ray start --head`, or unset "
        "RAY_ADDRESS to run on this machine alone."
    )


def _metadata(address: str) -> dict[str, Any]:
    """Asks a cluster for its versions."""
    answers: list[dict[str, Any] | Exception] = []

    def ask() -> None:
        try:
            # Without a token where one is wanted, this raises an error, and the client would end the process.
            AuthenticationTokenLoader.instance().has_token()
            answers.append(get_cluster_metadata(GcsClient(address=address)))
        except Exception as error:  # Ray raises errors of many kinds.
            answers.append(error)

    with _silent():
        # Ray has no limit of its own for what is not a cluster.
        asking = threading.Thread(target=ask, name="asking", daemon=True)
        asking.start()
        asking.join(_ANSWER_SECONDS)
    if not answers:
        raise UserError(no_answer(address, f"what listens there did not answer for {_ANSWER_SECONDS:.0f} s"))
    answer = answers[0]
    if isinstance(answer, ray.exceptions.AuthenticationError):
        raise UserError(f"RAY_ADDRESS={address}: {_wrong_token()}") from answer
    if isinstance(answer, Exception):
        raise UserError(no_answer(address, str(answer))) from answer
    return answer


def _wrong_token() -> str:
    how = "Put the token of the cluster into ~/.ray/auth_token (`ray get-auth-token` prints it there)"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return f"the cluster asks for a token. {how}, and set RAY_AUTH_MODE=token."
    return f"the cluster asks for its token; this process has another one, or none. {how}."


def _check_versions(address: str, theirs: dict[str, Any]) -> None:
    try:
        check_version_info(theirs, "this process")
    except RuntimeError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: the cluster has Ray {theirs['ray_version']} with Python "
            f"{theirs['python_version']}, this process has Ray {ray.__version__} with Python "
            f"{platform.python_version()}. Use the same versions on all machines."
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what the C++ part of Ray prints from the user."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
