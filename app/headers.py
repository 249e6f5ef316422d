"""The headers of security, which every answer bears."""

from collections.abc import Sequence

_Headers = Sequence[tuple[bytes, bytes]]

_ALWAYS: _Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
# Of the API's answers a browser is to make nothing.
SECURITY: _Headers = (*_ALWAYS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))

# Swagger UI's page has a script and styles in itself, draws pictures from data, and asks the gateway.
_PAGE_POLICY = b"; ".join(
    [
        b"default-src 'none'",
        b"script-src 'self' 'unsafe-inline'",
        b"style-src 'self' 'unsafe-inline'",
        b"img-src 'self' data:",
        b"connect-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
    ]
)
SECURITY_OF_PAGES: _Headers = (*_ALWAYS, (b"content-security-policy", _PAGE_POLICY))
