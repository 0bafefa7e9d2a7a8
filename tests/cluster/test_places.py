from __future__ import annotations

import pytest

from lungseg_ray.cluster.places import check_lasting
from lungseg_ray.errors import UserError
from lungseg_ray.storage import Location


def test_places_that_a_submitted_job_would_lose() -> None:
    copy = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/runs/mine"
    with pytest.raises(UserError, match=r"^runs/mine: a submitted job runs in a copy of your folder that Ray deletes"):
        check_lasting(Location(copy))
    check_lasting(Location("/data/runs/mine"))
    check_lasting(Location("s3://lungs/runs/mine"))
