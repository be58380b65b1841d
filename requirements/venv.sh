# Makes .venv, or the folder that $2 names, with the Python that $1 names, or says what is missing. An environment
# that works is kept.
set -eu
python=$1
venv=${2:-.venv}
fail() {
    echo "make: $1" >&2
    exit 1
}

command -v "$python" >/dev/null ||
    fail "there is no $python here; meari needs Python 3.11 or newer (another name: make PYTHON=python3.12 …)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1); meari needs Python 3.11 or newer (another one: make PYTHON=python3.12 …)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv or ensurepip module; on Debian and Ubuntu the package python3-venv holds them"

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
