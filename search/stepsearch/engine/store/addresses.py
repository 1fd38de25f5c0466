"""Addresses of servers, and the passwords in them, which nobody is shown."""

import re
from urllib.parse import unquote


def without_passwords(text: str, passwords: tuple[str, ...] = ()) -> str:
    """The text without what stands before the @ of an address, and without these words."""
    for word in passwords:
        text = text.replace(word, "…")
    return re.sub(r"(password|pwd|token)=[^&\s'\"]+", r"\1=…", re.sub(r"://\S*@", "://…@", text))


def passwords_of(address: str) -> tuple[str, ...]:
    """The password of an address, as it stands there and as its server reads it."""
    _, _, rest = address.partition("://")
    word = rest.rpartition("@")[0].partition(":")[2]
    return (word, unquote(word)) if len(word) > 3 else ()  # shorter ones are in every text
