# The image of every node of a Ray cluster; also for single jobs on one machine.
#
#   docker build -t lungseg-ray .                                     with PyTorch for NVIDIA GPUs
#   docker build -t lungseg-ray --build-arg TORCH_INDEX=URL .         with PyTorch from another package index, such as
#                                                                     that of its wheels for CPUs, which are far smaller
#   docker run --rm --gpus all --shm-size 8g -v /data:/data lungseg-ray \
#       python jobs/train.py --corpus.root /data/xrays --shards.root /data/shards --runs.root /data/runs
#
# Ray keeps objects in shared memory, of which Docker gives 64 MB. /data must be writable for the user with ID 1000.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=

# wget is what KubeRay asks Ray's health with.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 lungseg
WORKDIR /app

# The packages come before the code, so that a change of the code does not install them again.
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
    && mkdir lungseg_ray \
    && touch lungseg_ray/__init__.py \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[cluster]' \
    && /venv/bin/pip uninstall --yes lungseg-ray \
    && rm -rf lungseg_ray build ./*.egg-info

COPY lungseg_ray lungseg_ray
COPY jobs jobs
COPY configs configs
RUN /venv/bin/pip install --no-cache-dir --no-deps . && rm -rf build ./*.egg-info && chown lungseg /app

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0

USER 1000
HEALTHCHECK --interval=5m --timeout=30s CMD ["python", "jobs/train.py", "--help"]
CMD ["python", "jobs/train.py"]
