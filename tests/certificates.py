"""Certificates for tests: an authority, and what it vouches for, made with the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = "DNS:localhost,IP:127.0.0.1,IP:::1,IP:10.99.0.1,IP:10.99.0.2"  # this machine, and those of machines.py


class Papers(NamedTuple):
    """Files of one side."""

    certificate: str
    key: str


class Authority:
    """Signs certificates; all files lie in one directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self.certificate = str(directory / f"{name}.pem")
        self._key = str(directory / f"{name}.key")
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def papers(self, name: str, *, names: str = HERE, days: int = 2) -> Papers:
        """A certificate for `names`, signed; with negative `days` it has expired."""
        certificate, key = str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key")
        request, extensions = str(self._directory / f"{name}.csr"), self._directory / f"{name}.ext"
        extensions.write_text(f"basicConstraints=critical,CA:FALSE\nsubjectAltName={names}\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-days", str(days), "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-CAcreateserial", "-extfile", str(extensions), "-out", certificate,
        )  # fmt: skip
        return Papers(certificate, key)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
