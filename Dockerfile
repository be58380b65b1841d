# Image of the service and the released bundles, without torch. `make image` builds it; run it with
#
#   docker run --rm -p 127.0.0.1:8000:8000 meari:latest
#
# Bundles of your own are served beside the released ones, and before one of the same name: -v ./bundles:/bundles:ro.
# `docker build --target train` makes an image that trains and exports as well.
#
# The service writes only to /tmp: --read-only --tmpfs /tmp works. /opt/meari/share/sbom.cdx.json lists what is inside.
#
# The base is fixed by its digest (of all its platforms): the tag moves. For a newer one ask the registry, for example
# with `docker buildx imagetools inspect python:3.11-slim-bookworm`.

ARG BASE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# --- build: install the locked packages and the project, then remove files that a server does not need ---
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/meari
ENV PATH=/opt/meari/bin:$PATH
COPY requirements/serve.txt requirements/
RUN pip install --quiet --no-deps --no-compile --require-hashes --only-binary :all: --requirement requirements/serve.txt
COPY . .
RUN pip install --quiet --no-deps --no-compile --no-build-isolation .
# The playground reads the pictures of the claims from a folder of the package.
RUN cd /opt/meari/lib/python3.*/site-packages && mkdir meari/docs && cp -r /build/docs/claims meari/docs/
# Remove installers, tests, stubs and headers of numpy, onnxruntime's converters and C library, and rich's source code
# and Markdown renderers. The last line checks that the remaining packages can be imported.
RUN cd /opt/meari/lib/python3.*/site-packages \
    && rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth \
    && rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets \
    && rm -rf onnxruntime/capi/libonnxruntime.so.* numpy/f2py numpy/distutils numpy/_core/include \
    && rm -rf numpy/typing/tests numpy/_pyinstaller \
    && rm -rf pygments pygments-* markdown_it markdown_it_py-* mdurl mdurl-* \
    && rm -f /opt/meari/bin/markdown-it /opt/meari/bin/pygmentize /opt/meari/bin/pip* /opt/meari/bin/f2py /opt/meari/bin/*ctivate* \
    && find . -depth -type d -name tests -exec rm -rf {} + \
    && find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyi' \) -delete \
    && cd / && python -B -c 'import flask, gunicorn.app.base, msgspec, numpy, nacl.bindings, onnxruntime, prometheus_client, redis, rich.console, rich.table, tokenizers'
RUN mkdir -p /opt/meari/share \
    && python -B requirements/sbom.py image /opt/meari/lib/python3.*/site-packages bundles >/opt/meari/share/sbom.cdx.json
# Compile now, because the installed files are read-only at run time. The 12 MB of bytecode halve the time of
# `import meari.service.app`, which every worker runs at every start.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/meari/lib

# --- the service ---
FROM ${BASE} AS service
LABEL org.opencontainers.image.title="meari" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.description="Small recurrent language models served over HTTP on ordinary CPUs" \
    org.opencontainers.image.licenses="MIT" \
    org.cyclonedx.sbom="/opt/meari/share/sbom.cdx.json"
ENV PATH=/opt/meari/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MEARI_HOST=0.0.0.0 MEARI_PORT=8000
ENV MEARI_BUNDLES=/bundles:/srv/meari/bundles
COPY --from=build /opt/meari /opt/meari
WORKDIR /srv/meari
COPY bundles bundles
RUN mkdir /keys && chown 10001:10001 /keys
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; tls = os.environ.get('MEARI_TLS_CERTIFICATE'); u.urlopen(f'http{\"s\" if tls else \"\"}://127.0.0.1:{os.environ[\"MEARI_PORT\"]}/readyz', timeout=4, context=ssl._create_unverified_context() if tls else None)"]
CMD ["meari", "serve"]

# --- train: `docker build --target train`; the service's image with torch ---
# All packages are installed again, because scipy and others import parts that were removed above.
# torch comes from pip's index, with libraries for GPUs where that has such builds; PIP_EXTRA_INDEX_URL names another.
# The last line checks that the packages can be imported, and keeps the bytecode of what is: compiling it anew took
# every process three times as long as importing it.
FROM service AS train
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
USER root
COPY requirements/train.txt requirements/torch.txt /opt/meari/share/
RUN cd /opt/meari/share && export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    && pip --python /opt/meari/bin/python install --quiet --force-reinstall --no-deps --no-compile --require-hashes --only-binary :all: --requirement train.txt \
    && pip --python /opt/meari/bin/python install --quiet --no-compile --requirement torch.txt \
    && PYTHONDONTWRITEBYTECODE= python -c 'import meari.export.bundle, meari.importer.bundle, meari.models.planning.run, meari.models.training.display, meari.models.training.run'
USER 10001:10001
WORKDIR /work
ENV MPLCONFIGDIR=/tmp/matplotlib
HEALTHCHECK NONE
ENTRYPOINT ["meari"]
CMD ["train", "--help"]

# --- the image: without a target, the service ---
FROM service
