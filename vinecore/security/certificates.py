"""Certificates for TLS, made on the fly: one for the user's managers, and one for each worker.

Nobody signs them but themselves. Who connects knows the fingerprint: a worker finds that of the manager in a file beside the secret, and gets those of other workers
from the manager. See the design page, "Talking".
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
from pathlib import Path

from vinecore.protocol import tls
from vinecore.security.shared_secret import secret_path

CRYPTOGRAPHY_MISSING = "ssl needs the package cryptography, which makes certificates: install it, as in pip install 'daskvine[ssl]'"


def make_certificate() -> tuple[str, str]:
    """Make a certificate.

    Returns
    -------
    tuple
        It with its private key, in PEM, and its fingerprint.

    Raises
    ------
    RuntimeError
        The package cryptography is not there.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise RuntimeError(CRYPTOGRAPHY_MISSING) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "daskvine")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # clocks of nodes differ, and no end checks the date
        .not_valid_before(dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc))
        .not_valid_after(dt.datetime(9999, 1, 1, tzinfo=dt.timezone.utc))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    text = private.decode() + made.public_bytes(serialization.Encoding.PEM).decode()
    return text, tls.fingerprint(made.public_bytes(serialization.Encoding.DER))


def load_or_create_user_certificate() -> Path:
    """Return this user's certificate; make one the first time."""
    path = secret_path().with_name("certificate.pem")
    if not path.exists():
        text, _fingerprint = make_certificate()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(path, text, replace=False)
    return path


def fingerprint_of(path: str | Path) -> str:
    """Return the fingerprint of the first certificate in a file, as it is written beside secrets.

    Raises
    ------
    ValueError
        There is none.
    """
    import ssl

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    _before, found, rest = Path(path).read_text(errors="replace").partition(begin)
    if not found:
        msg = f"{path} holds no certificate in PEM"
        raise ValueError(msg)
    certificate = ssl.PEM_cert_to_DER_cert(begin + rest.partition(end)[0] + end)
    return f"sha256:{tls.fingerprint(certificate)}"


def write_fingerprint(fingerprint: str, secret: Path) -> Path:
    """Write a fingerprint to the file beside a secret, where workers look; those of other managers with the same secret stay."""
    path = secret.with_name(secret.name + ".fingerprint")
    known = path.read_text().split() if path.exists() else []
    if fingerprint not in known:
        _write(path, "".join(f"{line}\n" for line in [*known, fingerprint]), replace=True)
    return path


def _write(path: Path, text: str, *, replace: bool) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
