"""What stops a base from being fetched."""


class BaseError(RuntimeError):
    """A source that cannot be reached, read or believed; the message says what to do."""
