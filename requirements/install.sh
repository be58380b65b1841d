# Install a lock file that has packages without wheels: install.sh VENV LOCK_FILE
# They are built by the tools of build.txt rather than in isolation, where pip compares no hashes.
set -eu
venv=$(cd "$1" && pwd)
lock=$2
pip() {
    PATH="$venv/bin:$PATH" "$venv/bin/python" -m pip --disable-pip-version-check -qq \
        install --no-deps --no-compile --require-hashes "$@"
}

pip --only-binary :all: --requirement requirements/build.txt
pip --no-build-isolation --requirement "$lock"
