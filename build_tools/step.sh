#!/usr/bin/env bash
# step.sh "what happens" command...: runs the command, says how long it took, and gives a sign of life every
# 20 s while it runs.
set -euo pipefail
title=$1
shift
printf '==> %s\n' "$title"
(
  while sleep 20 >/dev/null 2>&1; do printf '    ... %s (%d s)\n' "$title" "$SECONDS"; done
) &
ticker=$!
trap 'kill "$ticker" 2>/dev/null || true' EXIT
status=0
"$@" || status=$?
if [ "$status" -eq 0 ]; then
  printf '    done: %s (%d s)\n' "$title" "$SECONDS"
else
  printf '    FAILED: %s (%d s, exit status %d)\n' "$title" "$SECONDS" "$status" >&2
fi
exit "$status"
