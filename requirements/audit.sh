# Look for known vulnerabilities of the locked packages: audit.sh PIP_AUDIT
# Exit code 1 if there are any. Where the package index tells none, also not of an old version that has some, a message
# and 0: an index's mirror may answer without its list of vulnerabilities.
set -u
audit=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
known=0

finds_some() { # in a lock file: versions and hashes are in it, so nothing has to be resolved
    "$audit" --no-deps --disable-pip --progress-spinner off --timeout 30 --requirement "$1" >"$folder/report" 2>&1
    grep -q '^Found [0-9]* known vulnerabilit' "$folder/report"
}

echo 'jinja2==2.10' >"$folder/old.txt"
if ! finds_some "$folder/old.txt"; then
    echo 'make audit: skipped: the package index gives no vulnerabilities here, not even those of jinja2 2.10' >&2
    exit 0
fi
for name in serve load train dev torch; do
    if finds_some "requirements/$name.txt"; then
        echo "requirements/$name.txt:"
        cat "$folder/report"
        known=1
    elif grep -q 'Skip Reason' "$folder/report"; then
        sed -n '/Skip Reason/,$ p' "$folder/report" # packages that the index does not know
    fi
done
[ $known = 1 ] || echo 'make audit: no known vulnerabilities'
exit $known
