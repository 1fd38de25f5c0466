"""Images -> numbers with errors: extractors, references, distances, alignment, the protocol.

May import `config` and `paths`; no other wing.
"""
