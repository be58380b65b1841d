# The serving side and the released bundles, without torch. `make image` builds it; then
#
#   docker run --rm -p 127.0.0.1:8000:8000 meari:latest
#
# Everything that changes while it runs is in /tmp: --read-only --tmpfs /tmp works.

ARG BASE=python:3.11-slim-bookworm

# --- build: the locked packages and the project in one environment, then what no server needs taken out ---
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/meari
ENV PATH=/opt/meari/bin:$PATH
COPY requirements/serve.txt requirements/
RUN pip install --quiet --no-deps --no-compile --requirement requirements/serve.txt
COPY . .
RUN pip install --quiet --no-deps --no-compile --no-build-isolation .
# The playground shows the pictures of the claims from beside the package.
RUN cd /opt/meari/lib/python3.*/site-packages && mkdir meari/docs && cp -r /build/docs/claims meari/docs/
# Tests, stubs and headers of numpy; onnxruntime's converters and its second copy for C programs; what rich draws
# source code and Markdown with; the installers. The last line shows that what is left imports.
RUN cd /opt/meari/lib/python3.*/site-packages \
    && rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth \
    && rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets \
    && rm -rf onnxruntime/capi/libonnxruntime.so.* numpy/f2py numpy/distutils numpy/_core/include \
    && rm -rf numpy/typing/tests numpy/_pyinstaller \
    && rm -rf pygments pygments-* markdown_it markdown_it_py-* mdurl mdurl-* \
    && rm -f /opt/meari/bin/markdown-it /opt/meari/bin/pygmentize /opt/meari/bin/pip* /opt/meari/bin/f2py /opt/meari/bin/*ctivate* \
    && find . -depth -type d -name tests -exec rm -rf {} + \
    && find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyi' \) -delete \
    && cd / && python -B -c 'import flask, gunicorn.app.base, msgspec, numpy, onnxruntime, prometheus_client, rich.console, rich.table, tokenizers'
# Compiled here, since nothing can be written there later: with the 12 MB of this line `import meari.service.app` takes
# half as long, and every worker does it at every start.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/meari/lib

# --- the image ---
FROM ${BASE}
LABEL org.opencontainers.image.title="meari" \
    org.opencontainers.image.version="0.2.0" \
    org.opencontainers.image.description="Small recurrent language models served over HTTP on ordinary CPUs" \
    org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/meari/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MEARI_HOST=0.0.0.0 MEARI_PORT=8000
COPY --from=build /opt/meari /opt/meari
WORKDIR /srv/meari
COPY bundles bundles
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"MEARI_PORT\"]}/readyz', timeout=4)"]
CMD ["meari", "serve"]
