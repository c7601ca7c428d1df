"""What stops a run, as messages a person can act on."""


class FlowError(RuntimeError):
    """A run cannot start or go on; the command line shows the message without a trace."""


class StageFailedError(FlowError):
    """A stage, a hook or a push ended with a non-zero status."""


class CheckoutBusyError(FlowError):
    """Another run holds this checkout."""
