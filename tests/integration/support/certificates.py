"""Certificates for tests, made with the ``openssl`` command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


def _openssl(*words: object, cwd: Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM."""

    file: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Authority:
        """Make an authority; its certificate is ``ca.pem``."""
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command is installed")
        directory.mkdir(parents=True)
        made = cls(directory)
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        subject = f"/CN=authority {directory.name}"
        out = ("-keyout", "ca.key", "-out", "ca.pem", "-subj", subject)
        uses = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *curve, *out, *uses, "-days", 2, cwd=directory)
        (directory / "ca.conf").write_text(
            "[ca]\ndefault_ca=only\n[only]\ndatabase=index\ndefault_md=sha256\n"
            "default_crl_days=2\ncertificate=ca.pem\nprivate_key=ca.key\n"
        )
        (directory / "index").touch()
        return made

    @property
    def file(self) -> Path:
        """Its own certificate."""
        return self.directory / "ca.pem"

    def sign(self, name: str, address: str) -> Certificate:
        """Make a certificate for this address."""
        made = Certificate(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        out = ("-keyout", made.key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
        _openssl("req", "-new", *curve, *out, cwd=self.directory)
        (self.directory / f"{name}.ext").write_text(f"subjectAltName=IP:{address}\n")
        by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext")
        words = ("x509", "-req", "-in", f"{name}.csr", "-out", made.file, "-days", 2, *by)
        _openssl(*words, cwd=self.directory)
        return made

    def revocations(self, *revoked: Certificate) -> Path:
        """Revoke certificates; returns the revocation list."""
        config = ("-config", "ca.conf")
        for certificate in revoked:
            _openssl("ca", *config, "-revoke", certificate.file, cwd=self.directory)
        _openssl("ca", *config, "-gencrl", "-out", "revoked.pem", cwd=self.directory)
        return self.directory / "revoked.pem"
