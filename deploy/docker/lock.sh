#!/usr/bin/env bash
# Renew the lock files after a change of pyproject.toml or of a *.in file, or to take newer releases:
#     deploy/docker/lock.sh [--upgrade]
# Needs uv (pip install uv). The Python is that of the Dockerfile.
set -euo pipefail
cd "$(dirname "$0")/../.."

compile() {
    uv pip compile --quiet --python-version 3.12 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate \
        --no-header --no-emit-index-url --no-emit-find-links "$@"
}

folder=deploy/docker
compile "$@" pyproject.toml --extra s3 "$folder/requirements.in" --output-file "$folder/requirements.lock"
compile "$@" "$folder/notebook.in" --constraints "$folder/requirements.lock" --output-file "$folder/notebook.lock"
compile "$@" "$folder/build.in" --output-file "$folder/build.lock"
