"""Numbers and times as a person reads them: four significant digits, SI prefixes, units always."""

from __future__ import annotations

import math
from datetime import datetime

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | int | None, digits: int = 4) -> str:
    """Four significant digits; large numbers with an SI prefix, tiny ones with an exponent."""
    if value is None:
        return "–"
    value = float(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    for scale, prefix in PREFIXES:
        if size >= scale * (10 if prefix == "k" else 1):
            return f"{_plain(value / scale, digits)} {prefix}".replace("-", "−")
    text = _plain(value, digits)
    short = text.rstrip("0").rstrip(".") if "." in text else text
    return (short if float(short) == value else text).replace("-", "−")


def _plain(value: float, digits: int) -> str:
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, decimals)}f}"


def percent(share: float | None) -> str:
    """A share of one as per cent: 0.4213 is '42.1 %'."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """'2 min 10 s': the two largest units."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    while parts[0][0] == 0 and len(parts) > 1:
        parts.pop(0)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[:2] if amount or unit == parts[0][1])


def size(count: float | None) -> str:
    """Bytes: '18.2 GB'."""
    if count is None:
        return "–"
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def moment(time: float | None) -> str:
    """A time of day; with the date when it was not today."""
    if time is None:
        return "–"
    then = datetime.fromtimestamp(time)
    return then.strftime("%H:%M:%S" if then.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
