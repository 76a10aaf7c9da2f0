"""Users' key pairs for the broker (nkeys: ed25519 in NATS's own notation); not where they are kept (`contract/credentials.py`)."""

import secrets
from typing import NamedTuple

import nkeys  # type: ignore[import-untyped]

_SEED_BYTES = 32


class UserKey(NamedTuple):
    """A new user: the seed stays with its process, the broker's configuration gets the public half only."""

    seed: str
    public: str


def new_user_key() -> UserKey:
    """Make a key pair from the system's randomness."""
    seed: str = nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_USER).decode()
    return UserKey(seed, public_key(seed))


def public_key(seed: str) -> str:
    """Return the public half of a user's seed."""
    pair = nkeys.from_seed(bytearray(seed.encode()))
    public: str = pair.public_key.decode()
    pair.wipe()
    return public
