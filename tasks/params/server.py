"""A server with OpenAI's interface, whatever it is asked for."""

from tasks.params.addresses import Service
from tasks.params.base import NonNegativeInt, PositiveFloat, PositiveInt, Section


class Server(Section):
    """Where it answers, and how it is asked."""

    base_url: Service
    """Address up to and with /v1."""
    model: str
    """Name by which the endpoint knows the model."""
    concurrency: PositiveInt
    """Requests in flight."""
    timeout_s: PositiveFloat
    """Seconds until a request counts as failed."""
    max_retries: NonNegativeInt
    """Further tries of a failed request."""
    max_backoff_s: PositiveFloat
    """Longest wait between two tries, in seconds."""
