"""Numbers as a reader wants them: aligned, rounded, with their unit."""

THIN_SPACE = "\u2009"
MINUS = "\u2212"
MISSING = "\u2013"


def score(value: float | None) -> str:
    """A score of 0-1 in points: 0.4127 is 41.3."""
    return MISSING if value is None else f"{100 * value:.1f}".replace("-", MINUS)


def gain(value: float | None) -> str:
    """A difference of scores in points, always signed."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def count(value: float | None) -> str:
    """A count in groups of three digits."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", THIN_SPACE)


def share(value: float | None) -> str:
    """A share of 0-1 in per cent."""
    return MISSING if value is None else f"{100 * value:.1f}{THIN_SPACE}%"


def duration(seconds: float) -> str:
    """Seconds below a minute with one decimal, else minutes or hours."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f}{THIN_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{THIN_SPACE}h {minutes:02d}{THIN_SPACE}min"
    return f"{minutes}{THIN_SPACE}min {rest:02d}{THIN_SPACE}s"


def memory(size_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    mebibytes = size_bytes / 2**20
    if mebibytes < 1024:  # noqa: PLR2004 - a gibibyte
        return f"{mebibytes:.0f}{THIN_SPACE}MiB"
    return f"{mebibytes / 1024:.1f}{THIN_SPACE}GiB"


def energy(joules: float) -> str:
    """Joules in kilowatt hours, or in watt hours below one."""
    watt_hours = joules / 3600
    if watt_hours < 1000:  # noqa: PLR2004 - a kilowatt hour
        return f"{watt_hours:.1f}{THIN_SPACE}Wh"
    return f"{watt_hours / 1000:.2f}{THIN_SPACE}kWh"


def magnitude(value: float) -> str:
    """A small quantity with three significant digits."""
    return f"{value:.3g}".replace("-", MINUS)
