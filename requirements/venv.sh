# Create a virtual environment with the Python $1 in the folder $2, .venv by default, or report what is missing. A
# working environment is kept.
set -eu
python=$1
venv=${2:-.venv}
fail() {
    echo "make: $1" >&2
    exit 1
}

command -v "$python" >/dev/null ||
    fail "$python was not found; meari needs Python 3.11 or newer (choose one: make PYTHON=python3.12 …)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1); meari needs Python 3.11 or newer (choose one: make PYTHON=python3.12 …)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv or ensurepip module; on Debian and Ubuntu, install the package python3-venv"

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
