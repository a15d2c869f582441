# The backend for a machine with an NVIDIA GPU:
#
#     docker build -t mega .
#     openssl rand -hex 32 > token
#     docker run --gpus all -p 8765:8765 -v "$PWD/token:/run/secrets/mega_token:ro" mega
#
# torch's wheel brings its own CUDA libraries, so that a plain Python image and the host's driver suffice.
FROM python:3.11-slim-bookworm

# What OpenCV and MediaPipe link against; in the versions that have Debian's latest security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libgles2 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir torch==2.13.0
WORKDIR /opt/mega
COPY pyproject.toml README.md LICENSE ./
COPY mega_backend ./mega_backend
COPY train ./train
# The user is a number, by which a cluster knows that it is not root. The version is that of the sources.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[cluster]" && useradd --uid 1000 --create-home mega
USER 1000
WORKDIR /home/mega
ENV PYTHONUNBUFFERED=1 HOME=/home/mega
# MediaPipe's matplotlib would else list the fonts at every start.
RUN python -c "import matplotlib.font_manager"

EXPOSE 8765
# Without the token: a 401 is an answer too.
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8765, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status not in (200, 401))"]
ENTRYPOINT ["mega"]
CMD ["serve", "--host", "0.0.0.0", "--token-file", "/run/secrets/mega_token", "--device", "cuda", "--log", "json"]
