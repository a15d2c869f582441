"""Lets schemathesis send bytes as messages: a heavier run beside `benchmarks.service malformed`, on a running server:

    SCHEMATHESIS_HOOKS=benchmarks.schemathesis_hooks schemathesis run http://127.0.0.1:8765/openapi.json \\
        --max-time 60 --phases coverage,fuzzing --exclude-checks positive_data_acceptance

(OpenAPI can say that a body is binary, not that it is a well-formed message: hence the excluded check.)
"""

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-mega-messages")
def message(context: Any, value: Any) -> bytes:
    """Bytes as they are; anything else as what it is written as."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
