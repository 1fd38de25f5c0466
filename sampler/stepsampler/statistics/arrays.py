"""What numpy raises of an `.npz` that is damaged, or that somebody made up."""

import tokenize
import zlib
from zipfile import BadZipFile

# Cut off, encrypted, of another kind; a shape beyond all integers or all memory; a head that is not
# a dictionary of Python, which numpy parses.
BROKEN = (
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
    BadZipFile,
)
