#!/usr/bin/env bash
# Provides headless Chromium to tests/e2e/test_report.py, where none is found: Debian's package when root may install it,
# else Playwright's own build, into the user's cache. Never fails: without a browser these tests skip and say why.
set -uo pipefail

found() { # as in tests/e2e/test_report.py
    [ -x "${CHROMIUM:-}" ] || command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null ||
        ls "${PLAYWRIGHT_BROWSERS_PATH:-$HOME/.cache/ms-playwright}"/chromium*/ >/dev/null 2>&1
}

if ! found && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Chromium for the tests of the report (apt-get)"
    { apt-get update && apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core; } >/dev/null 2>&1
fi
if ! found; then
    echo "fetching Chromium for the tests of the report (playwright install)"
    python -m playwright install --only-shell chromium >/dev/null 2>&1
fi
found || echo "no Chromium could be installed: the tests of the report will skip. CHROMIUM=FILE names one." >&2
exit 0
