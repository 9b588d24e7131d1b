"""Encryption of an export: every file for one public key; with a passphrase that key is the export's own.

scrypt takes seconds by design, so it is used once: the passphrase encrypts a fresh key, the key everything else.
"""

from dataclasses import dataclass, field
from typing import Final

import pyrage
from pyrage import passphrase as scrypt
from pyrage import x25519

from vmreplica.model.errors import BadRequest
from vmreplica.model.export import Recipient

_SECRET: Final = "AGE-SECRET-KEY-"  # noqa: S105 - how such keys begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a person gives to open an export: a passphrase, or the text of an age identity file, or nothing."""

    passphrase: str | None = field(default=None, repr=False)
    identity: str | None = field(default=None, repr=False)


class Sealer:
    """Encrypts for a recipient; with None it leaves everything as it is.

    Raises:
        BadRequest: ``recipient-invalid``.
    """

    def __init__(self, recipient: Recipient | None) -> None:
        self._recipients = [] if recipient is None else [_recipient(recipient)]

    @property
    def sealed(self) -> bool:
        """Whether files are encrypted."""
        return bool(self._recipients)

    def seal(self, plain: bytes) -> bytes:
        """Encrypt a file's content."""
        return pyrage.encrypt(plain, self._recipients) if self._recipients else plain


class Unsealer:
    """Decrypts with an identity; with None files are plain."""

    def __init__(self, identity: x25519.Identity | None) -> None:
        self._identity = identity

    @property
    def sealed(self) -> bool:
        """Whether files are encrypted."""
        return self._identity is not None

    def unseal(self, content: bytes, what: str) -> bytes:
        """Decrypt a file's content.

        Raises:
            BadRequest: ``export-key-differs``: it was encrypted for another key.
        """
        if self._identity is None:
            return content
        try:
            return pyrage.decrypt(content, [self._identity])
        except pyrage.DecryptError as error:
            raise BadRequest(
                "export-key-differs",
                f"{what} cannot be decrypted with the key that was given: {error}",
                hint="give the key that the export was made for: --passphrase-file or --identity",
            ) from error


def new_key(passphrase: str) -> tuple[Recipient, bytes]:
    """Make an export's own key in some seconds; give its public half, and the secret half encrypted."""
    identity = x25519.Identity.generate()
    return str(identity.to_public()), scrypt.encrypt(str(identity).encode(), passphrase)


def open_key(content: bytes, passphrase: str, what: str) -> Unsealer:
    """Decrypt an export's own key; takes seconds.

    Raises:
        BadRequest: ``passphrase-wrong``.
    """
    try:
        return Unsealer(x25519.Identity.from_str(scrypt.decrypt(content, passphrase).decode()))
    except (pyrage.DecryptError, pyrage.IdentityError, UnicodeDecodeError) as error:
        raise BadRequest(
            "passphrase-wrong",
            f"the passphrase does not open {what}",
            hint="give the file that was given to `vmreplica enable` as --passphrase-file",
        ) from error


def read_identity(text: str) -> Unsealer:
    """Read an age identity file: the first secret key in it.

    Raises:
        BadRequest: ``identity-invalid``.
    """
    lines = (line.strip() for line in text.splitlines())
    secret = next((line for line in lines if line.startswith(_SECRET)), "")
    try:
        return Unsealer(x25519.Identity.from_str(secret))
    except pyrage.IdentityError as error:
        raise BadRequest(
            "identity-invalid",
            "the identity file has no age secret key (X25519)",
            hint=f"it must have a line that begins with {_SECRET}; age-keygen makes such files",
        ) from error


def _recipient(text: Recipient) -> x25519.Recipient:
    try:
        return x25519.Recipient.from_str(text)
    except pyrage.RecipientError as error:
        raise BadRequest(
            "recipient-invalid",
            f"{text} is not a public key of age (X25519)",
            hint="age-keygen -y FILE shows the public key of an identity",
        ) from error
