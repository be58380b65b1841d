"""Test keys: who a caller is, and what they may do."""

from __future__ import annotations

import pytest

from meari.errors import Forbidden, Unauthorized
from meari.service.requests.keys import ANYBODY, Caller, KeyRing


def test_admin_key_is_known_beside_the_other_keys() -> None:
    ring = KeyRing(("first", "second"), ("admin",))
    assert ring.caller("Bearer second") == Caller("api_keys:2")
    ring.caller("Bearer admin").require_admin()
    with pytest.raises(Forbidden, match="api_keys:1 is no admin key"):
        ring.caller("Bearer first").require_admin()
    for header in (None, "Bearer", "Bearer other", "Basic first", "first", "Bearer é"):
        with pytest.raises(Unauthorized):
            ring.caller(header)


def test_admin_keys_alone_close_nothing_but_what_is_for_admins() -> None:
    ring = KeyRing((), ("admin",))
    assert ring.caller(None) == ring.caller("Bearer other") == ANYBODY
    ring.caller("Bearer admin").require_admin()
    with pytest.raises(Unauthorized):
        ring.caller("Bearer other").require_admin()
