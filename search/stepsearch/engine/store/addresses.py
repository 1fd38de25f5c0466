"""Addresses of servers, and the passwords in them, which nobody is shown."""

import re
from urllib.parse import unquote

NAMES = ("password", "passwd", "pwd", "token")  # of what an address may have behind its ?


def without_passwords(text: str, passwords: tuple[str, ...] = ()) -> str:
    """The text without what stands before the @ of an address, and without these words."""
    for word in passwords:
        text = text.replace(word, "…")
    text = re.sub(r"://\S*@", "://…@", text)
    return re.sub(rf"({'|'.join(NAMES)})=[^&\s'\"]+", r"\1=…", text)


def passwords_of(address: str) -> tuple[str, ...]:
    """The passwords of an address, as they stand there and as its server reads them."""
    _, sign, rest = address.partition("://")
    said = (rest if sign else address).rpartition("@")[0].partition(":")[2]
    mistyped = [] if sign else [said.rpartition(":")[2]]  # as http:/me:word@host
    words = [said, *mistyped, *re.findall(rf"(?:{'|'.join(NAMES)})=([^&\s]+)", address)]
    # shorter ones are in every text
    return tuple(w for word in words for w in (word, unquote(word)) if len(word) > 3)
