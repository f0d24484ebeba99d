"""How a span of time is shown."""


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"
