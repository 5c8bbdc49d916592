"""Numbers and lengths in a WebAssembly module, as LEB128 (WebAssembly Core Specification §5.2.2)."""


def unsigned(number: int) -> bytes:
    """A number that is not negative."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def signed(number: int) -> bytes:
    """A number that is not negative, in the signed form of constants."""
    parts = bytearray()
    while number > 0x3F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def sized(content: bytes) -> bytes:
    """Bytes behind their length."""
    return unsigned(len(content)) + content
