# fedrec, for a coordinator or a shop: compose.yaml in server/ and clients/ says which. No key, setting or event is in the image.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY fedrec fedrec
RUN python -m venv /opt/fedrec \
    && /opt/fedrec/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt .

FROM python:3.11-slim
COPY --from=build /opt/fedrec /opt/fedrec
RUN groupadd --gid 10001 fedrec \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/fedrec --shell /usr/sbin/nologin fedrec \
    && install -d -o fedrec -g fedrec -m 0700 /var/lib/fedrec
ENV PATH=/opt/fedrec/bin:$PATH PYTHONUNBUFFERED=1 FEDREC_HEALTH_PORT=7480 FEDREC_HEALTH_PATH=/health
USER fedrec
WORKDIR /var/lib/fedrec
VOLUME /var/lib/fedrec
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import os, urllib.request as u; e = os.environ; u.urlopen('http://127.0.0.1:' + e['FEDREC_HEALTH_PORT'] + e['FEDREC_HEALTH_PATH'], timeout=4)"]
ENTRYPOINT ["fedrec"]
CMD ["--help"]
