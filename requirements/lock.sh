# Rewrite the lock files from pyproject.toml: lock.sh UV [--upgrade]
# All platforms and Python versions use one set of versions, and the tests use the versions of the service. Each version
# has the hashes of all its files, which pip compares (--require-hashes). Only torch has none: its builds for CPUs and
# for each kind of GPU share a version and come from several indexes; torch.txt has its version.
set -eu
uv=$1
shift
export UV_CUSTOM_COMPILE_COMMAND="make lock"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

lock() {
    out=$1
    shift
    "$uv" pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
        --no-emit-package torch --no-annotate --quiet --output-file "requirements/$out.txt" "$@"
    sed -n '/^[a-z0-9]/ s/ *\\$//p' "requirements/$out.txt" >"$folder/$out.txt" # the versions alone, as constraints
}

lock serve pyproject.toml --extra build --extra redis --extra sign "$@"
lock load pyproject.toml --extra build --extra redis --extra sign --extra load --constraint "$folder/serve.txt" "$@"
lock train pyproject.toml --extra build --extra redis --extra sign --extra train --constraint "$folder/load.txt" "$@"
lock dev pyproject.toml --extra build --extra dev --constraint "$folder/load.txt" --constraint "$folder/train.txt" "$@"
# Without OpenTelemetry: the other servers of `make bench` pin their own version.
grep -v -e '^opentelemetry' -e '^googleapis' "$folder/dev.txt" >"$folder/ours.txt"
lock bench pyproject.toml --extra build --extra bench --constraint "$folder/ours.txt" "$@"
lock harness pyproject.toml --extra build --extra harness --constraint "$folder/dev.txt" "$@"
lock build --group from-source --constraint "$folder/dev.txt" "$@"
sed -n 's/^constraint-dependencies = \["\(torch==[^"]*\)"\].*/\1/p' pyproject.toml >requirements/torch.txt
