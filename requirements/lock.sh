# Rewrite the lock files from pyproject.toml: lock.sh UV [--upgrade]
# All platforms and Python versions use one set of versions, and the tests use the versions of the service.
set -eu
uv=$1
shift
export UV_CUSTOM_COMPILE_COMMAND="make lock"
lock() {
    out=$1
    shift
    "$uv" pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
        --no-annotate --quiet --output-file "requirements/$out.txt" "$@"
}

lock serve --extra build "$@"
lock load --extra build --extra load --constraint requirements/serve.txt "$@"
lock train --extra build --extra train --constraint requirements/load.txt "$@"
lock dev --extra build --extra dev --constraint requirements/load.txt --constraint requirements/train.txt "$@"
ours=$(mktemp) # without OpenTelemetry: the other servers of `make bench` pin their own version
trap 'rm -f "$ours"' EXIT
grep -v -e '^opentelemetry' -e '^googleapis' requirements/dev.txt >"$ours"
lock bench --extra build --extra bench --constraint "$ours" "$@"
lock harness --extra build --extra harness --constraint requirements/dev.txt "$@"
