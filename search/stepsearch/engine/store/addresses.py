"""Addresses of servers, and the passwords in them, which nobody is shown."""

import re
from pathlib import Path
from urllib.parse import unquote

from stepsampler.errors import UserError

NAMES = ("password", "passwd", "pwd", "token")  # of what an address may have behind its ?
# And of what is no secret there: which database it is, and how it is read. Any other may be one.
PLAIN = (
    *("host", "hostaddr", "port", "user", "dbname", "database", "db", "unix_socket", "options"),
    *("sslmode", "charset", "connect_timeout", "application_name"),
)
_OTHER = re.compile(rf"([?&](?!(?:{'|'.join(PLAIN)})=)[^=&\s'\"]+)=([^&\s'\"]+)")


def without_passwords(text: str, passwords: tuple[str, ...] = ()) -> str:
    """The text without what stands before the @ of an address, and without these words."""
    for word in passwords:
        text = text.replace(word, "…")
    text = _OTHER.sub(r"\1=…", re.sub(r"://\S*@", "://…@", text))
    return re.sub(rf"({'|'.join(NAMES)})=[^&\s'\"]+", r"\1=…", text)


def passwords_of(address: str) -> tuple[str, ...]:
    """The passwords of an address, as they stand there and as its server reads them."""
    _, sign, rest = address.partition("://")
    known, at, _ = (rest if sign else address).rpartition("@")
    said = known.partition(":")[2]
    mistyped = [] if sign else [said.rpartition(":")[2]]  # as http:/me:word@host
    mistyped += said.split("@")  # drivers end the password at the first of several
    if sign and not at:  # as postgresql://me:word, where a port should be
        _, port, place = rest.partition("/")[0].rpartition(":")
        mistyped += [] if not port or place.isdigit() or place.endswith("]") else [place]
    words = [said, *mistyped, *re.findall(rf"(?:{'|'.join(NAMES)})=([^&\s]+)", address)]
    words += [value for _, value in _OTHER.findall(address)]
    # shorter ones are in every text
    return tuple(w for word in words for w in (word, unquote(word)) if len(word) > 3)


def tracking_store(tracking: str) -> str:
    """The option itself; a typing error would be a folder of that name to MLflow.

    Raises:
        UserError: neither local, none nor an address.
    """
    if tracking in ("local", "none"):
        return tracking
    if (
        "://" in tracking
        or tracking.startswith(("databricks", "file:"))
        or (tracking and Path(tracking).is_dir())
    ):
        return tracking
    raise UserError(
        "--tracking must be local, none or an address such as http://mlflow.example.org or "
        f"sqlite:///team.db, got {without_passwords(tracking, passwords_of(tracking))!r}"
    )
