#!/bin/sh
# Lay the precompiled kernels where they may be written to, then become the command.
set -eu
mkdir -p "$NUMBA_CACHE_DIR"
cp --recursive /opt/deltaspot/kernels/. "$NUMBA_CACHE_DIR"
exec deltaspot "$@"
