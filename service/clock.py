"""How a span of time is shown."""


def clock(seconds: float) -> str:
    """Minutes and seconds, after hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def lasting(seconds: float) -> str:
    """The same with its unit."""
    return f"{clock(seconds)} {'minutes' if seconds < 3600 else 'hours'}"
