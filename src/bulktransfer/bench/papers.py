"""A certificate for a benchmark on loopback, which vouches for itself.

Knows: the openssl program. Must not know: what the certificate is for.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .machine import CannotMeasure


@contextlib.contextmanager
def self_signed() -> Iterator[dict[str, str]]:
    """The files `certificate` and `key`, for localhost, gone afterwards. Raises: CannotMeasure (no openssl)."""
    if shutil.which("openssl") is None:
        raise CannotMeasure("tls: takes a certificate, and there is no openssl program to make one with")
    with tempfile.TemporaryDirectory(prefix="bulk-bench-") as directory:
        papers = {what: str(Path(directory) / f"{what}.pem") for what in ("certificate", "key")}
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-keyout", papers["key"], "-out", papers["certificate"]]
        subprocess.run(command, check=True, capture_output=True)
        yield papers
