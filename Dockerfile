# The whole recipe in a container: all three tiers of input, the sandbox and a compiler, as docs/install.md says.
#   docker build -t openafm .
#   docker run --rm -v openafm-runs:/home/openafm/app/runs -v openafm-cache:/home/openafm/.cache/openafm openafm run nano
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap build-essential npm \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home openafm && install -d -o openafm /home/openafm/app
USER openafm
WORKDIR /home/openafm/app

# On x86-64, PyPI's torch brings several GB of CUDA; this index has the CPU build. Empty it for a machine with a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --chown=openafm . .
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX} bash .ci/setup run \
    && mkdir -p runs ~/.cache/openafm

VOLUME ["/home/openafm/app/runs", "/home/openafm/.cache/openafm"]
ENTRYPOINT [".venv/bin/openafm"]
CMD ["run", "nano"]
